"""A process that works beside what is measured, and what it gets done: less where that takes time.

What a stage's computing loses to messages cannot be read from clocks: cores that are idle take
nothing from it, and what the system does for a message is charged to whoever happens to run. So
something computes meanwhile, and is watched.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
import tempfile

import psutil
from typing_extensions import Self

_LIMIT_S = 600.0
# Goes through more memory than a core's cache holds, as a stage does, and counts what it gets done
# in the file that is its standard output. Ends by itself when the process that started it is gone.
_PROGRAM = """
import mmap, os, sys, time
count = memoryview(mmap.mmap(1, 8)).cast("q")
parent, until = os.getppid(), time.monotonic() + float(sys.argv[1])
size, piece = 8 << 20, 32 << 10
source, target = memoryview(bytearray(size)), memoryview(bytearray(size))
while os.getppid() == parent and time.monotonic() < until:
    for start in range(0, size, piece):
        target[start:start + piece] = source[start:start + piece]
        count[0] += 1
"""


class Bystanders:
    """As many such processes as a stage has threads; a context manager that ends them.

    Args:
        num_threads: how many.
    """

    def __init__(self, num_threads: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._counts: list[memoryview] = []
        try:
            for _ in range(num_threads):
                self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(8)
            self._counts.append(memoryview(mmap.mmap(file.fileno(), 8)).cast("q"))
            # Nothing of it comes from outside.
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-S", "-c", _PROGRAM, str(_LIMIT_S)],
                stdin=subprocess.DEVNULL,
                stdout=file,
            )
        self._processes.append(process)

    @property
    def work(self) -> int:
        """What they got done so far, in a unit of their own."""
        return sum(count[0] for count in self._counts)

    @property
    def spent_s(self) -> float:
        """Processor seconds that they had so far."""
        return spent_s(*(psutil.Process(process.pid) for process in self._processes))

    def close(self) -> None:
        """Ends them."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def spent_s(*processes: psutil.Process) -> float:
    """Processor seconds of all of them so far."""
    times = [process.cpu_times() for process in processes]
    return sum(each.user + each.system for each in times)
