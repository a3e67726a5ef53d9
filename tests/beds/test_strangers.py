"""A stranger inside the bed who knows every port, while rows stream over links with keys."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from beds.clusters import built_with_ssh
from beds.streams import NODES, NUM_ROWS, THREE_NODES, Caller, assert_nothing_of_ours
from testbed.cgroups import find_cgroups, members
from testbed.nodes import command_on, environment_on, group_of
from testbed.state import State, cluster_file

_GUEST = '[[device]]\nname = "guest"\n[link]\n'
_GROWTH_BYTES = 24 << 20
_MOST_ROUNDS = 500
_NUM_PORTS = "6"
"""Those of sshd, and three of links: the caller connects."""

_SSH = 22
_LISTENS = "0A"
"""How Linux's tables of sockets say it."""


@pytest.fixture(scope="module")
def bed(machine: None) -> Iterator[State]:
    with built_with_ssh(THREE_NODES.replace("[link]\n", _GUEST)) as state:
        yield state


def _listening(bed: State) -> set[tuple[str, int]]:
    """Every port at which anything on the three nodes listens now, sshd and the caller included."""
    found = set()
    for name in NODES:
        node = bed.layout.node(name)
        for pid in members(find_cgroups(), group_of(bed.layout, node)):
            with contextlib.suppress(OSError):  # it has ended
                table = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
                sockets = [line.split() for line in table]
                found |= {
                    (node.address, int(each[1].partition(":")[2], 16))
                    for each in sockets
                    if each[3] == _LISTENS
                }
                break  # it is the node's table
    return found


class _Stranger:
    """The program on the guest's node, and a thread that tells it of every port that opens."""

    def __init__(self, bed: State, num_connections: int, caller: Caller) -> None:
        node = bed.layout.node("guest")
        script = str(Path(__file__).parent / "stranger.py")
        self._process = subprocess.Popen(
            command_on(
                bed,
                find_cgroups(),
                node,
                [sys.executable, script, str(num_connections), _NUM_PORTS],
            ),
            env=environment_on(bed, node),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._bed, self._caller = bed, caller
        self.over = threading.Event()
        self.known: set[tuple[str, int]] = set()
        self.counts: dict[str, int] = {}
        self._threads = [threading.Thread(target=each) for each in (self._tell, self._hear)]
        for thread in self._threads:
            thread.start()

    def _tell(self) -> None:
        assert self._process.stdin is not None
        while not self.over.wait(0.1):
            new = _listening(self._bed) - self.known
            if not self._caller.pids:  # who knocks at sshd without end keeps others out: its limit
                new = {each for each in new if each[1] != _SSH}
            self.known |= new
            try:
                self._process.stdin.write("".join(f"{host} {port}\n" for host, port in new))
                self._process.stdin.flush()
            except BrokenPipeError:  # it is done
                return

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("done"):
                self.counts = json.loads(line.partition(" ")[2])
        self.over.set()

    def end(self) -> None:
        self.over.set()
        self._process.kill()
        for thread in self._threads:
            thread.join(20)
        self._process.wait(20)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("num_connections", [10_000])
def test_a_stranger_costs_no_row_no_worker_and_no_memory(
    bed: State, bundle: Path, rows: Path, num_connections: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knocks from before the links are made until it has knocked so often, and rows go on."""
    caller = Caller(bed, str(cluster_file(bed.layout.name)), bundle, rows, rounds=_MOST_ROUNDS)
    stranger = _Stranger(bed, num_connections, caller)
    held: dict[int, list[int]] = {}
    times_s: list[tuple[float, bool]] = []

    def note() -> None:
        times_s.append((time.monotonic(), stranger.over.is_set()))
        for pid in [caller.process.pid, *caller.pids]:
            held.setdefault(pid, []).append(psutil.Process(pid).memory_info().rss)
        if stranger.over.is_set() and sum(over for _, over in times_s) > 10:
            caller.finish()

    try:
        result = caller.follow(dict.fromkeys(range(0, _MOST_ROUNDS * NUM_ROWS, 100), note))
    finally:
        stranger.end()
    assert result.get("error") is None
    assert stranger.counts["connections"] >= num_connections
    assert stranger.counts["taken"] > 0
    assert result["answered"] == result["asked"]
    assert result["wrong"] == []
    assert (result["epoch"], result["restarts"]) == (1, [0, 0, 0])
    growth = [max(each[len(each) // 4 :]) - each[len(each) // 4] for each in held.values()]
    assert max(growth) < _GROWTH_BYTES
    assert_nothing_of_ours(bed)
    with capsys.disabled():
        with_s, after_s = (_seconds_of_100(times_s, over=over) for over in (False, True))
        print(
            f"\n{json.dumps(stranger.counts)}: {result['answered']} rows, each right; no worker"
            f" restarted; 100 rows took {with_s:.2f} s meanwhile and {after_s:.2f} s after"
            f" (medians); memory grew by {max(growth) / 1e6:.1f} MB at most",
            flush=True,
        )


def _seconds_of_100(times_s: list[tuple[float, bool]], *, over: bool) -> float:
    """The median time of a hundred rows, while the stranger knocked or after it."""
    spans = [
        until - since
        for (since, was), (until, is_) in itertools.pairwise(times_s)
        if was is over and is_ is over
    ]
    return sorted(spans)[len(spans) // 2] if spans else float("nan")
