"""Prints the resident bytes of a worker that holds no stage; `idle_memory` starts it."""

from __future__ import annotations

import sys

import psutil

import cutset.runtime.worker  # noqa: F401  # what a worker imports is what is measured
from cutset.backends.allocator import keep_freed_memory
from cutset.backends.selection import get_backend


def main() -> None:
    """Measures with the backend that the command line names."""
    keep_freed_memory()
    get_backend(sys.argv[1]).start()
    print(psutil.Process().memory_info().rss)  # noqa: T201  # read by the parent
