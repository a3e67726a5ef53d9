"""What plans say of wires that several share holds on wires that are built as they say.

Bounds are ratios of what the wire itself takes; a computer would have to be slower than 20 Mbit/s
to break them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from cutset.measure.find_wires import FoundWires, find_shared_wires, tried_pairs
from cutset.measure.flows import FlowProcesses
from cutset.planning.plan_messages import planned_messages, wire_loads
from talking import Talk
from testbed.build import down, up
from testbed.cgroups import find_cgroups
from testbed.errors import TestbedError
from testbed.layout import SharedWire
from testbed.nodes import command_on, environment_on
from testbed.state import State

from .on_nodes import end, start_on, start_receiver
from .test_layout import layout

SENDER = """
import socket, sys, time
address, size = sys.argv[1], int(sys.argv[2])
with socket.create_connection((address, 7000), timeout=30) as connection:
    connection.sendall(b".")
    connection.recv(1)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    connection.sendall(bytes(size - 1) + b".")
    connection.recv(1)
    print(began, time.monotonic(), flush=True)
"""
NAMES = ("a", "b", "c")
SIZES = (500_000, 300_000, 200_000)
NUM_TRIES = 3


def cluster_text(*, device: str = "", rest: str = "") -> str:
    devices = (f'[[device]]\nname = "{name}"\nspeed = 0.5\n{device}\n' for name in NAMES)
    return f'caller = "a"\n{"".join(devices)}{rest}'


def medium(*, relayed: bool) -> str:
    on = f"devices = {list(NAMES)}\nrelayed = {str(relayed).lower()}"
    return cluster_text(rest=f'[[medium]]\nname = "air"\nbandwidth = "20 Mbit/s"\n{on}\n')


CLUSTERS = {
    "medium": (medium(relayed=False), "medium air", 0.4),
    "relayed": (medium(relayed=True), "medium air", 0.8),
    "port": (cluster_text(device='port = "20 Mbit/s"'), "port out of a", 0.2),
    "half": (cluster_text(device='port = "20 Mbit/s"\nduplex = "half"'), "port of b", 0.32),
}


def seconds_of(state: State, messages: Sequence[tuple[str, str, int]]) -> float:
    """From the first byte of any message to the last of all, where they begin at once."""
    started: list[subprocess.Popen[str]] = []
    try:
        for source, target, size in messages:
            address = state.layout.node(target).address
            started.append(start_on(state, source, SENDER, address, str(size), stdin=True))
        for each in started:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in started:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        spans = [each.communicate(timeout=60)[0].split() for each in started]
    finally:
        for each in started:
            each.kill()
        end(started)
    return max(float(until) for _, until in spans) - min(float(since) for since, _ in spans)


@pytest.mark.parametrize("kind", CLUSTERS)
def test_all_messages_of_a_plan_take_as_long_as_its_busiest_wire_says(name: str, kind: str) -> None:
    text, busiest, expected_s = CLUSTERS[kind]
    cluster = cluster_from_toml(text)
    # Two stages on b and c: the caller's rows to b, from b to c, and the answers back.
    messages = planned_messages(cluster, ["b", "c"], SIZES)
    loads = {use.wire: use.busy_s for use in wire_loads(messages)}
    assert max(loads.values()) == pytest.approx(expected_s)
    assert loads[busiest] == pytest.approx(expected_s)
    state = up(cluster, name=name, ray=False)
    try:
        receivers = [start_receiver(state, node) for node in NAMES]
        sent = [(each.source, each.target, each.num_bytes) for each in messages]
        took_s = []
        for _ in range(NUM_TRIES):
            took_s.append(seconds_of(state, sent))
            assert took_s[-1] > 0.95 * expected_s
            if took_s[-1] < 1.15 * expected_s:
                break
        assert min(took_s) < 1.15 * expected_s
    finally:
        down(name)
    end(receivers)


def _talk(state: State, node: str, *arguments: str) -> Talk:
    """With a program on a node."""
    where = state.layout.node(node)
    command = [sys.executable, "-m", "cutset.measure.flows", "--listen-host", where.address]
    return Talk(
        command_on(state, find_cgroups(), where, [*command, *arguments]),
        environment_on(state, where),
    )


def found_on(state: State) -> FoundWires:
    """What a probe finds that the nodes share."""
    pairs = tried_pairs(NAMES)
    talks = {}
    for name in NAMES:
        sends, receives = (
            [str(k) for k, pair in enumerate(pairs) if pair[end_] == name] for end_ in (0, 1)
        )
        talks[name] = _talk(state, name, "--sends", *sends, "--receives", *receives)
    try:
        flows = FlowProcesses(pairs, talks, limit_s=60)
        found = find_shared_wires(NAMES, lambda chosen: flows.flood(chosen, 2.5e6))
        flows.end()
        assert [talk.process.wait(timeout=20) for talk in talks.values()] == [0, 0, 0]
    finally:
        for talk in talks.values():
            talk.process.kill()
            talk.process.communicate()
    return found


@pytest.mark.parametrize(
    "kind", ["relayed", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("port", "half"))]
)
def test_what_is_shared_is_found_by_sending_at_once(name: str, kind: str) -> None:
    cluster = cluster_from_toml(CLUSTERS[kind][0])
    state = up(cluster, name=name, ray=False)
    try:
        found = found_on(state)
    finally:
        down(name)
    if kind == "relayed":
        assert found.medium is not None
        assert found.medium.devices == NAMES
        assert found.medium.bandwidth_bytes_per_s == pytest.approx(1.25e6, rel=0.2)
        assert found.ports == {}
        return
    assert found.medium is None
    assert list(found.ports) == list(NAMES)
    for port in found.ports.values():
        assert port.half_duplex == (kind == "half")
        assert port.out_bytes_per_s == pytest.approx(2.5e6, rel=0.2)
        assert port.in_bytes_per_s == pytest.approx(2.5e6, rel=0.2)


def test_ports_and_media_become_buckets() -> None:
    both = '[[medium]]\nname = "air"\nbandwidth = "8 Mbit/s"\ndevices = ["a", "b"]\nrelayed = true'
    both += '\n[link]\nbandwidth = "160 Mbit/s"'
    made = layout(cluster_text(device='port = "80 Mbit/s"', rest=both))
    ports = [
        SharedWire(name=f"port {way} {node}", kind=kind, nodes=(node,), bytes_per_s=1e7)
        for node in NAMES
        for way, kind in (("out of", "out"), ("into", "in"))
    ]
    air = SharedWire(name="medium air", kind="medium", nodes=("a", "b"), bytes_per_s=5e5)
    assert made.shared == (*ports, air)
    assert made.rates == ()
    with pytest.raises(TestbedError, match=r"device a: .* it is on air with a port in half duplex"):
        layout(cluster_text(device='port = "80 Mbit/s"\nduplex = "half"', rest=both))
