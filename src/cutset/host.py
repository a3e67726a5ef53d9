"""The one reader of this machine: how many cores and how much memory this process may use.

A process may be kept to some cores (affinity), to a share of processor time, and to a share of
memory (control groups, both versions; a container's limits are these). Each of the groups that it
is in counts, outer ones too. See the manual pages cgroups(7) and proc_pid_mountinfo(5).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

_ROOT = Path("/")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def num_cores() -> int:
    """Cores of the machine, at least 1, whether or not this process may use them."""
    return psutil.cpu_count() or 1


def core_numbers() -> tuple[int, ...]:
    """The numbers of the cores that this process may run on; none where the system cannot tell."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    return tuple(sorted(os.sched_getaffinity(0)))


def usable_cores(root: Path = _ROOT) -> float:
    """Cores' worth of time that this process may use, above 0; 0.5 is half of a core's time.

    Args:
        root: where ``proc/self`` and what it names are looked for.
    """
    return min(len(core_numbers()) or num_cores(), quota_cores(root))


def quota_cores(root: Path = _ROOT) -> float:
    """The same as control groups alone limit it: infinity where none does.

    Args:
        root: as for `usable_cores`.
    """
    least = math.inf
    for group, is_second in _groups("cpu", root):
        if is_second:
            quota, _, period = _text(group / "cpu.max").partition(" ")
        else:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
            least = min(least, int(quota) / int(period))  # no limit is "max", or -1
    return least


def num_usable_cores() -> int:
    """How many threads may compute at full speed at once, at least 1."""
    return max(1, int(usable_cores()))


def memory_bytes(root: Path = _ROOT) -> int:
    """Memory that this process may ever use: the machine's, or less where a group limits it.

    Args:
        root: as for `usable_cores`.
    """
    limits = [limit for limit, _ in _memory_limits(root)]
    return min(psutil.virtual_memory().total, *limits) if limits else psutil.virtual_memory().total


def free_memory_bytes(root: Path = _ROOT) -> int:
    """Memory that this process may still take, at least 0.

    What a group uses counts without the files that the system keeps in memory for it and would
    drop (``inactive_file``), as those of the machine do.

    Args:
        root: as for `usable_cores`.
    """
    free = psutil.virtual_memory().available
    for limit, used in _memory_limits(root):
        free = min(free, max(0, limit - used))
    return free


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of the groups that this process is in."""
    for group, is_second in _groups("memory", root):
        if is_second:
            names, droppable = ("memory.max", "memory.current"), "inactive_file"
        else:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            droppable = "total_inactive_file"
        limit, used = (_text(group / name) for name in names)
        if limit.isdecimal() and used.isdecimal():  # "max": no limit
            statistics = dict(
                line.split(" ", 1)
                for line in _text(group / "memory.stat").splitlines()
                if " " in line
            )
            dropped = statistics.get(droppable, "")
            yield int(limit), max(0, int(used) - (int(dropped) if dropped.isdecimal() else 0))


def _groups(controller: str, root: Path) -> Iterator[tuple[Path, bool]]:
    """Folders of the control groups that limit this process, inner ones first.

    Args:
        controller: ``"cpu"`` or ``"memory"``.
        root: as for `usable_cores`.

    Yields:
        The folder, and whether it is of version 2.
    """
    paths = {}  # by the controllers of a hierarchy, "" for that of version 2
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), path))
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        (kind, _, options), fields = after.split(" ", 2), before.split(" ")
        is_second = kind == "cgroup2"
        name = "" if is_second else controller
        if name not in paths or not (
            is_second or (kind == "cgroup" and controller in options.split(","))
        ):
            continue
        # In a container the mount may begin inside of the hierarchy, at the container's own group.
        begin, mounted = (_ESCAPE.sub(lambda m: chr(int(m[1], 8)), each) for each in fields[3:5])
        top = root / mounted.lstrip("/")
        whole = PurePosixPath(paths[name])
        inside = whole.relative_to(begin) if whole.is_relative_to(begin) else PurePosixPath()
        for depth in range(len(inside.parts), -1, -1):
            yield top.joinpath(*inside.parts[:depth]), is_second


def _text(path: Path) -> str:
    """A small file's text without the space around it; ``""`` where it cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip()
    return ""


def limit_memory(num_bytes: int) -> None:
    """Lets this process take `num_bytes` more of memory for data than it has now, and no core dump.

    On Linux, where the limit counts every private mapping that can be written to: the heap, large
    allocations and the stacks of threads, but not what libraries and files take (``RLIMIT_DATA`` in
    ``getrlimit(2)``). An allocation beyond it fails. Elsewhere nothing is limited: whoever
    started this process has to watch it.
    """
    if sys.platform != "linux":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _data_bytes() + num_bytes
    limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def data_memory() -> tuple[int, int] | None:
    """What this process holds in memory for data and the most it may, in bytes.

    Counted as by `limit_memory`; None where nothing is limited.
    """
    if sys.platform != "linux":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if limit == resource.RLIM_INFINITY else (_data_bytes(), limit)


def _data_bytes() -> int:
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    return pages * resource.getpagesize()
