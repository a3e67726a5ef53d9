"""Processes that compute a stage, or several in a row, again and again, without transfers.

`cutset.measure.bench` compares a pipeline with them. Each runs `main` of this module and prints
``ready`` when it is warm. At a line on its standard input, the seconds to rest before every
micro-batch, it begins; at the next one it prints a JSON document, an `AloneResult`, and so on until
its standard input is closed.

With ``--seconds`` it measures once, for so long, then as long with rests, and leaves. What has
rested may be faster (a processor that runs faster for a while, a share of one that was saved up) or
slower (caches that others used meanwhile, a processor that must be woken). A micro-batch alone in a
pipeline meets stages that have rested.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import msgspec
from typing_extensions import Self

from cutset.backends.allocator import keep_freed_memory, malloc_environment, map_large_blocks
from cutset.backends.base import StageProgram
from cutset.backends.selection import import_libraries, load_stage, random_inputs
from cutset.bundles.allowance import allowance_of
from cutset.bundles.open import open_bundle
from cutset.dtypes import Arrays
from cutset.errors import EngineError
from cutset.host import limit_memory
from cutset.processes import LastWords, command_of, made_environment

if TYPE_CHECKING:
    from cutset.bundles.open import Bundle

_NUM_WARM_UP = 3
_ANSWER_TIMEOUT_S = 600.0
_READY = b"ready"
_MOST_LINE_BYTES = 1 << 20
_LEAST_REST_S = 0.02
_LEAST_RESTED = 3


class AloneResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What such a process measured.

    Attributes:
        median_s: median seconds of one micro-batch.
        mean_s: mean seconds of one micro-batch.
        num_runs: how many were timed.
        backends: of each stage that it held.
        rested_s: mean seconds of one micro-batch after a rest, where that was measured.
    """

    median_s: float
    mean_s: float
    num_runs: int
    backends: tuple[str, ...]
    rested_s: float | None = None


class AloneProcesses:
    """Groups of stages, one process for each group; a context manager that ends them.

    Args:
        bundle: whose stages.
        groups: indices of the stages that each process runs one after the other.
        backends: of every stage of the bundle.
        num_threads: threads of each process.
        micro_batch: rows at a time.

    Raises:
        EngineError: a process cannot do it; with its last words.
    """

    def __init__(
        self,
        bundle: Bundle,
        groups: Sequence[Sequence[int]],
        *,
        backends: Sequence[str],
        num_threads: int,
        micro_batch: int,
    ) -> None:
        self._processes: list[_Process] = []
        try:
            for group in groups:
                stages = ",".join(f"{stage}:{backends[stage]}" for stage in group)
                self._processes.append(_Process(bundle.directory, stages, num_threads, micro_batch))
            for process in self._processes:
                process.expect_ready()
        except BaseException:
            self.close()
            raise

    def measure(
        self, duration_s: float, which: Sequence[int] | None = None, *, rest_s: float = 0.0
    ) -> tuple[AloneResult, ...]:
        """Lets processes compute at the same time, and takes what they measured.

        Args:
            duration_s: for how long, at least.
            which: indices of the groups that compute while the others rest; all if None.
            rest_s: how long each rests before every micro-batch.

        Returns:
            One result for each group that computed.

        Raises:
            EngineError: a process is gone; with its last words.
        """
        indices = range(len(self._processes)) if which is None else which
        chosen = [self._processes[index] for index in indices]
        for process in chosen:
            process.tell(repr(rest_s))
        threading.Event().wait(duration_s)
        for process in chosen:
            process.tell()
        return tuple(process.result() for process in chosen)

    def close(self) -> None:
        """Ends the processes; safe to call twice."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.close()
        self._processes = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def measure_alone(
    bundle: Bundle,
    groups: Sequence[Sequence[int]],
    *,
    backends: Sequence[str],
    num_threads: int,
    micro_batch: int,
    duration_s: float,
) -> tuple[AloneResult, ...]:
    """Times groups of stages once, all at the same time; arguments as for `AloneProcesses`.

    Returns:
        One result for each group.

    Raises:
        EngineError: a process could not do it; with its last words.
    """
    with AloneProcesses(
        bundle, groups, backends=backends, num_threads=num_threads, micro_batch=micro_batch
    ) as processes:
        return processes.measure(duration_s)


class _Process:
    """One such process, as its caller sees it."""

    def __init__(self, directory: Path, stages: str, num_threads: int, micro_batch: int) -> None:
        try:
            # Indices, backend names from our own list, and a folder that was opened as a bundle.
            self._process = subprocess.Popen(  # noqa: S603
                [
                    *command_of("stages-alone"),
                    *(str(Path(directory).resolve()), stages, str(num_threads), str(micro_batch)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**made_environment(num_threads), **malloc_environment()},
            )
        except OSError as error:
            raise EngineError(f"a stage cannot be timed alone: {error}") from error
        assert self._process.stderr is not None
        # Read all the time: a process whose warnings nobody reads stops after 64 KB of them.
        self._last_words = LastWords(self._process.stderr, str(self._process.pid))

    def expect_ready(self) -> None:
        """Waits until it is warm."""
        if self._next_line().strip() != _READY:
            raise self._gone()

    def tell(self, words: str = "") -> None:
        """Says a line to it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{words}\n".encode())
            self._process.stdin.flush()
        except OSError as error:
            raise self._gone() from error

    def result(self) -> AloneResult:
        """What it measured."""
        try:
            return msgspec.json.decode(self._next_line(), type=AloneResult)
        except msgspec.DecodeError as error:
            raise self._gone() from error

    def kill(self) -> None:
        """Ends it, without waiting."""
        self._process.kill()

    def close(self) -> None:
        """Waits for its end and closes what leads to it."""
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what was not written yet
                stream.close()

    def _next_line(self) -> bytes:
        """What it says next; nothing where it says nothing in time, and is ended."""
        assert self._process.stdout is not None
        limit = threading.Timer(_ANSWER_TIMEOUT_S, self._process.kill)
        limit.start()
        try:
            return self._process.stdout.readline(_MOST_LINE_BYTES)
        finally:
            limit.cancel()

    def _gone(self) -> EngineError:
        self.kill()
        self._process.wait()
        return EngineError(f"a stage cannot be timed alone: {self._last_words.last() or 'it left'}")


