"""A process that computes one stage, or all of them in a row, again and again, without transfers.

`cutset.runtime.bench` compares a pipeline with it. Started as ``python -m cutset.runtime.alone``;
prints ``ready`` when it is warm, begins at the first line on its standard input, and at the second
prints one JSON document, an `AloneResult`. It leaves when its standard input is closed.
"""

from __future__ import annotations

import argparse
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
import torch

from cutset.backends.allocator import keep_freed_memory
from cutset.backends.base import StageProgram, load_stage, random_inputs
from cutset.errors import EngineError
from cutset.shards.load import open_bundle

if TYPE_CHECKING:
    from cutset.shards.load import Bundle

_NUM_WARM_UP = 3
_STOP_TIMEOUT_S = 120.0
_READY = b"ready"


class AloneResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What such a process measured.

    Attributes:
        median_s: median seconds of one micro-batch.
        mean_s: mean seconds of one micro-batch.
        num_runs: how many were timed.
        backends: of each stage that it held.
    """

    median_s: float
    mean_s: float
    num_runs: int
    backends: tuple[str, ...]


def measure_alone(
    bundle: Bundle,
    groups: Sequence[Sequence[int]],
    *,
    backends: Sequence[str],
    num_threads: int,
    micro_batch: int,
    duration_s: float,
) -> tuple[AloneResult, ...]:
    """Times groups of stages, one process for each group, all at the same time.

    Args:
        bundle: whose stages.
        groups: indices of the stages that each process runs one after the other.
        backends: of every stage of the bundle.
        num_threads: threads of each process.
        micro_batch: rows at a time.
        duration_s: how long to measure.

    Returns:
        One result for each group.

    Raises:
        EngineError: a process could not do it; with its last words.
    """
    processes = []
    try:
        for group in groups:
            stages = ",".join(f"{stage}:{backends[stage]}" for stage in group)
            processes.append(_start(bundle.directory, stages, num_threads, micro_batch))
        for process in processes:
            _expect_ready(process)
        for process in processes:
            _tell(process)
        threading.Event().wait(duration_s)
        for process in processes:
            _tell(process)
        return tuple(_finish(process) for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _start(
    directory: Path, stages: str, num_threads: int, micro_batch: int
) -> subprocess.Popen[bytes]:
    # Indices, backend names from our own list, and a folder that was opened as a bundle before.
    return subprocess.Popen(  # noqa: S603
        [
            *(sys.executable, "-m", "cutset.runtime.alone"),
            *(str(Path(directory).resolve()), stages, str(num_threads), str(micro_batch)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": str(num_threads), "PYTHONSAFEPATH": "1"},
    )


def _expect_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    if process.stdout.readline().strip() != _READY:
        _, words = process.communicate()
        lines = words.decode(errors="replace").strip().splitlines()
        raise EngineError(f"a stage cannot be timed alone: {lines[-1] if lines else 'it left'}")


def _tell(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def _finish(process: subprocess.Popen[bytes]) -> AloneResult:
    output, words = process.communicate(timeout=_STOP_TIMEOUT_S)
    try:
        return msgspec.json.decode(output, type=AloneResult)
    except msgspec.DecodeError as error:
        raise EngineError(
            f"a stage cannot be timed alone: {words.decode(errors='replace')[-500:]}"
        ) from error


def _measure(
    programs: Sequence[StageProgram],
    inputs: tuple[torch.Tensor, ...],
    go: threading.Event,
    stop: threading.Event,
) -> AloneResult:
    def run_once() -> None:
        tensors = inputs
        for program in programs:
            tensors = program(tensors)

    for _ in range(_NUM_WARM_UP):
        run_once()
    print(_READY.decode(), flush=True)  # noqa: T201  # the parent process reads it
    go.wait()
    samples: list[float] = []
    while not stop.is_set() or not samples:
        started_s = time.perf_counter()
        run_once()
        samples.append(time.perf_counter() - started_s)
    return AloneResult(
        median_s=median(samples),
        mean_s=sum(samples) / len(samples),
        num_runs=len(samples),
        backends=tuple(program.backend for program in programs),
    )


def _listen(go: threading.Event, stop: threading.Event) -> None:
    if not sys.stdin.readline():
        os._exit(1)
    go.set()
    sys.stdin.readline()
    stop.set()


def main() -> None:
    """Runs one such process."""
    parser = argparse.ArgumentParser(description="Times stages of a bundle without transfers.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("stages", help="INDEX:BACKEND, separated by commas")
    parser.add_argument("num_threads", type=int)
    parser.add_argument("micro_batch", type=int)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(arguments.num_threads)
    pairs = [pair.split(":") for pair in arguments.stages.split(",")]
    indices = [int(index) for index, _ in pairs]
    bundle = open_bundle(arguments.bundle, stages=indices)
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
    go, stop = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(go, stop), daemon=True).start()
    result = _measure(programs, inputs, go, stop)
    print(msgspec.json.encode(result).decode(), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
