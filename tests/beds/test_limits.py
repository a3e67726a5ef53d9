"""What a node can send, compute and hold. Bounds are those that only a missing limit breaks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from cutset.cluster.cluster_file import cluster_from_toml
from testbed.build import down, up
from testbed.state import State

from .clusters import THREE
from .on_nodes import end, run_on, send, start_receiver

SPIN = """
import time
started, used = time.perf_counter(), time.process_time()
while time.perf_counter() - started < 0.5:
    pass
print((time.process_time() - used) / (time.perf_counter() - started))
"""


@pytest.fixture
def testbed(name: str) -> Iterator[State]:
    yield up(cluster_from_toml(THREE), name=name, ray=False)
    down(name)


@pytest.fixture
def receivers(testbed: State) -> Iterator[list[subprocess.Popen[str]]]:
    started = [start_receiver(testbed, node) for node in ("server", "pi-1", "pi-2")]
    yield started
    for receiver in started:
        receiver.kill()
    end(started)


@pytest.mark.usefixtures("receivers")
def test_a_link_takes_the_time_that_its_bytes_need(testbed: State) -> None:
    for source, target, size, least_s in (
        ("pi-1", "pi-2", 500_000, 0.2),
        ("pi-2", "pi-1", 500_000, 0.2),
        ("pi-1", "pi-2", 10_000, 0.004),  # also a message of a few frames
        ("server", "pi-1", 1_250_000, 0.1),
    ):
        took_s = send(testbed, source, target, size)
        # The bucket lets the first frame through at once, or what passes in 1.5 ms.
        assert took_s is not None
        assert took_s > least_s * (1 - 3000 / size) - 1.5e-3
    # A busy machine can delay any message, but hardly each of ten as long as a bucket would.
    unlimited_s = [send(testbed, "server", "pi-2", 500_000) for _ in range(10)]
    assert min(each for each in unlimited_s if each is not None) < 0.2


def test_a_node_reaches_the_other_nodes_only(testbed: State) -> None:
    program = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=5)"
    done = run_on(testbed, "pi-1", program)
    assert "Network is unreachable" in done.stderr


def test_a_node_has_its_share_of_the_processor(testbed: State) -> None:
    assert float(run_on(testbed, "pi-1", SPIN).stdout) < 0.6


def test_a_node_knows_its_share(testbed: State) -> None:
    program = "from cutset import host; print(host.usable_cores(), host.memory_bytes() >> 20)"
    assert run_on(testbed, "pi-1", program).stdout.split() == ["0.5", "64"]


def test_a_node_has_its_memory(testbed: State) -> None:
    assert run_on(testbed, "pi-1", "print(len(bytearray(30 << 20)))").returncode == 0
    assert run_on(testbed, "pi-1", "print(len(b'x' * (200 << 20)))").returncode == -9
    assert run_on(testbed, "pi-2", "print(len(b'x' * (700 << 20)))").returncode == 0
