"""A testbed for benchmarks: programs on its nodes, and its links as they were measured."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent))

from cutset.cluster.devices import Cluster, LinkOverride
from cutset.cluster.file_writer import cluster_to_toml
from cutset.measure.link_speed import LinkResult, exchange, links_of
from cutset.measure.overhead import TYPICAL_ROW_BYTES, Overhead
from testbed.build import down, up
from testbed.cgroups import find_cgroups
from testbed.nodes import command_on, environment_on
from testbed.state import State

HOP_BYTES = 1_600_000

Start: TypeAlias = Callable[[Sequence[str]], "subprocess.Popen[str]"]

PROFILED_ON = {"server": "server", "pi-1": "pi-1", "pi-2": "pi-1"}
"""The node that was profiled for each; the two small ones are alike."""

_NAME = "bench"
_LIMIT_S = 1800.0
_LINK_LIMIT_S = 180.0


@contextlib.contextmanager
def testbed(
    cluster: Cluster,
    *,
    ray: bool,
    ssh: bool,
    name: str = _NAME,  # noqa: PT028  # this is no test
) -> Iterator[State]:
    """A testbed for the length of a block; one of that name that was left behind goes before."""
    down(name)
    try:
        yield up(cluster, name=name, ray=ray, ssh=ssh, progress=progress)
    finally:
        down(name)


def progress(text: str) -> None:
    """Tells whoever waits what is done now."""
    print(text, file=sys.stderr, flush=True)


def start_on(
    state: State, node: str, arguments: Sequence[str], **variables: str
) -> subprocess.Popen[str]:
    """Starts a Python program on a node, within its limits."""
    where = state.layout.node(node)
    return subprocess.Popen(
        command_on(state, find_cgroups(), where, [sys.executable, *arguments]),
        env=environment_on(state, where) | {"OMP_NUM_THREADS": "1"} | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed, once it is done."""
    out, _ = process.communicate(timeout=_LIMIT_S)
    if process.returncode != 0:
        raise SystemExit(f"{process.args} failed")
    return out


def measure_link(state: State, source: str, target: str) -> tuple[LinkResult, LinkResult]:
    """Both directions between two nodes."""
    return _measure_pair(
        functools.partial(start_on, state, source),
        functools.partial(start_on, state, target),
        (state.layout.node(source).address, state.layout.node(target).address),
    )


def measure_loopback() -> tuple[LinkResult, LinkResult]:
    """Both directions between two processes of this machine, outside of any testbed."""
    return _measure_pair(_start_here, _start_here, ("127.0.0.1", "127.0.0.1"))


def _start_here(arguments: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _measure_pair(
    start_source: Start, start_target: Start, addresses: tuple[str, str]
) -> tuple[LinkResult, LinkResult]:
    program = ["-m", "cutset.measure.link_speed", "--listen-host"]
    ends = [
        start_source([*program, addresses[0], "--first"]),
        start_target([*program, addresses[1]]),
    ]
    results = exchange(_Talk(ends[0]), _Talk(ends[1]), limit_s=_LINK_LIMIT_S)
    for end in ends:
        finish(end)
    return results


class _Talk:
    """With a process of this machine; see `cutset.measure.link_speed.Conversation`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def hear(self) -> list[str]:
        assert self._process.stdout is not None
        ready = select.select([self._process.stdout], [], [], 0.05)[0]
        # Lines are short, and written at once each.
        return os.read(ready[0].fileno(), 1 << 20).decode().splitlines() if ready else []

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def hop_s(link: LinkResult) -> float:
    """Seconds of a hop of 1.6 MB."""
    return link.latency_s + HOP_BYTES / link.bandwidth_bytes_per_s


def measure_on(
    state: State,
    node: str,
    bundles: Sequence[Path],
    *,
    cluster: Path,
    rows: Path,
    seconds: float,
) -> list[dict[str, Any]]:
    """Runs bundles one after the other through the Ray engine; see ``cluster_caller.py``.

    Args:
        state: of the testbed.
        node: where the caller runs.
        bundles: their folders.
        cluster: the cluster file.
        rows: rows, and what the whole model answers.
        seconds: for each measurement, at least.
    """
    script = Path(__file__).with_name("cluster_caller.py")
    paths = [str(path.resolve()) for path in (script, cluster, rows)]
    text = finish(
        start_on(state, node, [*paths, str(seconds), *(str(path.resolve()) for path in bundles)])
    )
    lines = [line for line in text.splitlines() if line.startswith("result ")]
    return [json.loads(line.removeprefix("result ")) for line in lines]


def time_on(state: State, node: str, bundle: Path, *, cluster: Path) -> None:
    """Has the nodes time their stages as wholes, as ``cutset split --address auto`` does."""
    program = (
        "import sys; from cutset.cluster.cluster_file import load_cluster;"
        "from cutset.engines.ray.engine import RayCluster;"
        "from cutset.workflow import time_on_cluster;"
        "time_on_cluster(sys.argv[1], RayCluster(cluster=load_cluster(sys.argv[2])))"
    )
    paths = [str(bundle.resolve()), str(cluster.resolve())]
    finish(start_on(state, node, ["-c", program, *paths]))


def profile_name(model: str, node: str) -> str:
    """Name of the file with what a model's pieces take on a node."""
    return f"{model}.{node}.json"


def with_profiles(cluster: Cluster, model: str) -> Cluster:
    """The cluster whose devices have the profiles of a model."""
    devices = tuple(
        msgspec.structs.replace(device, profile=profile_name(model, PROFILED_ON[device.name]))
        for device in cluster.devices
    )
    return msgspec.structs.replace(cluster, devices=devices)


def write_measured(state: State, cluster: Cluster, file: Path) -> None:
    """Writes a cluster file as `cutset probe` would, but for profiles."""
    overheads = {device.name: measure_overhead(state, device.name) for device in cluster.devices}
    overrides = []
    for source, target in itertools.combinations(overheads, 2):
        progress(f"the link between {source} and {target}")
        there, back = links_of(*measure_link(state, source, target))
        overrides += [
            LinkOverride(source=source, target=target, link=there),
            LinkOverride(source=target, target=source, link=back),
        ]
    measured = Cluster(
        devices=tuple(
            msgspec.structs.replace(device, overhead_s=overheads[device.name].stage_s)
            for device in cluster.devices
        ),
        overrides=tuple(overrides),
        caller=cluster.caller,
        caller_overhead_s=overheads[cluster.caller].caller_s if cluster.caller else 0.0,
    )
    file.write_text(cluster_to_toml(measured))


def measure_overhead(state: State, node: str) -> Overhead:
    """What messages take from computing on a node."""
    progress(f"what messages cost on {node}")
    arguments = ["-m", "cutset.measure.overhead", "--bytes", str(TYPICAL_ROW_BYTES)]
    return msgspec.json.decode(finish(start_on(state, node, arguments)), type=Overhead)
