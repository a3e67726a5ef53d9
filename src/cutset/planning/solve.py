"""Solves a chain problem: picks the method, breaks ties, and says what was proven.

- devices in fixed order, or all equal: `fixed` (polynomial);
- any order, up to 16 distinct devices or as many states of counts: `threshold` for the period,
  `additive` where costs add up (latency, ties, serial plans over unequal links);
- more: `relaxed`, which reports a gap.
"""

from __future__ import annotations

import dataclasses
import logging
import math

from cutset.planning.additive import cheapest
from cutset.planning.bounds import quick_bound
from cutset.planning.fixed import cheapest_fixed, feasible_fixed
from cutset.planning.lattice import OverBudget
from cutset.planning.problem import ROUNDING, ChainProblem, Placed
from cutset.planning.relaxed import solve_relaxed
from cutset.planning.search import Oracle, least_period
from cutset.planning.threshold import ThresholdSearch

logger = logging.getLogger(__name__)

MAX_STATES = 1 << 17
"""States of a free order that are searched exactly: 16 distinct devices have 2^16."""

MAX_TIE_SIZE = 30_000
"""Up to this many states times pieces ties are broken by a full search for the cheapest plan."""

MAX_TIE_VISITS = 2_000
"""Beyond, by comparing up to this many ways back from the end; if there are more, by the first."""

MAX_EVEN_STATES = 1 << 12
"""Up to this many states a plan of least latency is also given the least period."""

MAX_SERIAL_TIE_SIZE = 10_000
"""The same, times classes, for serial plans: their search has to know both ends of every stage."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """An answer and its proof.

    Attributes:
        stages: in pipeline order.
        bound_s: no plan has an objective below this.
        proven_by: ``"exhaustion"`` or ``"relaxation"``.
    """

    stages: tuple[Placed, ...]
    bound_s: float
    proven_by: str


class Infeasible(Exception):
    """No plan keeps the limits; the message says which limit it is.

    Attributes:
        best_s: the least latency or period that could be had, or None where memory is the reason.
    """

    def __init__(self, message: str, *, best_s: float | None = None) -> None:
        super().__init__(message)
        self.best_s = best_s


def is_chain(problem: ChainProblem) -> bool:
    """Whether devices come in a fixed order, given or because all are equal."""
    return problem.fixed_order or problem.num_classes == 1


def num_states(problem: ChainProblem) -> int:
    """How many states a free order has: the product of each class's count + 1."""
    return 1 if is_chain(problem) else math.prod(count + 1 for count in problem.counts)


def is_exact(problem: ChainProblem) -> bool:
    """Whether `solve_period` and `solve_latency` search this problem exhaustively."""
    return num_states(problem) <= MAX_STATES


def cheapest_within(problem: ChainProblem, limit_s: float, cost: str) -> tuple[Placed, ...] | None:
    """The plan of least ``"latency"`` or ``"ties"`` with a period of at most `limit_s`, or None.

    Raises:
        OverBudget: an exact search would need too much memory.
    """
    if is_chain(problem) and not (problem.serial and math.isfinite(limit_s)):
        return cheapest_fixed(problem, limit_s, cost=cost)
    return cheapest(problem, limit_s, cost=cost)


def period_oracle(problem: ChainProblem) -> Oracle:
    """A function that finds some plan with a period of at most its argument, or None."""
    if is_chain(problem):
        if problem.serial:
            return lambda limit_s: cheapest_fixed(problem, limit_s, cost="load")
        return lambda limit_s: feasible_fixed(problem, limit_s)
    if not problem.serial or problem.has_uniform_links:
        try:
            return ThresholdSearch(problem).find
        except OverBudget as reason:
            logger.info("bit sets are out of reach (%s); searching by cost", reason)
    cost = "load" if problem.serial else "ties"
    return lambda limit_s: cheapest(problem, limit_s, cost=cost, stop_at_first=True)


def solve_period(problem: ChainProblem, *, max_latency_s: float | None = None) -> Solution:
    """The plan of least period, ties broken.

    Args:
        problem: what to solve.
        max_latency_s: the most that one micro-batch may take alone, or None.

    Raises:
        Infeasible: memory, or the latency asked for, allows no plan.
    """
    if not is_exact(problem):
        return _relaxed_period(problem, max_latency_s)
    oracle = period_oracle(problem)
    if max_latency_s is not None:
        oracle = _within_latency(problem, max_latency_s)
    found = least_period(problem, oracle, quick_bound(problem))
    if found is None:
        if max_latency_s is not None:
            least = cheapest_within(problem, math.inf, "latency")
            if least is not None:
                raise Infeasible("latency", best_s=problem.latency_s(least))
        raise Infeasible("memory")
    stages, period_s = found
    stages = _break_ties(problem, stages, period_s, max_latency_s)
    return Solution(stages=stages, bound_s=problem.period_s(stages), proven_by="exhaustion")


def _within_latency(problem: ChainProblem, max_latency_s: float) -> Oracle:
    def oracle(limit_s: float) -> tuple[Placed, ...] | None:
        stages = cheapest_within(problem, limit_s, "latency")
        fits = stages is not None and problem.latency_s(stages) <= max_latency_s * (1 + ROUNDING)
        return stages if fits else None

    return oracle


