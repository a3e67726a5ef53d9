"""Runs pieces again and again, with one number of rows or with several, and times them."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np

from cutset.backends.base import Computation
from cutset.capture.captured import Captured
from cutset.costs.cost_model import live_bytes
from cutset.costs.profile import Timing
from cutset.dtypes import Arrays
from cutset.host import free_memory_bytes
from cutset.measure.stream_seconds import Spent, stream_seconds, timed
from cutset.printable import first_line

logger = logging.getLogger(__name__)

NUM_WARMUP_RUNS = 2
MIN_RUNS = 5

_LEAST_LONG_RUNS = 3
_FALLS = 0.97
"""Rows a second over the most so far, below which more rows are not tried."""
_FAR_BEHIND = 1.5
"""Seconds over the fastest backend's, beyond which more rows are not tried."""
_MORE_TIME = 3.0
"""Seconds for all other numbers of rows over those for the first."""
_MEMORY_SHARE = 0.5
"""Share of the free memory that the activations of a measured micro-batch may take."""

PieceBackend: TypeAlias = Callable[[int, int], Computation]
"""Loads the operations from one index up to another."""

Told: TypeAlias = Callable[[str, int, int], None]
"""Told a name, the runs done and the runs wanted."""


@dataclasses.dataclass(kw_only=True, eq=False)
class PieceTimes:
    """Measures a model's pieces, and the whole of it, with one backend after the other.

    Attributes:
        captured: the model.
        positions: where pieces begin and end.
        micro_batch: rows that every backend is measured with.
        more_sizes: further numbers of rows, rising, tried while they pay.
        num_threads: threads that compute.
        num_runs: measured runs with `micro_batch`, if time allows; at least 5 are made.
        max_seconds: no run is begun after so long with one number of rows.
        progress: told of every run.
        found: by rows and backend: what each piece took, and the whole model last.
    """

    captured: Captured
    positions: Sequence[int]
    micro_batch: int
    more_sizes: Sequence[int]
    num_threads: int
    num_runs: int
    max_seconds: float
    progress: Told | None
    found: dict[int, dict[str, tuple[Timing, ...]]] = dataclasses.field(default_factory=dict)

    def measure(self, name: str, backend: PieceBackend) -> None:
        """Measures with one backend; what it raises says that it cannot run every piece."""
        runners = [backend(start, stop) for start, stop in pairwise(self.positions)]
        runners.append(backend(0, self.positions[-1]))
        wanted = max(self.num_runs, MIN_RUNS)
        started_s = time.perf_counter()
        row_s = self._measure(name, runners, self.micro_batch, wanted, NUM_WARMUP_RUNS)
        left_s = _MORE_TIME * (time.perf_counter() - started_s)
        fastest = self.found[self.micro_batch].values()
        if row_s * self.micro_batch > _FAR_BEHIND * min(times[-1].median_s for times in fastest):
            return
        least_s = row_s
        for rows in self.more_sizes:
            runs = max(_LEAST_LONG_RUNS, wanted // (2 * rows))
            left_s -= 2 * (1 + runs) * rows * row_s  # the pieces and the whole; one to warm up
            needed = rows * max(live_bytes(self.captured.graph), default=0)
            if left_s < 0 or needed > _MEMORY_SHARE * free_memory_bytes():
                return
            try:
                row_s = self._measure(name, runners, rows, runs, 1)
            except Exception as error:  # noqa: BLE001 (what runtimes raise has no common class)
                logger.warning("%s is not measured with %d rows: %s", name, rows, first_line(error))
                return
            if row_s * _FALLS > least_s:
                return
            least_s = min(least_s, row_s)

    def _measure(
        self, name: str, runners: Sequence[Computation], rows: int, runs: int, warm_up: int
    ) -> float:
        """Seconds of a row in the whole model, after noting what every piece took."""
        told = name if rows == self.micro_batch else f"{name}, {rows} rows"
        samples = run_again_and_again(
            runners,
            self.captured.rows(rows),
            num_runs=runs,
            least=min(runs, MIN_RUNS),
            num_warm_up=warm_up,
            max_seconds=self.max_seconds,
            progress=self.progress and functools.partial(self.progress, told),
        )
        *pieces, whole = timings_of(samples, self.num_threads)
        factor = whole.median_s / sum(timing.median_s for timing in pieces)
        scaled = (timing.scaled(factor) for timing in pieces)
        self.found.setdefault(rows, {})[name] = (*scaled, whole)
        return whole.median_s / rows


def run_again_and_again(
    runners: Sequence[Computation],
    inputs: Arrays,
    *,
    num_runs: int,
    max_seconds: float,
    least: int = MIN_RUNS,
    num_warm_up: int = NUM_WARMUP_RUNS,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """What every piece took in every run, shape (runs, pieces, 2), as `stream_seconds` takes it.

    Args:
        runners: of every piece in turn; the last is the whole model, which begins anew.
        inputs: of the first piece and of the whole.
        num_runs: wanted runs.
        max_seconds: after this long no further run is begun.
        least: runs that are made all the same.
        num_warm_up: runs before.
        progress: told the runs done and the runs wanted.
    """
    for _ in range(num_warm_up):
        _run_once(runners, inputs)
    rows: list[list[Spent]] = []
    started = time.perf_counter()
    while len(rows) < num_runs:
        rows.append(_run_once(runners, inputs))
        if progress is not None:
            progress(len(rows), num_runs)
        if len(rows) >= least and time.perf_counter() - started > max_seconds:
            break
    return np.array(rows)


def _run_once(runners: Sequence[Computation], inputs: Arrays) -> list[Spent]:
    """What every piece takes in turn, then the last runner, which is the whole model."""
    *pieces, whole = runners
    spent = []
    arrays = inputs
    for runner in pieces:
        arrays, took = timed(functools.partial(runner, arrays))
        spent.append(took)
    _, took = timed(functools.partial(whole, inputs))
    return [*spent, took]


def timings_of(samples: np.ndarray, num_threads: int) -> tuple[Timing, ...]:
    """Of each piece, from what `run_again_and_again` returns."""
    seconds = stream_seconds(samples, num_threads)
    p10, median, p90 = np.percentile(seconds, (10, 50, 90), axis=0).tolist()
    return tuple(
        Timing(median_s=b, p10_s=a, p90_s=c, num_runs=len(seconds))
        for a, b, c in zip(p10, median, p90, strict=True)
    )
