"""`cutset probe` on a testbed with Ray: nodes are timed, links too, and a cluster file says it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from beds.clusters import built_with_ray
from beds.streams import END_S
from cutset.cluster.cluster_file import load_cluster
from cutset.cluster.wires import Port
from cutset.costs.profile import load_profile
from testbed.cgroups import find_cgroups
from testbed.nodes import command_on, environment_on
from testbed.state import State

# Only its programs are started: whoever collects this file need not import it.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install ray")

_PAIR = """
caller = "server"
[[device]]
name = "server"
[[device]]
name = "pi"
[link]
bandwidth = "20 Mbit/s"
"""
_MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(64, 64), nn.ReLU())))

    def forward(self, x):
        return self.layers(x)


def make():
    torch.manual_seed(0)
    return Net().eval(), (torch.randn(2, 64),)
"""


@pytest.fixture
def pair(machine: None) -> Iterator[State]:
    """Two nodes, a core each."""
    with built_with_ray(_PAIR, f"pair{os.getpid() % 10**6}") as state:
        yield state


def test_a_cluster_is_measured(pair: State, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(_MODEL)
    node = pair.layout.head
    command = ["cutset", "probe", "model.py:make", "-o", "cluster.toml", "--runs", "5", "--json"]
    done = subprocess.run(
        command_on(pair, find_cgroups(), node, command, limited=False),
        env=environment_on(pair, node),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=END_S,
    )
    assert done.returncode == 0, done.stderr
    cluster = load_cluster(tmp_path / "cluster.toml")
    assert json.loads(done.stdout)["caller"] == cluster.caller == "server"
    assert {device.name: device.address for device in cluster.devices} == {
        each.name: each.address for each in pair.layout.nodes
    }
    limited = {each.name: each.memory_bytes for each in pair.layout.nodes}
    for device in cluster.devices:
        assert device.profile is not None
        assert load_profile(tmp_path / device.profile).device == device.name
        assert device.memory_bytes is not None
        assert 0 < device.memory_bytes <= (limited[device.name] or 2**60)
        assert device.worker_bytes is not None
        assert 30e6 < device.worker_bytes < 2e9
        assert device.backends == load_profile(tmp_path / device.profile).backends
    # The bucket is what it is however busy the machine is; below it anything may be.
    slow = cluster.link_between("server", "pi").bandwidth_bytes_per_s
    assert slow < 1.2 * 20e6 / 8
    # Each direction has a bucket of its own, so that the two share nothing.
    assert cluster.media == ()
    assert {device.port for device in cluster.devices} == {Port()}
