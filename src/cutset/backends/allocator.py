"""Keeps the memory of freed activations, instead of giving it back after every operation.

glibc's malloc maps large blocks one by one and unmaps them when they are freed, so in eager torch
every operation's output costs a page fault for each of its pages. Measured on the two-core virtual
machine where this was written (other work was running; the fastest of four interleaved runs): one
half of MobileNetV2 took 19.8 ms before and 10.9 ms after, one half of ResNet50 134 and 76 ms.
The price: a worker stays as large as its largest moment.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import platform

_LOG = logging.getLogger(__name__)

# From glibc's malloc.h; mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD_BYTES = 32 * 2**20
_KEPT_BYTES = 512 * 2**20


def keep_freed_memory() -> bool:
    """Tells this process's malloc to keep up to 512 MiB of freed memory for the next operation.

    For processes that compute stages; a process that measures what they cost should call it too.

    Returns:
        True where the system's malloc understands it (glibc), else False: nothing has changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept: bool = (
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD_BYTES) == 1
        and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES) == 1
    )
    _LOG.debug("freed memory is %s", "kept" if kept else "given back as before")
    return kept


def give_back_memory() -> None:
    """Gives memory that is free now back to the system, where malloc can (glibc).

    For after loading: what reading and checking a stage's files needed is never needed again.
    """
    if platform.libc_ver()[0] == "glibc":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
