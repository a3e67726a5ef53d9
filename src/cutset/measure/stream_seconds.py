"""What a computation takes in a stream, where a quota may stop this process in the middle of it.

A quota of processor time ("2 ms in every 4") lets a process run at full speed until the share of a
period is used up, and then stops it until the next. A computation that is timed by the clock takes
what it takes at full speed, or that and a stop, by where in a period it began: the median of such
times is neither, and of pieces of equal work one may show three times as much as another. In a
stream each of them takes, in the mean, its processor time over the share.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from cutset.host import quota_cores

T = TypeVar("T")

_ELSEWHERE = 0.1
"""Share of the quota below which a computation is taken to wait for another device."""


class Spent(NamedTuple):
    """Seconds by the clock, and of processor time of all threads of this process."""

    clock_s: float
    processor_s: float


def timed(computation: Callable[[], T]) -> tuple[T, Spent]:
    """What a computation returns, and what it took."""
    clock_s, processor_s = time.perf_counter(), time.process_time()
    result = computation()
    return result, Spent(time.perf_counter() - clock_s, time.process_time() - processor_s)


def stream_seconds(
    samples: np.ndarray, num_threads: int, *, quota: float | None = None
) -> np.ndarray:
    """Seconds that each computation takes in a stream.

    Where the quota has room for every thread, that is what the clock said. Else it is the processor
    time over the cores' worth of it that the computation gets: the quota, or as many cores as it
    kept busy in its best run, but one at least, since other processes may have had that. One that
    uses next to nothing of this processor is on another device, and the clock is right for it.

    Args:
        samples: of `Spent`, shape (runs, computations, 2), above 0 by the clock.
        num_threads: threads that compute.
        quota: cores' worth of time that this process may use, above 0, infinity for no quota;
            `host.quota_cores` if None.

    Returns:
        Seconds, shape (runs, computations).
    """
    clock_s, processor_s = samples[..., 0], samples[..., 1]
    quota = quota_cores() if quota is None else quota
    if quota > num_threads:
        return clock_s
    used = (processor_s / clock_s).max(axis=0)
    in_stream = processor_s / np.minimum(np.maximum(used, 1.0), quota)
    return np.where(used < _ELSEWHERE * quota, clock_s, in_stream)


def median_in_stream(spent: Sequence[Spent]) -> float:
    """The median of what one thread took for the same thing several times, as in a stream."""
    return float(np.median(stream_seconds(np.array(spent)[:, None], 1)))
