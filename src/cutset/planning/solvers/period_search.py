"""The least limit that has a plan: an exact search over the values that a period can take."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np

from cutset.planning.deadline import OverBudget
from cutset.planning.problem import ROUNDING, ChainProblem, Placed
from cutset.planning.totals import Floats
from cutset.planning.watch import note

Oracle: TypeAlias = Callable[..., "tuple[Placed, ...] | None"]
"""Gives a plan with a period of at most its argument, or None. With a second one media may be busy
for that long, and only the rest is held to the first."""

logger = logging.getLogger(__name__)

MAX_CANDIDATES = 1_000_000
MAX_TRIPLES = 50_000_000


class Found(NamedTuple):
    """What a search for the least period ended with.

    Attributes:
        stages: the best plan.
        period_s: its period in seconds.
        bound_s: no plan that the oracle could find has a period below this.
        is_complete: whether the two meet; False where time or memory ended the search before.
    """

    stages: tuple[Placed, ...]
    period_s: float
    bound_s: float
    is_complete: bool


def least_period(problem: ChainProblem, oracle: Oracle, lower_s: float) -> Found | None:
    """The plan of least period that `oracle` can find.

    The oracle need not be monotone in anything but its limit. First the limit rises from the
    lower bound in growing steps, because tight limits are answered fastest; then it is bisected
    over the values between a failure and the best plan so far, which are finitely many: the
    seconds of some stage or of some link. Where these are too many to list, the bisection is over
    numbers until it gets to where they can be listed or to rounding. Where loads depend on both
    neighbours the values are so many that halving them takes twenty questions and more, each of
    them costly near the optimum, though the best plan is found soon. There, after two failures it
    is asked whether anything at all is better than that plan: if not, nothing is left to halve.

    What a medium carries is a sum over the plan, so where media decide, a period is none of these
    values. The rest of a plan's costs is: so when no value is left between the last failure and
    the best plan, a better one keeps the last failure with all but its media. That is asked, until
    there is none.

    Args:
        problem: what is solved.
        oracle: gives a plan with a period of at most its argument, or None.
        lower_s: a proven lower bound.

    Returns:
        What was found, or None where there is no plan at all.

    Raises:
        OverBudget: the oracle was out of reach before it gave any plan.
    """
    best = oracle(math.inf)
    if best is None:
        return None
    search = _Bisection(problem, oracle, best, lower_s)
    try:
        search.rise(lower_s)
        search.bisect()
    except OverBudget as reason:
        logger.info("the search for the least period was ended: %s", reason)
        bound_s = min(search.failed_s, search.period_s)
        return Found(search.best, search.period_s, bound_s, is_complete=False)
    return Found(search.best, search.period_s, search.period_s, is_complete=True)


class _Bisection:
    """The best plan so far, and the largest limit that has none."""

    def __init__(
        self, problem: ChainProblem, oracle: Oracle, best: tuple[Placed, ...], lower_s: float
    ) -> None:
        self.problem = problem
        self.oracle = oracle
        self.num_failures = 0
        self.has_gained = False
        self.best = best
        self.period_s = problem.period_s(best)
        self.failed_s = lower_s * (1 - 4 * ROUNDING)
        note(best_s=self.period_s, bound_s=self.failed_s)

    def ask(self, limit_s: float) -> bool:
        """Asks for a plan within a limit; either way what is left to search gets smaller."""
        found = self.oracle(limit_s)
        if found is None:
            self.failed_s = limit_s
            note(bound_s=limit_s)
            self.num_failures += 1
            return False
        self.num_failures = 0
        period_s = self.problem.period_s(found)
        if period_s < self.period_s:
            self.best, self.period_s = found, period_s
            note(best_s=period_s)
        self.upper_s = min(limit_s, period_s)
        return True

    def rise(self, lower_s: float) -> None:
        """Raises the limit from the lower bound until there is a plan."""
        self.upper_s, limit_s, step = self.period_s, lower_s, 1e-3
        while limit_s < self.upper_s * (1 - ROUNDING):
            if self.ask(limit_s) or lower_s <= 0:
                break
            limit_s, step = limit_s * (1 + step), step * 3

    def bisect(self) -> None:
        """Narrows down what lies between the last failure and the best plan."""
        values: Floats | None = None
        while self.upper_s > self.failed_s * (1 + ROUNDING) and self.upper_s > 0:
            if values is None:
                values = candidate_periods(self.problem, self.failed_s, self.upper_s)
            if values is None:
                limit_s = self._middle()
                if limit_s is None:
                    break
                is_last = self._may_be_best()
                if is_last:
                    limit_s = max(limit_s, self.upper_s * (1 - 4 * ROUNDING))
            else:
                low_s, high_s = self.failed_s * (1 + ROUNDING), self.upper_s * (1 - ROUNDING)
                values = values[(values > low_s) & (values < high_s)]
                if len(values) == 0:
                    self._lighten()
                    break
                is_last = self._may_be_best()
                limit_s = float(values[-1 if is_last else len(values) // 2])
            # What was better may be the best; but steps down alone could be many.
            self.has_gained = self.ask(limit_s) and is_last and not self.has_gained

    def _lighten(self) -> None:
        """Finds plans in which media alone are between the last failure and the best plan."""
        while self.problem.num_media:
            found = self.oracle(self.failed_s, self.upper_s * (1 - 4 * ROUNDING))
            period_s = math.inf if found is None else self.problem.period_s(found)
            if found is None or period_s >= self.upper_s:
                return
            self.best, self.period_s, self.upper_s = found, period_s, period_s
            note(best_s=period_s)

    def _may_be_best(self) -> bool:
        """Whether to ask for anything better than the best plan, and not for much better."""
        return self.problem.is_coupled and (self.num_failures % 3 == 2 or self.has_gained)

    def _middle(self) -> float | None:
        """A number between, None where rounding leaves none.

        Geometric steps get to a small optimum as fast as to a large one.
        """
        low_s, high_s = self.failed_s, self.upper_s
        if high_s <= low_s * (1 + 4 * ROUNDING):
            return None
        middle_s = math.sqrt(low_s) * math.sqrt(high_s) if low_s > 0 else high_s / 1024
        if not low_s * (1 + ROUNDING) < middle_s < high_s * (1 - ROUNDING):
            middle_s = (low_s + high_s) / 2
        return middle_s if low_s < middle_s < high_s else None


def candidate_periods(problem: ChainProblem, above_s: float, below_s: float) -> Floats | None:
    """Every value strictly between two limits that a period can take, rising; None if too many.

    A period is the seconds of one stage or of one transfer; where the problem is coupled, those of
    a stage between two neighbours.
    """
    if problem.is_coupled:
        return _coupled_periods(problem, above_s, below_s)
    parts = _port_periods(problem, above_s, below_s)
    if parts is None:
        return None
    parts += [problem.source_s, problem.sink_s]
    total = 0
    for variant in problem.variants:
        overhead_s = float(problem.overhead_s[variant.device_class])
        first = variant.last_within(above_s - overhead_s) + 1
        last = variant.last_within(math.nextafter(below_s - overhead_s, -math.inf))
        last = np.minimum(last, variant.furthest) + 1
        widths = np.maximum(last - first, 0)
        total += int(widths.sum())
        if total > MAX_CANDIDATES:
            return None
        starts = np.repeat(np.arange(problem.num_pieces), widths)
        offsets = np.arange(len(starts)) - np.repeat(np.cumsum(widths) - widths, widths)
        stops = np.repeat(first, widths) + offsets
        parts.append(variant.totals.between(starts, stops) + overhead_s)
    seen: set[tuple[float, float]] = set()
    for pair in problem.pairs:
        key = float(problem.link_latency_s[pair]), float(problem.link_s_per_byte[pair])
        if key not in seen:
            seen.add(key)
            row = problem.link_row_s(*pair)
            parts.append(row[(row > above_s) & (row < below_s)])
            total += len(parts[-1])
            if total > MAX_CANDIDATES:
                return None
    values = np.unique(np.concatenate(parts))
    return values[(values > above_s) & (values < below_s)]


def _coupled_periods(problem: ChainProblem, above_s: float, below_s: float) -> Floats | None:
    """The same where a load is a sum of three; None too where that takes too long to list."""
    num = problem.num_pieces
    if len(problem.variants) * (problem.num_classes * num) ** 2 > MAX_TRIPLES:
        return None
    starts, stops = np.arange(num)[:, None], np.arange(num + 1)[None, :]
    parts = _port_periods(problem, above_s, below_s)
    if parts is None:
        return None
    if not problem.serial:
        parts += [problem.source_s, problem.sink_s]
        parts += [problem.link_row_s(*pair) for pair in problem.pairs]
    total = 0
    for variant in problem.variants:
        here = variant.device_class
        seconds = variant.totals.between(starts, stops) + float(problem.overhead_s[here])
        seconds[(stops <= starts) | (stops > variant.furthest[:, None])] = math.inf
        received = [problem.receiver_row_s(a, b)[:-1] for a, b in problem.pairs if b == here]
        sent = [problem.sender_row_s(a, b) for a, b in problem.pairs if a == here]
        for into in _different(received, num):
            into[0] = problem.first_load_s(here)
            for out in _different(sent, num + 1):
                out[-1] = problem.last_load_s(here)
                loads = seconds + into[:, None] + out
                parts.append(loads[(loads > above_s) & (loads < below_s)])
                total += len(parts[-1])
                if total > MAX_CANDIDATES:
                    return None
    values = np.unique(np.concatenate(parts))
    return values[(values > above_s) & (values < below_s)]


def _port_periods(problem: ChainProblem, above_s: float, below_s: float) -> list[Floats] | None:
    """Seconds of ports that several messages share; None if there are too many."""
    if problem.shared is None:
        return []
    parts: list[Floats] = [np.array([problem.shared.caller_s])]
    for port in problem.shared.ports:
        if port.by_stop.size**2 > MAX_TRIPLES:
            return None
        table = port.table_s()
        parts.append(np.unique(table[(table > above_s) & (table < below_s)]))
        if sum(map(len, parts)) > MAX_CANDIDATES:
            return None
    return parts


def _different(rows: list[Floats], size: int) -> Floats:
    """Each row once; a row that no stage can use where there is none."""
    return np.unique(np.stack(rows), axis=0) if rows else np.full((1, size), math.inf)
