"""A testbed for benchmarks: programs on its nodes, and its links as they were measured."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parent.parent))

from cutset.devices import Cluster
from cutset.runtime.linkprobe import LinkResult
from testbed.build import down, up
from testbed.cgroups import find_cgroups
from testbed.nodes import command_on, environment_on
from testbed.state import State

HOP_BYTES = 1_600_000
_NAME = "bench"
_LIMIT_S = 1800.0


@contextlib.contextmanager
def testbed(cluster: Cluster, *, ray: bool) -> Iterator[State]:
    """A testbed for the length of a block."""
    down(_NAME)
    try:
        yield up(cluster, name=_NAME, ray=ray, progress=say)
    finally:
        down(_NAME)


def say(text: str) -> None:
    """Tells whoever waits what is done now."""
    print(text, file=sys.stderr, flush=True)


def start_on(state: State, node: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Starts a Python program on a node, within its limits."""
    where = state.layout.node(node)
    return subprocess.Popen(
        command_on(state, find_cgroups(), where, [sys.executable, *arguments]),
        env=environment_on(state, where) | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,  # the store stays until it is closed
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
    """Both directions between two nodes; between two processes of one where they are the same."""
    nodes = state.layout.node(source), state.layout.node(target)
    addresses = (
        ("127.0.0.1", "127.0.0.1") if source == target else (nodes[0].address, nodes[1].address)
    )
    store = start_on(
        state,
        source,
        [
            "-c",
            (
                "import sys; from cutset.runtime.channel import serve_store;"
                "s = serve_store(sys.argv[1]); print(s.port, flush=True); sys.stdin.read()"
            ),
            addresses[0],
        ],
    )
    assert store.stdout is not None
    port = store.stdout.readline().strip()
    ends = []
    for node, address, more in (
        (source, addresses[0], ["--first"]),
        (target, addresses[1], []),
    ):
        place = ["--store-host", addresses[0], "--store-port", port, "--prefix", "p"]
        arguments = ["-m", "cutset.runtime.linkprobe", *place, "--listen-host", address, *more]
        ends.append(start_on(state, node, arguments))
    first, second = (msgspec.json.decode(finish(end), type=LinkResult) for end in ends)
    store.kill()
    store.communicate()
    return first, second


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


def write_measured_links(state: State, cluster: Cluster, file: Path) -> None:
    """Writes a cluster file with the devices of `cluster` and the links as they are measured."""
    names = [device.name for device in cluster.devices]
    parts = [
        f'[[device]]\nname = "{device.name}"\nspeed = {device.speed}\n'
        for device in cluster.devices
    ]
    for index, source in enumerate(names):
        for target in names[index + 1 :]:
            say(f"the link between {source} and {target}")
            there, back = measure_link(state, source, target)
            for a, b, link in ((source, target, there), (target, source, back)):
                bandwidth, latency = link.bandwidth_bytes_per_s, link.latency_s
                parts.append(
                    f'[[link.between]]\nfrom = "{a}"\nto = "{b}"\n'
                    f"bandwidth = {bandwidth}\nlatency = {latency}\n"
                )
    file.write_text(f'caller = "{cluster.caller}"\n' + "\n".join(parts))