def _break_ties(
    problem: ChainProblem,
    stages: tuple[Placed, ...],
    period_s: float,
    max_latency_s: float | None,
) -> tuple[Placed, ...]:
    """Among plans of this period the one whose cuts cost least, where that can be afforded."""
    size = num_states(problem) * problem.num_pieces
    if problem.serial and size * problem.num_classes > MAX_SERIAL_TIE_SIZE:
        return stages
    try:
        other = _cheapest_ties(problem, period_s)
    except OverBudget as reason:
        logger.info("ties stay as they fell (%s)", reason)
        return stages
    if other is None or problem.period_s(other) > period_s * (1 + 4 * ROUNDING):
        return stages
    if max_latency_s is not None and problem.latency_s(other) > max_latency_s * (1 + ROUNDING):
        return stages
    stages = other if problem.ties(other) < problem.ties(stages) else stages
    if size > MAX_TIE_SIZE:
        return stages
    quick = cheapest_within(problem, period_s, "latency")
    same = quick is not None and problem.ties(quick) <= problem.ties(stages)
    return quick if quick is not None and same else stages


def _cheapest_ties(problem: ChainProblem, period_s: float) -> tuple[Placed, ...] | None:
    if is_chain(problem) or num_states(problem) * problem.num_pieces <= MAX_TIE_SIZE:
        return cheapest_within(problem, period_s, "ties")
    if problem.serial and not problem.has_uniform_links:
        return None
    return ThresholdSearch(problem).find_cheapest(period_s, MAX_TIE_VISITS)


def solve_latency(problem: ChainProblem, *, max_period_s: float | None = None) -> Solution:
    """The plan of least latency, of the least period among those.

    Args:
        problem: what to solve.
        max_period_s: the most that a micro-batch may take in steady state, or None.

    Raises:
        Infeasible: memory, or the period asked for, allows no plan.
    """
    limit_s = math.inf if max_period_s is None else max_period_s
    if not is_exact(problem):
        return _relaxed_latency(problem, max_period_s)
    try:
        stages = cheapest_within(problem, limit_s, "latency")
    except OverBudget as reason:
        logger.info("the exact search is out of reach (%s)", reason)
        return _relaxed_latency(problem, max_period_s)
    if stages is None:
        if max_period_s is not None:
            fastest = least_period(problem, period_oracle(problem), quick_bound(problem))
            if fastest is not None:
                raise Infeasible("period", best_s=fastest[1])
        raise Infeasible("memory")
    stages = _even_out(problem, stages)
    return Solution(stages=stages, bound_s=problem.latency_s(stages), proven_by="exhaustion")


def _even_out(problem: ChainProblem, stages: tuple[Placed, ...]) -> tuple[Placed, ...]:
    """Among plans of the same latency, one of less period: halving what is left to gain."""
    latency_s = problem.latency_s(stages) * (1 + ROUNDING)
    while num_states(problem) <= MAX_EVEN_STATES:
        period_s = problem.period_s(stages)
        if period_s <= 0:
            return stages
        try:
            other = cheapest_within(problem, period_s * (1 - 1e-9), "latency")
        except OverBudget:
            return stages
        if other is None or problem.latency_s(other) > latency_s:
            return stages
        stages = other
    return stages


def solve_front(problem: ChainProblem) -> tuple[tuple[Placed, ...], ...]:
    """Every plan that no other beats in both period and latency, of rising period.

    From the least latency down: the next plan is the one of least latency among those with a
    period below the last one's (the epsilon-constraint method, exact because each step is).

    Raises:
        Infeasible: memory allows no plan.
        OverBudget: an exact search would need too much memory.
    """
    front: list[tuple[Placed, ...]] = []
    limit_s = math.inf
    while True:
        stages = cheapest_within(problem, limit_s, "latency")
        if stages is None:
            break
        if front and problem.latency_s(stages) <= problem.latency_s(front[-1]) * (1 + ROUNDING):
            front.pop()
        front.append(stages)
        period_s = problem.period_s(stages)
        if period_s <= 0:
            break
        limit_s = period_s * (1 - 1e-11)
    if not front:
        raise Infeasible("memory")
    return tuple(reversed(front))


def _relaxed_period(problem: ChainProblem, max_latency_s: float | None) -> Solution:
    found = solve_relaxed(problem, _exact_period)
    if found is None:
        raise Infeasible("memory")
    stages, bound_s = found
    latency_s = problem.latency_s(stages)
    if max_latency_s is not None and latency_s > max_latency_s:
        # Not proven impossible; the one plan that always has little latency may still do.
        alone = _one_device(problem)
        if alone is None or problem.latency_s(alone) > max_latency_s:
            best = latency_s if alone is None else min(latency_s, problem.latency_s(alone))
            raise Infeasible("latency", best_s=best)
        stages = alone
    return Solution(stages=stages, bound_s=bound_s, proven_by="relaxation")


def _relaxed_latency(problem: ChainProblem, max_period_s: float | None) -> Solution:
    work, _ = problem.volume()
    bound_s = float(work.sum() + problem.source_s.min() + problem.sink_s.min())
    options = [_one_device(problem)]
    found = solve_relaxed(problem, _exact_period)
    options.append(found[0] if found else None)
    limit_s = math.inf if max_period_s is None else max_period_s * (1 + ROUNDING)
    plans = [p for p in options if p is not None and problem.period_s(p) <= limit_s]
    if not plans:
        if found is not None:
            raise Infeasible("period", best_s=problem.period_s(found[0]))
        raise Infeasible("memory")
    stages = min(plans, key=problem.latency_s)
    return Solution(stages=stages, bound_s=bound_s, proven_by="relaxation")


def _one_device(problem: ChainProblem) -> tuple[Placed, ...] | None:
    if problem.num_stages not in (None, 1):
        return None
    plans = [(Placed(0, problem.num_pieces, c),) for c in range(problem.num_classes)]
    plans = [plan for plan in plans if math.isfinite(problem.latency_s(plan))]
    return min(plans, key=problem.latency_s, default=None)


def _exact_period(problem: ChainProblem) -> tuple[tuple[Placed, ...], float] | None:
    return least_period(problem, period_oracle(problem), quick_bound(problem))
