"""The Ray engine on a testbed: three nodes, real raylets, real faults."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from beds.clusters import built_with_ray
from beds.streams import (
    END_S,
    NODES,
    NUM_ROWS,
    THREE_NODES,
    Caller,
    assert_coded,
    assert_nothing_of_ours,
    cut_for_3_seconds,
    objects_of,
    write_coded,
)
from cutset.bundles.open import open_bundle
from testbed import faults
from testbed.cgroups import find_cgroups
from testbed.nodes import command_on, environment_on
from testbed.state import State

# Only its programs are started: whoever collects this file need not import it.
pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install ray")


@pytest.fixture(scope="module")
def bed(machine: None) -> Iterator[State]:
    """Three nodes, two of them with half a core."""
    with built_with_ray(THREE_NODES, f"ray{os.getpid() % 10**7}") as state:
        yield state


def test_every_row_through_three_nodes_and_each_node_gets_its_own_shard_once(
    bed: State, bundle: Path, rows: Path, stranger: subprocess.Popen[str]
) -> None:
    caller = Caller(bed, "ray", bundle, rows)
    result = caller.follow({})
    assert result == {
        "asked": NUM_ROWS,
        "answered": NUM_ROWS,
        "wrong": [],
        "epoch": 1,
        "devices": list(NODES),
        "restarts": [0, 0, 0],
        "received_bytes": [NUM_ROWS * 3 * 16 * 16 * 4, NUM_ROWS * 8192, NUM_ROWS * 1024],
    }
    files = open_bundle(bundle).manifest.files
    for stage, name in enumerate(NODES):
        own = {entry.sha256 for entry in files if entry.path.startswith(f"stage-{stage}/")}
        kept = objects_of(bed, name)
        assert own < kept
        assert len(kept) == len(own) + 1  # and the manifest
    assert_nothing_of_ours(bed)


def test_images_int8_and_fp16_travel_between_nodes_and_answers_are_the_coded_models(
    bed: State, tmp_path: Path
) -> None:
    coded, images = write_coded(tmp_path)
    assert_coded(Caller(bed, "ray", coded, images).follow({}))
    assert_nothing_of_ours(bed)


@pytest.fixture(scope="module")
def stranger(bed: State, bundle: Path) -> subprocess.Popen[str]:
    """A caller with a wrong token; Ray tries for 20 seconds before it says so."""
    node = bed.layout.head
    environment = environment_on(bed, node)
    del environment["RAY_AUTH_TOKEN_PATH"]
    environment["RAY_AUTH_TOKEN"] = "0" * 64
    command = [
        *("cutset", "run", str(bundle), "nothing.npy"),
        *("--engine", "ray", "--address", environment["RAY_ADDRESS"]),
    ]
    return subprocess.Popen(
        command_on(bed, find_cgroups(), node, command, limited=False),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_caller_without_the_token_is_refused(stranger: subprocess.Popen[str]) -> None:
    _, words = stranger.communicate(timeout=60)
    assert stranger.returncode == 6
    assert "RAY_AUTH_TOKEN_PATH" in words.splitlines()[-1]


def test_a_caller_that_is_killed_leaves_no_process(bed: State, bundle: Path, rows: Path) -> None:
    caller = Caller(bed, "ray", bundle, rows)
    caller.wait_until_up()
    workers = [psutil.Process(pid) for pid in caller.pids]
    caller.process.send_signal(signal.SIGKILL)
    caller.process.communicate(timeout=10)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    assert_nothing_of_ours(bed)


_TIMED = """
import sys
from cutset.cluster.cluster_file import load_cluster
from cutset.engines.ray.engine import RayCluster
from cutset.workflow import time_on_cluster
time_on_cluster(sys.argv[1], RayCluster(cluster=load_cluster(sys.argv[2])), duration_s=0.5)
"""


def test_nodes_time_their_stages_and_the_bundle_says_it(
    bed: State, bundle: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "three.cutset"
    shutil.copytree(bundle, copy)
    (tmp_path / "cluster.toml").write_text(THREE_NODES)
    node = bed.layout.head
    command = [sys.executable, "-c", _TIMED, str(copy), str(tmp_path / "cluster.toml")]
    done = subprocess.run(
        command_on(bed, find_cgroups(), node, command, limited=False),
        env=environment_on(bed, node),
        capture_output=True,
        text=True,
        timeout=END_S,
    )
    assert done.returncode == 0, done.stderr
    expected = open_bundle(copy).manifest.plan.expected
    assert expected is not None
    assert expected.where == "nodes"
    assert len(expected.compute_s) == 3
    assert min(expected.compute_s) > 0
    assert expected.period_s >= max(expected.compute_s)
    assert_nothing_of_ours(bed)


def test_killed_workers_cut_links_frozen_and_dead_nodes_cost_no_row(
    bed: State, bundle: Path, rows: Path
) -> None:
    cgroups = find_cgroups()
    one, two = bed.layout.node("pi-1"), bed.layout.node("pi-2")

    caller = Caller(bed, "ray", bundle, rows, replan_after_s=2.0)
    result = caller.follow(
        {
            100: lambda: faults.kill_worker(bed, cgroups, one) and None,
            300: lambda: cut_for_3_seconds(bed, two),
            500: lambda: faults.freeze(bed, cgroups, two),
            800: lambda: faults.kill_raylet(bed, cgroups, one) and None,
        }
    )
    faults.thaw(bed, cgroups, two)
    assert result["answered"] == NUM_ROWS
    assert result["wrong"] == []
    # Nothing passes a frozen node; without its raylet one may compute until the stream is over.
    assert "pi-2" not in result["devices"]  # type: ignore[operator]
    assert min(result["restarts"][1:]) >= 1  # type: ignore[index]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("break_", "mend", "devices"),
    [
        pytest.param("kill-worker", None, ["server", "pi-1", "pi-2"], id="worker"),
        pytest.param("kill-raylet", "start", ["server", "pi-1", "pi-2"], id="raylet-comes-back"),
        pytest.param("kill-raylet", None, ["server", "pi-1", None], id="raylet-for-good"),
        pytest.param("cut", None, ["server", "pi-1", None], id="link-for-good"),
        pytest.param("freeze", None, ["server", "pi-1", None], id="node-frozen"),
        pytest.param("kill-node", None, ["server", "pi-1", None], id="node-without-power"),
    ],
)
def test_each_fault_alone(
    bed: State,
    bundle: Path,
    rows: Path,
    break_: str,
    mend: str | None,
    devices: list[str | None],
) -> None:
    cgroups = find_cgroups()
    two = bed.layout.node("pi-2")

    def disturb() -> None:
        if break_ == "cut":
            faults.cut(bed, two, None)
            return
        action = {
            "kill-worker": faults.kill_worker,
            "kill-raylet": faults.kill_raylet,
            "kill-node": faults.kill_node,
            "freeze": faults.freeze,
        }[break_]
        action(bed, cgroups, two)
        if mend:
            faults.start_node(bed, cgroups, two)

    try:
        caller = Caller(bed, "ray", bundle, rows, replan_after_s=30.0 if mend else 3.0)
        result = caller.follow({300: disturb})
    finally:
        if break_ == "freeze":
            faults.thaw(bed, cgroups, two)
        if break_ != "kill-worker":
            faults.start_node(bed, cgroups, two)
    assert result["answered"] == NUM_ROWS
    assert result["wrong"] == []
    assert result["epoch"] > 1  # type: ignore[operator]
    placed = result["devices"]
    assert isinstance(placed, list)
    if None in devices:
        assert "pi-2" not in placed
    else:
        assert placed == devices