def _serve(programs: Sequence[StageProgram], inputs: Arrays) -> None:
    """Measures as often as the standard input says."""
    print(_READY.decode(), flush=True)  # noqa: T201  # the parent process reads it
    while line := sys.stdin.readline():
        stop = threading.Event()
        threading.Thread(target=_await_line, args=(stop,), daemon=True).start()
        _print(_measure(programs, inputs, stop, rest_s=float(line)))


def _await_line(stop: threading.Event) -> None:
    if not sys.stdin.readline():
        os._exit(1)
    stop.set()


def _serve_once(programs: Sequence[StageProgram], inputs: Arrays, duration_s: float) -> None:
    busy = _measure(programs, inputs, _set_after(duration_s))
    rest_s = max(_LEAST_REST_S, busy.mean_s)
    rested = _measure(programs, inputs, _set_after(duration_s), rest_s=rest_s)
    _print(msgspec.structs.replace(busy, rested_s=rested.mean_s))


def _set_after(seconds: float) -> threading.Event:
    event = threading.Event()
    timer = threading.Timer(seconds, event.set)
    timer.daemon = True
    timer.start()
    return event


def _timed_run_s(programs: Sequence[StageProgram], inputs: Arrays) -> float:
    started_s = time.perf_counter()
    arrays = inputs
    for program in programs:
        arrays = program(arrays)
    return time.perf_counter() - started_s


def _measure(
    programs: Sequence[StageProgram],
    inputs: Arrays,
    stop: threading.Event,
    *,
    rest_s: float = 0.0,
) -> AloneResult:
    """Computes until it is to stop; once at least, and a few times where it rests in between."""
    samples: list[float] = []
    least = _LEAST_RESTED if rest_s else 1
    while not stop.is_set() or len(samples) < least:
        if rest_s:
            time.sleep(rest_s)
        samples.append(_timed_run_s(programs, inputs))
    return AloneResult(
        median_s=median(samples),
        mean_s=sum(samples) / len(samples),
        num_runs=len(samples),
        backends=tuple(program.backend for program in programs),
    )


def _print(result: AloneResult) -> None:
    print(msgspec.json.encode(result).decode(), flush=True)  # noqa: T201  # read by the parent


def main() -> None:
    """Runs one such process."""
    parser = argparse.ArgumentParser(description="Times stages of a bundle without transfers.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("stages", help="INDEX:BACKEND, separated by commas")
    parser.add_argument("num_threads", type=int)
    parser.add_argument("micro_batch", type=int)
    parser.add_argument("--seconds", type=float, help="measure once, for so long, then leave")
    arguments = parser.parse_args()
    map_large_blocks()
    pairs = [pair.split(":", 1) for pair in arguments.stages.split(",")]
    indices = [int(index) for index, _ in pairs]
    bundle = open_bundle(arguments.bundle, stages=indices)
    allowance = allowance_of(bundle.manifest, (arguments.micro_batch,), indices)
    for index, backend in pairs:
        import_libraries(bundle, int(index), backend=backend)
    limit_memory(allowance.memory_bytes)
    programs = [
        load_stage(
            bundle,
            int(index),
            backend=backend,
            num_threads=arguments.num_threads,
            micro_batch=arguments.micro_batch,
        )
        for index, backend in pairs
    ]
    inputs = random_inputs(bundle.manifest.stages[indices[0]], arguments.micro_batch)
    for _ in range(_NUM_WARM_UP):
        _timed_run_s(programs, inputs)
        keep_freed_memory()  # after the first, as a worker does
    if arguments.seconds is None:
        _serve(programs, inputs)
    else:
        _serve_once(programs, inputs, arguments.seconds)


if __name__ == "__main__":
    main()
