"""What happens to workers, hosts, links and the caller of the engine `ssh`, and costs no row."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from beds.clusters import built_with_ssh
from beds.streams import (
    NODES,
    NUM_ROWS,
    THREE_NODES,
    Caller,
    assert_nothing_of_ours,
    cut_for_3_seconds,
    signal_workers,
)
from testbed import faults
from testbed.cgroups import find_cgroups, members
from testbed.nodes import group_of
from testbed.state import State, cluster_file

_GONE_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def bed(machine: None) -> Iterator[State]:
    with built_with_ssh(THREE_NODES) as state:
        yield state


def _streamed(
    bed: State,
    bundle: Path,
    rows: Path,
    disturb: dict[int, Callable[[], object]],
    replan_after_s: float,
) -> dict[str, object]:
    """What became of a stream in which every row was answered once, in order, right."""
    where = str(cluster_file(bed.layout.name))
    result = Caller(bed, where, bundle, rows, replan_after_s).follow(disturb)
    assert (result.get("error"), result["answered"], result["wrong"]) == (None, NUM_ROWS, [])
    return result


def test_a_worker_killed_one_frozen_a_link_cut_and_a_host_that_comes_back_cost_no_row(
    bed: State, bundle: Path, rows: Path
) -> None:
    cgroups = find_cgroups()
    one, two = bed.layout.node("pi-1"), bed.layout.node("pi-2")

    def lose_and_bring_back() -> None:
        faults.kill_node(bed, cgroups, one)
        faults.start_node(bed, cgroups, one)

    disturb: dict[int, Callable[[], object]] = {
        100: lambda: faults.kill_worker(bed, cgroups, one),
        300: lambda: cut_for_3_seconds(bed, two),
        500: lambda: signal_workers(bed, "pi-2", signal.SIGSTOP),
        700: lose_and_bring_back,
    }
    result = _streamed(bed, bundle, rows, disturb, 60.0)
    assert result["devices"] == list(NODES)
    assert min(result["restarts"][1:]) >= 1  # type: ignore[call-overload]
    assert_nothing_of_ours(bed)


@pytest.mark.soak
@pytest.mark.parametrize("is_cut_off", [True, False])
def test_a_wire_cut_for_good_and_then_a_host_that_stays_away_are_done_without(
    bed: State, bundle: Path, rows: Path, is_cut_off: bool
) -> None:
    cgroups = find_cgroups()
    one, two = bed.layout.node("pi-1"), bed.layout.node("pi-2")

    def lose() -> None:
        if is_cut_off:
            faults.cut(bed, two, None)
        else:
            faults.kill_node(bed, cgroups, two)

    disturb: dict[int, Callable[[], object]] = {300: lambda: faults.cut(bed, one, two), 600: lose}
    try:
        result = _streamed(bed, bundle, rows, disturb, 2.0)
    finally:
        faults.mend(bed, one, two)
        faults.start_node(bed, cgroups, two)
    assert result["epoch"] >= 3  # type: ignore[operator]
    assert set(result["devices"]) == {"server", "pi-1"}  # type: ignore[call-overload]


@pytest.mark.soak
def test_devices_between_which_nothing_passes_are_neighbours_no_longer(
    bed: State, bundle: Path, rows: Path
) -> None:
    one, two = bed.layout.node("pi-1"), bed.layout.node("pi-2")
    try:
        result = _streamed(bed, bundle, rows, {300: lambda: faults.cut(bed, one, two)}, 1.0)
    finally:
        faults.mend(bed, one, two)
    placed = " ".join(result["devices"])  # type: ignore[arg-type]
    assert "pi-1 pi-2" not in placed
    assert "pi-2 pi-1" not in placed
    assert_nothing_of_ours(bed)


@pytest.mark.parametrize(
    "is_frozen",
    [
        pytest.param(False, id="running"),
        pytest.param(True, id="one-frozen", marks=pytest.mark.soak),
    ],
)
def test_a_caller_that_is_killed_leaves_no_process(
    bed: State, bundle: Path, rows: Path, is_frozen: bool
) -> None:
    caller = Caller(bed, str(cluster_file(bed.layout.name)), bundle, rows)
    caller.wait_until_up()
    left = [psutil.Process(pid) for pid in caller.pids] + _logins(bed)
    if is_frozen:
        signal_workers(bed, "pi-1", signal.SIGSTOP)
    caller.process.send_signal(signal.SIGKILL)
    caller.process.communicate(timeout=10)
    _, alive = psutil.wait_procs(left, timeout=_GONE_WITHIN_S)
    assert alive == []
    assert _logins(bed) == []


def _logins(bed: State) -> list[psutil.Process]:
    """What there is on the nodes besides the ssh servers that wait."""
    found = []
    for node in bed.layout.nodes:
        for pid in members(find_cgroups(), group_of(bed.layout, node)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if "[listener]" not in " ".join(process.cmdline()):
                    found.append(process)
    return found


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("run", range(1, 21))
def test_all_of_it_twenty_times_in_a_row(
    bed: State, bundle: Path, rows: Path, run: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Says a line a run, also to who has not asked for output."""
    began_s = time.monotonic()
    test_a_worker_killed_one_frozen_a_link_cut_and_a_host_that_comes_back_cost_no_row(
        bed, bundle, rows
    )
    back_s = time.monotonic() - began_s
    test_a_wire_cut_for_good_and_then_a_host_that_stays_away_are_done_without(
        bed, bundle, rows, is_cut_off=run % 2 == 0
    )
    away_s = time.monotonic() - began_s - back_s
    for is_frozen in (False, True):
        test_a_caller_that_is_killed_leaves_no_process(bed, bundle, rows, is_frozen)
    away = "host cut off for good" if run % 2 == 0 else "host without power for good"
    answered = f"{NUM_ROWS} of {NUM_ROWS} rows right in"
    with capsys.disabled():
        print(
            f"\nrun {run}: worker killed, link cut for 3 s, worker frozen, host lost and back:"
            f" {answered} {back_s:.0f} s; wire cut for good, {away}: {answered} {away_s:.0f} s;"
            f" caller killed, twice: no process after {_GONE_WITHIN_S:g} s",
            flush=True,
        )
