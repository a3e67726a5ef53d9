"""Keeps the memory of freed activations, instead of giving it back after every operation.

glibc's malloc maps large blocks one by one and unmaps them when they are freed, so in eager torch
every operation's output costs a page fault for each of its pages. Measured on the two-core virtual
machine where this was written (other work was running; the fastest of four interleaved runs): one
half of MobileNetV2 took 19.8 ms before and 10.9 ms after, one half of ResNet50 134 and 76 ms.

The price: a worker stays as large as its largest moment, and larger where a small block lies
between two large ones and keeps them from becoming one again. So small blocks are not set aside
(`malloc_environment`), and those that stay are made before any large one (`map_large_blocks`).
Measured on the first stages of an Inception v3, a ResNet18 and a ResNet50 with 8 rows, whose
activations need 84, 49 and 74 MiB: a worker had 178, 102 and 160 MiB of private memory more than an
idle process before, and 112, 76 and 98 MiB with this and `cutset.capture.reuse`.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

_LOG = logging.getLogger(__name__)

# From glibc's malloc.h; mallopt(3).
_M_MXFAST = 1
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD_BYTES = 32 * 2**20
_FIRST_MMAP_THRESHOLD_BYTES = 2**20
_KEPT_BYTES = 512 * 2**20
# Blocks that threads set aside; "Memory Allocation Tunables" in glibc's manual. mallopt cannot.
_TUNABLES = "GLIBC_TUNABLES"
_NO_THREAD_CACHES = "glibc.malloc.tcache_count=0"

# From Linux's mman-common.h; madvise(2). The first leaves the file's pages in the system's cache,
# so that the next process that reads them need not wait for the disk, but forgets what was written
# to a private mapping; the second keeps that and empties the cache too.
_MADV_DONTNEED = 4
_MADV_PAGEOUT = 21


def map_large_blocks() -> bool:
    """Tells this process's malloc to map every block of 1 MiB or more by itself.

    For loading a stage and computing its first micro-batch. What libraries then make for good
    (compiled kernels, say) lies close together, instead of between places of activations, which it
    would keep apart for ever.

    Returns:
        True where the system's malloc understands it (glibc), else False: nothing has changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mapped: bool = ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _FIRST_MMAP_THRESHOLD_BYTES) == 1
    return mapped


def keep_freed_memory() -> bool:
    """Tells this process's malloc to keep up to 512 MiB of freed memory for the next operation.

    Freed blocks become one with their neighbours at once, small ones too.

    For processes that compute stages; a process that measures what they cost should call it too.

    Returns:
        True where the system's malloc understands it (glibc), else False: nothing has changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept: bool = (
        mallopt(_M_MXFAST, 0) == 1
        and mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD_BYTES) == 1
        and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES) == 1
    )
    _LOG.debug("freed memory is %s", "kept" if kept else "given back as before")
    return kept


def malloc_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What to add to the environment of a process that computes stages, for its malloc.

    Args:
        environment: that it would have otherwise; settings of the user's own win.
    """
    given = environment.get(_TUNABLES)
    return {_TUNABLES: f"{_NO_THREAD_CACHES}:{given}" if given else _NO_THREAD_CACHES}


def give_back_memory() -> None:
    """Gives memory that is free now back to the system, where malloc can (glibc).

    For after loading: what reading and checking a stage's files needed is never needed again. Nor
    is most of the libraries' code that ran until then, see `give_back_code`.
    """
    if platform.libc_ver()[0] == "glibc":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        give_back_code()


def give_back_code() -> int:
    """Lets go of the pages of code that this process has in memory, where the system can (Linux).

    What runs again is mapped again, out of the system's cache where that still has it. Of a worker
    with a stage of a ResNet18 in ONNX Runtime that were 31 of 96 MB, and a third of it came back.

    Returns:
        How many bytes of it were in memory.
    """
    if sys.platform != "linux":
        return 0
    madvise = _madvise()
    start = stop = num_bytes = given_bytes = 0
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        # A mapping's first line as in `give_back_mapping`, then its numbers, see proc_pid_smaps(5).
        fields = line.split(maxsplit=5)
        if not fields[0].endswith(":"):
            is_code = fields[1] == "r-xp" and len(fields) == 6 and fields[5].startswith("/")
            start, stop = (
                (int(number, 16) for number in fields[0].split("-")) if is_code else (0, 0)
            )
        elif fields[0] == "Rss:":
            num_bytes = 1024 * int(fields[1])
        elif fields[0] == "Anonymous:" and stop and int(fields[1]) == 0:
            # None of it was written to, so all of it is in the file.
            given = madvise(start, stop - start, _MADV_DONTNEED) == 0
            given_bytes += num_bytes if given else 0
    _LOG.debug("%d bytes of code are given back", given_bytes)
    return given_bytes


def _madvise() -> Callable[[int, int, int], int]:
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise


def give_back_mapping(file: Path) -> bool:
    """Gives the memory back in which this process has `file` mapped, where the system can (Linux).

    For weights that a backend has packed into memory of its own but keeps mapped. Nothing is lost:
    what is touched again is read from the file again.

    Args:
        file: absolute path, without links.

    Returns:
        True where it is mapped and all of it was given back.
    """
    if sys.platform != "linux":
        return False
    madvise = _madvise()
    answers = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        # address, permissions, offset, device, inode and path, see proc_pid_maps(5)
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] == str(file):
            start, stop = (int(number, 16) for number in fields[0].split("-"))
            advice = _MADV_PAGEOUT if "w" in fields[1] else _MADV_DONTNEED
            answers.append(madvise(start, stop - start, advice))
    given = bool(answers) and not any(answers)
    _LOG.debug("%s is %s", file, "given back" if given else "kept, or was never mapped")
    return given
