"""Measures what every piece of a model costs on this device."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
import torch

from cutset.costs.model import OUTPUT_NAME, PROFILE_FORMAT, PieceProfile, Profile, Timing
from cutset.graph.cuts import CutPoints
from cutset.graph.lowering import CapturedModel
from cutset.graph.pieces import build_piece
from cutset.threads import compute_threads

NUM_WARMUP_RUNS = 2
MIN_RUNS = 5

Tensors: TypeAlias = tuple[torch.Tensor, ...]


class PieceRunner(Protocol):
    """Computes one piece."""

    def __call__(self, inputs: Tensors) -> Tensors:
        """Takes and returns the piece's tensors in the order of its contract."""


PieceBackend: TypeAlias = Callable[[CapturedModel, int, int], PieceRunner]
"""Makes a runner for the operations from one index up to another."""


def eager_piece(captured: CapturedModel, start: int, stop: int) -> PieceRunner:
    """Runs a piece in eager torch."""
    piece = build_piece(captured, start, stop)

    def run(inputs: Tensors) -> Tensors:
        outputs: Tensors = piece(*inputs)
        return outputs

    return run


def profile_costs(
    captured: CapturedModel,
    cuts: CutPoints,
    *,
    micro_batch: int = 1,
    num_threads: int = 1,
    num_runs: int = 20,
    max_seconds: float = 10.0,
    backends: Mapping[str, PieceBackend] | None = None,
    model_name: str = "",
    device: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> Profile:
    """Measures the pieces between neighbouring candidate cut points, one after the other.

    Each run sends one micro-batch through all pieces, so that every piece finds the caches as it
    would in the whole model. Two runs warm up.

    Args:
        captured: the captured model.
        cuts: its judged positions; the candidates divide it into pieces.
        micro_batch: rows in each run, at least 1.
        num_threads: threads that compute, at least 1.
        num_runs: measured runs for each backend, if time allows; at least 5 are made.
        max_seconds: after this long no further run is begun, for each backend.
        backends: what to measure, by name; eager torch if None.
        model_name: the model's name, for the profile.
        device: this device's name; the host's name if empty.
        progress: called with the backend, the runs done and the runs wanted.

    Raises:
        ValueError: `micro_batch` or `num_threads` is below 1.
    """
    if micro_batch < 1 or num_threads < 1:
        raise ValueError(f"micro_batch {micro_batch} and num_threads {num_threads} start at 1")
    positions = [0, *(point.position for point in cuts.points), len(captured.graph.operations)]
    inputs = _rows(captured, micro_batch)
    timings: dict[str, tuple[Timing, ...]] = {}
    with compute_threads(num_threads), torch.inference_mode():
        for name, backend in (backends or {"torch": eager_piece}).items():
            runners = [backend(captured, start, stop) for start, stop in pairwise(positions)]
            seconds = _measure(name, runners, inputs, num_runs, max_seconds, progress)
            timings[name] = tuple(_timing(samples) for samples in seconds.T)
    operations = captured.graph.operations
    names = [*(point.after for point in cuts.points), OUTPUT_NAME]
    return Profile(
        format=PROFILE_FORMAT,
        model=model_name or captured.graph.model_class,
        device=device or platform.node(),
        micro_batch=micro_batch,
        num_threads=num_threads,
        pieces=tuple(
            PieceProfile(
                last=last,
                flops=sum(operation.flops for operation in operations[start:stop]),
                timings={name: timing[index] for name, timing in timings.items()},
            )
            for index, (last, (start, stop)) in enumerate(
                zip(names, pairwise(positions), strict=True)
            )
        ),
        software={"torch": str(torch.__version__), "python": platform.python_version()},
    )


def _rows(captured: CapturedModel, num_rows: int) -> Tensors:
    """The example's rows, repeated or shortened to `num_rows`."""
    return tuple(
        torch.cat([tensor] * -(-num_rows // tensor.shape[0]))[:num_rows]
        for tensor in captured.example_inputs
    )


def _measure(
    name: str,
    runners: Sequence[PieceRunner],
    inputs: Tensors,
    num_runs: int,
    max_seconds: float,
    progress: Callable[[str, int, int], None] | None,
) -> np.ndarray:
    """Seconds by run and piece."""
    wanted = max(num_runs, MIN_RUNS)
    for _ in range(NUM_WARMUP_RUNS):
        _run_once(runners, inputs)
    rows: list[list[float]] = []
    started = time.perf_counter()
    while len(rows) < wanted:
        rows.append(_run_once(runners, inputs))
        if progress is not None:
            progress(name, len(rows), wanted)
        if len(rows) >= MIN_RUNS and time.perf_counter() - started > max_seconds:
            break
    return np.array(rows)


def _run_once(runners: Sequence[PieceRunner], inputs: Tensors) -> list[float]:
    seconds = []
    for runner in runners:
        begin = time.perf_counter()
        inputs = runner(inputs)
        seconds.append(time.perf_counter() - begin)
    return seconds


def _timing(samples: np.ndarray) -> Timing:
    p10, median, p90 = np.percentile(samples, (10, 50, 90))
    return Timing(median_s=float(median), p10_s=float(p10), p90_s=float(p90), num_runs=len(samples))
