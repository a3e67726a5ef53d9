"""Control groups: a share of the processor, a limit of memory, freezing, and who belongs to a node.

A testbed has one group, ``cutset-NAME-``, and in it one group a node plus one, ``free``, without
limits. Both versions of the interface are known: version 1, where every controller has a tree of
its own, and version 2, which has one tree. Everything that the testbed starts joins its group
before it becomes what it is to be, so the groups list every process that must end with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Protocol

from testbed.errors import TestbedError

PERIOD_US = 4000
"""A share is given in periods this long; a longer one would stop a stage for longer than many
micro-batches take. The kernel counts in ticks of 4 ms (at 250 Hz), so shorter ones gain nothing."""

_LEAST_QUOTA_US = 1000
_WAIT_S = 10.0
_PAUSE_S = 0.01
_NO_LIMIT = -1


class Cgroups(Protocol):
    """One version of the interface."""

    version: int

    def make(self, group: str) -> None:
        """Makes `group`, ``parent/child``, in every tree."""

    def member_files(self, group: str) -> list[Path]:
        """Files to which a process writes its id to join `group`."""

    def limit_processor(self, group: str, cores: float) -> None:
        """Gives `group` so many cores, with fractions."""

    def limit_memory(self, group: str, num_bytes: int) -> None:
        """Lets the processes of `group` use so much memory together."""

    def freeze(self, group: str, frozen: bool) -> None:
        """Stops or continues every process of `group`, without waiting."""

    def is_frozen(self, group: str) -> bool:
        """Whether all processes of `group` stand still."""

    def memory_use_bytes(self, group: str) -> int:
        """Memory that `group` uses now."""

    def folders(self, group: str) -> list[Path]:
        """The folders of `group`, one a tree."""


def quota_and_period_us(cores: float) -> tuple[int, int]:
    """Microseconds of computing, and the period they are for."""
    period = max(PERIOD_US, round(_LEAST_QUOTA_US / cores))
    return max(_LEAST_QUOTA_US, round(cores * period)), period


class CgroupsV1:
    """Version 1: trees for processor, memory and freezing; see `Cgroups`."""

    version = 1
    controllers = ("cpu", "memory", "freezer")

    def __init__(self, trees: dict[str, Path]) -> None:
        self._trees = trees

    def folders(self, group: str) -> list[Path]:
        """The folders of `group`, one a tree."""
        return list(dict.fromkeys(tree / group for tree in self._trees.values()))

    def make(self, group: str) -> None:
        """Makes the folders."""
        for folder in self.folders(group):
            folder.mkdir(parents=True, exist_ok=True)

    def member_files(self, group: str) -> list[Path]:
        """One file a tree."""
        return [folder / "cgroup.procs" for folder in self.folders(group)]

    def limit_processor(self, group: str, cores: float) -> None:
        """Writes quota and period."""
        quota, period = quota_and_period_us(cores)
        folder = self._trees["cpu"] / group
        _write(folder / "cpu.cfs_quota_us", str(_NO_LIMIT))  # so that any period is allowed
        _write(folder / "cpu.cfs_period_us", str(period))
        _write(folder / "cpu.cfs_quota_us", str(quota))

    def limit_memory(self, group: str, num_bytes: int) -> None:
        """Writes the limit, for memory with swap too where the kernel counts that."""
        folder = self._trees["memory"] / group
        _write(folder / "memory.limit_in_bytes", str(num_bytes))
        with_swap = folder / "memory.memsw.limit_in_bytes"
        if with_swap.exists():
            _write(with_swap, str(num_bytes))

    def freeze(self, group: str, frozen: bool) -> None:
        """Writes the state that is wanted."""
        state = self._trees["freezer"] / group / "freezer.state"
        _write(state, "FROZEN" if frozen else "THAWED")

    def is_frozen(self, group: str) -> bool:
        """Reads the state; one that is still freezing is not frozen."""
        return _read(self._trees["freezer"] / group / "freezer.state") == "FROZEN"

    def memory_use_bytes(self, group: str) -> int:
        """Reads the counter."""
        return int(_read(self._trees["memory"] / group / "memory.usage_in_bytes"))


class CgroupsV2:
    """Version 2: one tree; see `Cgroups`."""

    version = 2
    controllers = ("cpu", "memory")

    def __init__(self, tree: Path) -> None:
        self._tree = tree

    def folders(self, group: str) -> list[Path]:
        """The one folder."""
        return [self._tree / group]

    def make(self, group: str) -> None:
        """Makes the folder; each folder on the way hands its controllers down."""
        folder = self._tree
        for part in Path(group).parts:
            _write(folder / "cgroup.subtree_control", " ".join(f"+{c}" for c in self.controllers))
            folder /= part
            folder.mkdir(exist_ok=True)

    def member_files(self, group: str) -> list[Path]:
        """The one file."""
        return [self._tree / group / "cgroup.procs"]

    def limit_processor(self, group: str, cores: float) -> None:
        """Writes quota and period."""
        quota, period = quota_and_period_us(cores)
        _write(self._tree / group / "cpu.max", f"{quota} {period}")

    def limit_memory(self, group: str, num_bytes: int) -> None:
        """Writes the limit; none of it may go to swap."""
        _write(self._tree / group / "memory.max", str(num_bytes))
        swap = self._tree / group / "memory.swap.max"
        if swap.exists():
            _write(swap, "0")

    def freeze(self, group: str, frozen: bool) -> None:
        """Writes the state that is wanted."""
        _write(self._tree / group / "cgroup.freeze", "1" if frozen else "0")

    def is_frozen(self, group: str) -> bool:
        """Reads the state that was reached."""
        return "frozen 1" in _read(self._tree / group / "cgroup.events").splitlines()

    def memory_use_bytes(self, group: str) -> int:
        """Reads the counter."""
        return int(_read(self._tree / group / "memory.current"))


def find_cgroups(mounts: Path = Path("/proc/self/mounts")) -> Cgroups:
    """The interface that this machine has.

    Raises:
        TestbedError: none of the two has the controllers that are needed.
    """
    unified: Path | None = None
    trees: dict[str, Path] = {}
    for line in mounts.read_text(encoding="utf-8").splitlines():
        _, place, kind, options, *_ = line.split(" ")
        if kind == "cgroup2":
            unified = Path(place)
        elif kind == "cgroup":
            for controller in set(options.split(",")) & set(CgroupsV1.controllers):
                trees.setdefault(controller, Path(place))
    if set(trees) == set(CgroupsV1.controllers):
        return CgroupsV1(trees)
    if unified is not None:
        present = _read(unified / "cgroup.controllers").split()
        if set(CgroupsV2.controllers) <= set(present):
            return CgroupsV2(unified)
    raise TestbedError(
        "the control groups of this machine cannot limit processor and memory: neither version 1"
        f" with {', '.join(CgroupsV1.controllers)} nor version 2 with"
        f" {', '.join(CgroupsV2.controllers)} is mounted"
    )


def members(cgroups: Cgroups, group: str) -> set[int]:
    """Ids of the processes in `group`, in whichever tree."""
    found: set[int] = set()
    for file in cgroups.member_files(group):
        with contextlib.suppress(FileNotFoundError):
            found.update(int(line) for line in file.read_text(encoding="ascii").split())
    return found


def set_frozen(cgroups: Cgroups, group: str, frozen: bool) -> None:
    """Freezes or thaws `group` and waits until it is.

    Raises:
        TestbedError: a process cannot be stopped within 10 seconds.
    """
    cgroups.freeze(group, frozen)
    give_up_s = time.monotonic() + _WAIT_S
    while cgroups.is_frozen(group) != frozen:
        if time.monotonic() > give_up_s:
            raise TestbedError(f"group {group} did not freeze or thaw within {_WAIT_S:g} s")
        time.sleep(_PAUSE_S)


def end_processes(cgroups: Cgroups, group: str) -> None:
    """Kills every process of `group`, also frozen ones and those born meanwhile.

    Raises:
        TestbedError: one is still there after 10 seconds.
    """
    if not any(folder.exists() for folder in cgroups.folders(group)):
        return
    give_up_s = time.monotonic() + _WAIT_S
    while pids := members(cgroups, group):
        if time.monotonic() > give_up_s:
            raise TestbedError(f"processes {sorted(pids)} of group {group} do not end")
        for pid in pids:
            kill_member(cgroups, group, pid, signal.SIGKILL)
        cgroups.freeze(group, False)
        time.sleep(_PAUSE_S)


def kill_member(cgroups: Cgroups, group: str, pid: int, number: signal.Signals) -> bool:
    """Sends a signal to process `pid`, if it (and not a later one of that id) is in `group`."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The handle cannot pass to another process; the id could, before it was opened.
        if pid not in members(cgroups, group):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    else:
        return True
    finally:
        os.close(handle)


def remove_group(cgroups: Cgroups, group: str) -> None:
    """Removes `group` and the groups in it, which must have no process any more.

    Raises:
        TestbedError: the system does not let it go within 10 seconds.
    """
    give_up_s = time.monotonic() + _WAIT_S
    for root in cgroups.folders(group):
        if not root.exists():
            continue
        inner = [path for path in root.iterdir() if path.is_dir()]
        for folder in (*inner, root):
            while True:
                try:
                    folder.rmdir()
                    break
                except OSError as error:  # a dying process may still be counted for a moment
                    if time.monotonic() > give_up_s:
                        raise TestbedError(f"{folder} cannot be removed: {error}") from error
                    time.sleep(_PAUSE_S)


def _write(path: Path, value: str) -> None:
    try:
        path.write_text(value, encoding="ascii")
    except OSError as error:
        raise TestbedError(f"{path} does not take {value!r}: {error}") from error


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
