"""The least limit that has a plan: an exact search over the values that a period can take."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from cutset.planning.problem import ROUNDING, ChainProblem, Floats, Placed

Oracle: TypeAlias = Callable[[float], "tuple[Placed, ...] | None"]

MAX_CANDIDATES = 1_000_000


def least_period(
    problem: ChainProblem, oracle: Oracle, lower_s: float
) -> tuple[tuple[Placed, ...], float] | None:
    """The plan of least period that `oracle` can find.

    The oracle need not be monotone in anything but its limit. First the limit rises from the
    lower bound in growing steps, because tight limits are answered fastest; then it is bisected
    over the values between a failure and the best plan so far, which are finitely many: the
    seconds of some stage or of some link. Where these are too many to list, the bisection is over
    numbers until it gets to where they can be listed or to rounding.

    Args:
        problem: what is solved.
        oracle: gives a plan with a period of at most its argument, or None.
        lower_s: a proven lower bound.

    Returns:
        The plan and its period in seconds, or None where there is no plan at all.
    """
    best = oracle(math.inf)
    if best is None:
        return None
    period_s = problem.period_s(best)
    failed_s, step = lower_s * (1 - 4 * ROUNDING), 1e-3
    limit_s = lower_s
    while limit_s < period_s * (1 - ROUNDING):
        found = oracle(limit_s)
        if found is not None:
            best, period_s = found, min(period_s, problem.period_s(found))
            break
        failed_s = limit_s
        if lower_s <= 0:
            break
        limit_s, step = limit_s * (1 + step), step * 3
    return _bisect(problem, oracle, best, period_s, failed_s)


def _bisect(
    problem: ChainProblem,
    oracle: Oracle,
    best: tuple[Placed, ...],
    period_s: float,
    failed_s: float,
) -> tuple[tuple[Placed, ...], float]:
    values: Floats | None = None
    while period_s > failed_s * (1 + ROUNDING) and period_s > 0:
        if values is None:
            values = candidate_periods(problem, failed_s, period_s)
        if values is None:
            # Geometric steps get to a small optimum as fast as to a large one.
            limit_s = math.sqrt(failed_s * period_s) if failed_s > 0 else period_s / 2
            if not failed_s * (1 + ROUNDING) < limit_s < period_s * (1 - ROUNDING):
                limit_s = (failed_s + period_s) / 2
            if period_s <= failed_s * (1 + 4 * ROUNDING):
                break
        else:
            keep = (values > failed_s * (1 + ROUNDING)) & (values < period_s * (1 - ROUNDING))
            values = values[keep]
            if len(values) == 0:
                break
            limit_s = float(values[len(values) // 2])
        found = oracle(limit_s)
        if found is None:
            failed_s = limit_s
        else:
            best, period_s = found, min(limit_s, problem.period_s(found))
    return best, problem.period_s(best)


def candidate_periods(problem: ChainProblem, above_s: float, below_s: float) -> Floats | None:
    """Every value strictly between two limits that a period can take, rising; None if too many.

    A period is the seconds of one stage or of one transfer. Not known for serial plans with
    several kinds of links, where it is a sum of three.
    """
    if problem.serial:
        return None
    parts: list[Floats] = [problem.source_s, problem.sink_s]
    total = 0
    for variant in problem.variants:
        prefix, overhead_s = variant.prefix_s, float(problem.overhead_s[variant.device_class])
        starts_s = prefix[:-1] - overhead_s
        first = np.searchsorted(prefix, starts_s + above_s, side="right")
        first = np.maximum(first, np.arange(1, problem.num_pieces + 1))
        last = np.searchsorted(prefix, starts_s + below_s, side="left")
        last = np.minimum(last, variant.furthest + 1)
        widths = np.maximum(last - first, 0)
        total += int(widths.sum())
        if total > MAX_CANDIDATES:
            return None
        starts = np.repeat(np.arange(problem.num_pieces), widths)
        offsets = np.arange(len(starts)) - np.repeat(np.cumsum(widths) - widths, widths)
        stops = np.repeat(first, widths) + offsets
        parts.append(prefix[stops] - prefix[starts] + overhead_s)
    seen: set[tuple[float, float]] = set()
    for a in range(problem.num_classes):
        for b in range(problem.num_classes):
            key = float(problem.link_latency_s[a, b]), float(problem.link_s_per_byte[a, b])
            if (a != b or problem.counts[a] > 1) and key not in seen:
                seen.add(key)
                row = problem.link_row_s(a, b)
                parts.append(row[(row > above_s) & (row < below_s)])
                total += len(parts[-1])
                if total > MAX_CANDIDATES:
                    return None
    values = np.unique(np.concatenate(parts))
    return values[(values > above_s) & (values < below_s)]
