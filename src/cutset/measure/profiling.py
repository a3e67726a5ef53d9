"""Measures what every piece of a model costs on this device."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
import torch

from cutset.backends.selection import REFERENCE_BACKEND, get_backend
from cutset.capture.captured import Captured
from cutset.capture.lowering import CapturedModel
from cutset.capture.pieces import build_piece
from cutset.capture.reuse import reuse_dead_tensors
from cutset.capture.torch_threads import compute_threads
from cutset.costs.profile import OUTPUT_NAME, PROFILE_FORMAT, PieceProfile, Profile, Timing
from cutset.errors import EngineError
from cutset.graph.cuts import CutPoints

logger = logging.getLogger(__name__)

NUM_WARMUP_RUNS = 2
MIN_RUNS = 5

Tensors: TypeAlias = tuple[torch.Tensor, ...]


class PieceRunner(Protocol):
    """Computes one piece."""

    def __call__(self, inputs: Tensors) -> Tensors:
        """Takes and returns the piece's tensors in the order of its contract."""


PieceBackend: TypeAlias = Callable[[int, int], PieceRunner]
"""Makes a runner for the operations from one index up to another."""


def eager_pieces(captured: CapturedModel) -> PieceBackend:
    """Runs pieces in eager torch, as a stage's program is run."""

    def runner(start: int, stop: int) -> PieceRunner:
        piece = build_piece(captured, start, stop)
        reuse_dead_tensors(piece)

        def run(inputs: Tensors) -> Tensors:
            outputs: Tensors = piece(*inputs)
            return outputs

        return run

    return runner


def profile_costs(
    captured: Captured,
    cuts: CutPoints,
    *,
    micro_batch: int = 1,
    num_threads: int = 1,
    num_runs: int = 20,
    max_seconds: float = 10.0,
    backends: Mapping[str, PieceBackend] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Profile:
    """Measures the pieces between neighbouring candidate cut points, one after the other.

    Each run sends one micro-batch through all pieces, so that every piece finds the caches as it
    would in the whole model, and then one through the whole model. Two runs warm up.

    A backend that plans across operations (ONNX Runtime keeps tensors in a blocked layout between
    convolutions) pays at every piece's ends what it would not pay inside a stage. So the pieces'
    times are scaled to add up to the whole model's. The profile names the model by its class, and
    the device by its host.

    Args:
        captured: the captured model.
        cuts: its judged positions; the candidates divide it into pieces.
        micro_batch: rows in each run, at least 1.
        num_threads: threads that compute, at least 1.
        num_runs: measured runs for each backend, if time allows; at least 5 are made.
        max_seconds: after this long no further run is begun, for each backend.
        backends: what to measure, by name; eager torch if None, for a model that has it.
        progress: called with the backend, the runs done and the runs wanted.

    Raises:
        ValueError: `micro_batch` or `num_threads` is below 1, or there is nothing to measure.
        EngineError: the first backend cannot run a piece. Any other that cannot is left out, since
            what a plan knows of a backend is about all pieces; a warning says why.
    """
    if micro_batch < 1 or num_threads < 1:
        raise ValueError(f"micro_batch {micro_batch} and num_threads {num_threads} start at 1")
    if backends is None and isinstance(captured, CapturedModel):
        backends = {REFERENCE_BACKEND: eager_pieces(captured)}
    if not backends:
        raise ValueError("no backends: name those that can run the pieces of this model")
    positions = [0, *(point.position for point in cuts.points), len(captured.graph.operations)]
    inputs = _rows(captured, micro_batch)
    timings: dict[str, tuple[Timing, ...]] = {}
    whole: dict[str, Timing] = {}
    with compute_threads(num_threads), torch.inference_mode():
        for name, backend in backends.items():
            try:
                runners = [backend(start, stop) for start, stop in pairwise(positions)]
                runners.append(backend(0, positions[-1]))
                seconds = _measure(name, runners, inputs, num_runs, max_seconds, progress)
            except Exception as error:
                # What runtimes raise has no common class but this.
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                if not timings:
                    raise EngineError(
                        f"{name} cannot run every piece of the model: {reason}"
                    ) from error
                logger.warning(
                    "%s is not measured, since it cannot run every piece: %s", name, reason
                )
                continue
            *pieces, all_ = (_timing(samples) for samples in seconds.T)
            whole[name] = all_
            timings[name] = _scaled(pieces, all_.median_s)
    return Profile(
        format=PROFILE_FORMAT,
        model=captured.graph.model_class,
        device=platform.node(),
        micro_batch=micro_batch,
        num_threads=num_threads,
        pieces=_pieces(captured, cuts, positions, timings),
        whole=whole,
        software={
            "python": platform.python_version(),
            **{name: get_backend(name).version() for name in timings},
        },
    )


def time_stages(
    captured: Captured,
    positions: Sequence[int],
    backends: Sequence[PieceBackend],
    *,
    micro_batch: int = 1,
    num_threads: int = 1,
    num_runs: int = 20,
    max_seconds: float = 10.0,
) -> tuple[Timing, ...]:
    """Measures stages as wholes, one after the other, as `profile_costs` measures pieces.

    What a backend saves within a stage and pays at its ends is in these times, where sums of
    pieces have the average of all cuts.

    Args:
        captured: the captured model.
        positions: where stages begin and end: 0, the cuts, the number of operations.
        backends: of each stage.
        micro_batch: rows in each run.
        num_threads: threads that compute.
        num_runs: measured runs, if time allows; at least 5 are made.
        max_seconds: after this long no further run is begun.
    """
    inputs = _rows(captured, micro_batch)
    with compute_threads(num_threads), torch.inference_mode():
        runners = [
            backend(start, stop)
            for backend, (start, stop) in zip(backends, pairwise(positions), strict=True)
        ]
        # The last runner is for what follows the pieces in a profile: nothing here.
        seconds = _measure("", [*runners, lambda _: ()], inputs, num_runs, max_seconds, None)
    return tuple(_timing(samples) for samples in seconds.T[:-1])


def _pieces(
    captured: Captured,
    cuts: CutPoints,
    positions: Sequence[int],
    timings: Mapping[str, Sequence[Timing]],
) -> tuple[PieceProfile, ...]:
    operations = captured.graph.operations
    names = [*(point.after for point in cuts.points), OUTPUT_NAME]
    return tuple(
        PieceProfile(
            last=last,
            flops=sum(operation.flops for operation in operations[start:stop]),
            timings={name: timing[index] for name, timing in timings.items()},
        )
        for index, (last, (start, stop)) in enumerate(zip(names, pairwise(positions), strict=True))
    )


def _rows(captured: Captured, num_rows: int) -> Tensors:
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
    """Seconds of every piece in turn, then of the last runner, which is the whole model."""
    *pieces, whole = runners
    seconds = []
    tensors = inputs
    for runner in pieces:
        begin = time.perf_counter()
        tensors = runner(tensors)
        seconds.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    whole(inputs)
    return [*seconds, time.perf_counter() - begin]


def _scaled(pieces: Sequence[Timing], whole_s: float) -> tuple[Timing, ...]:
    """The pieces' times, scaled so that their medians add up to the whole model's."""
    factor = whole_s / sum(timing.median_s for timing in pieces)
    return tuple(timing.scaled(factor) for timing in pieces)


def _timing(samples: np.ndarray) -> Timing:
    p10, median, p90 = np.percentile(samples, (10, 50, 90))
    return Timing(median_s=float(median), p10_s=float(p10), p90_s=float(p90), num_runs=len(samples))
