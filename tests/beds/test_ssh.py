"""The engine `ssh` on a testbed: three nodes with nothing but an sshd, real faults."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from beds.streams import (
    END_S,
    NODES,
    NUM_ROWS,
    THREE_NODES,
    Caller,
    assert_nothing_of_ours,
    objects_of,
)
from cutset.bundles.open import open_bundle
from cutset.cluster.cluster_file import cluster_from_toml
from testbed import faults
from testbed.build import down, require_machine, up
from testbed.cgroups import find_cgroups, kill_member, members
from testbed.errors import TestbedError
from testbed.nodes import command_on, environment_on, group_of, processes_on
from testbed.state import State, cluster_file, node_folder


@pytest.fixture(scope="module")
def bed(machine: None) -> Iterator[State]:
    """Three nodes, two of them with half a core; skipped where there is no sshd."""
    name = f"ssh{os.getpid() % 10**7}"
    try:
        require_machine(ray=False, ssh=True)
    except TestbedError as error:
        pytest.skip(str(error))
    try:
        yield up(cluster_from_toml(THREE_NODES), name=name, ray=False, ssh=True)
    finally:
        down(name)


def _caller(bed: State, bundle: Path, rows: Path, replan_after_s: float = 10.0) -> Caller:
    where = str(cluster_file(bed.layout.name))
    return Caller(bed, where, bundle, rows, replan_after_s)


def _on_server(
    bed: State, *words: str, check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Types a command on the first node, without its limits."""
    node = bed.layout.head
    done = subprocess.run(
        command_on(bed, find_cgroups(), node, list(words), limited=False),
        env=environment_on(bed, node) | variables,
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def _signal_workers(bed: State, name: str, number: signal.Signals) -> None:
    node, cgroups = bed.layout.node(name), find_cgroups()
    lines = processes_on(bed, cgroups, node)
    pids = [pid for pid, line in lines.items() if "cutset.runtime.worker" in line]
    assert pids
    for pid in pids:
        assert kill_member(cgroups, group_of(bed.layout, node), pid, number)


def test_every_row_through_three_nodes_and_each_node_gets_its_own_shard_once(
    bed: State, bundle: Path, rows: Path
) -> None:
    result = _caller(bed, bundle, rows).follow({})
    assert result == {
        "answered": NUM_ROWS,
        "wrong": [],
        "epoch": 1,
        "devices": list(NODES),
        "restarts": [0, 0, 0],
    }
    files = open_bundle(bundle).manifest.files
    folders = {}
    for stage, name in enumerate(NODES):
        own = {entry.sha256 for entry in files if entry.path.startswith(f"stage-{stage}/")}
        kept = objects_of(bed, name)
        assert own < kept
        assert len(kept) == len(own) + 1  # and the manifest
        folder = node_folder(bed.layout, bed.layout.node(name)) / "cache" / "cutset" / "objects"
        folders[folder] = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert_nothing_of_ours(bed)
    # Nothing is sent a second time: the files are the very same.
    _on_server(bed, "cutset", "run", str(bundle), str(_some_rows(bundle)), *_cluster(bed))
    for folder, inodes in folders.items():
        assert {path.name: path.stat().st_ino for path in folder.iterdir()} == inodes
    assert_nothing_of_ours(bed)


def _cluster(bed: State) -> tuple[str, str]:
    return "--cluster", str(cluster_file(bed.layout.name))


def _some_rows(bundle: Path) -> Path:
    import numpy as np

    file = bundle.parent / "some.npy"
    np.save(file, np.zeros((3, 3, 16, 16), np.float32))
    return file


def test_a_worker_killed_one_frozen_a_link_cut_and_a_host_that_comes_back_cost_no_row(
    bed: State, bundle: Path, rows: Path
) -> None:
    cgroups = find_cgroups()
    one, two = bed.layout.node("pi-1"), bed.layout.node("pi-2")

    def cut_for_3_seconds() -> None:
        faults.cut(bed, two, None)
        threading.Event().wait(3.0)  # the length is the fault
        faults.mend(bed, two, None)

    def lose_and_bring_back() -> None:
        faults.kill_node(bed, cgroups, one)
        faults.start_node(bed, cgroups, one)

    result = _caller(bed, bundle, rows, replan_after_s=60.0).follow(
        {
            100: lambda: faults.kill_worker(bed, cgroups, one) and None,
            300: cut_for_3_seconds,
            500: lambda: _signal_workers(bed, "pi-2", signal.SIGSTOP),
            700: lose_and_bring_back,
        }
    )
    assert result["answered"] == NUM_ROWS
    assert result["wrong"] == []
    assert result["devices"] == list(NODES)
    assert min(result["restarts"][1:]) >= 1  # type: ignore[index]
    assert_nothing_of_ours(bed)


def test_a_host_that_stays_away_is_given_up_and_gets_its_stage_back_when_it_returns(
    bed: State, bundle: Path, rows: Path
) -> None:
    cgroups = find_cgroups()
    two = bed.layout.node("pi-2")
    caller = _caller(bed, bundle, rows, replan_after_s=2.0)
    try:
        result = caller.follow({300: lambda: faults.kill_node(bed, cgroups, two)})
    finally:
        faults.start_node(bed, cgroups, two)
    assert result["answered"] == NUM_ROWS
    assert result["wrong"] == []
    assert "pi-2" not in result["devices"]  # type: ignore[operator]


@pytest.mark.parametrize("is_frozen", [False, True], ids=["running", "one-frozen"])
def test_a_caller_that_is_killed_leaves_no_process(
    bed: State, bundle: Path, rows: Path, is_frozen: bool
) -> None:
    caller = _caller(bed, bundle, rows)
    caller.wait_until_up()
    workers = [psutil.Process(pid) for pid in caller.pids]
    if is_frozen:
        _signal_workers(bed, "pi-1", signal.SIGSTOP)
    caller.process.send_signal(signal.SIGKILL)
    caller.process.communicate(timeout=10)
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
    _, alive = psutil.wait_procs(_logins(bed), timeout=5)
    assert alive == []


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
