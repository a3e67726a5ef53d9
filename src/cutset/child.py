"""What a process of Cutset does that another one started: end with it, and stay within its memory.

What Linux does for the first is in `cutset.launch`.

Imports nothing heavy: a process calls this before all else.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import BinaryIO


def end_with(stream: BinaryIO) -> None:
    """Leaves when `stream`, whose other end the parent holds, ends; a thread waits for that."""

    def wait() -> None:
        while stream.read(4096):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="cutset-lifeline", daemon=True).start()


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

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = pages * resource.getpagesize() + num_bytes
    limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
