"""Processes that work beside what is measured, and get less done where that takes their time.

What a stage's computing loses to messages cannot be read from clocks: cores that are idle take
nothing from it, and what the system does for a message is charged to whoever happens to run. So
something computes meanwhile (`cutset.measure.bystander_work`), and is watched.
"""

from __future__ import annotations

import mmap
import subprocess
import tempfile
import time

from typing_extensions import Self

from cutset.errors import EngineError
from cutset.processes import command_of, made_environment

_LIMIT_S = 600.0
_START_TIMEOUT_S = 60.0
_PAUSE_S = 0.01


class Bystanders:
    """As many such processes as a stage has threads; a context manager that ends them.

    Args:
        num_threads: how many.

    Raises:
        EngineError: they do not begin.
    """

    def __init__(self, num_threads: int) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._counts: list[memoryview] = []
        try:
            for _ in range(num_threads):
                self._start()
            self._wait()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(8)
            self._counts.append(memoryview(mmap.mmap(file.fileno(), 8)).cast("q"))
            # Nothing of it comes from outside.
            process = subprocess.Popen(  # noqa: S603
                [*command_of("bystander"), str(_LIMIT_S)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                env=made_environment(1),
            )
        self._processes.append(process)

    def _wait(self) -> None:
        """Until all of them work."""
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not all(count[0] for count in self._counts):
            if time.monotonic() > deadline_s:
                raise EngineError(f"a bystander did not begin within {_START_TIMEOUT_S:.0f} s")
            time.sleep(_PAUSE_S)

    @property
    def work(self) -> int:
        """What they got done so far, in a unit of their own."""
        return sum(count[0] for count in self._counts)

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
