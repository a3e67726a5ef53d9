"""Solves a chain problem: picks the method, breaks ties, and says what was proven.

- devices in fixed order, or all equal, or up to 16 distinct ones, or as many states of counts:
  exactly, by plans `within_limit`;
- more, or where the time ends: `relaxed`, which reports a gap.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math

from cutset.planning.certificates import quick_bound
from cutset.planning.deadline import OutOfTime, OverBudget, within
from cutset.planning.group_problem import GroupStages
from cutset.planning.problem import ROUNDING, ChainProblem, Placed, with_slack
from cutset.planning.solvers.period_search import Found, Oracle, least_period
from cutset.planning.solvers.relaxed import Goal, solve_wide
from cutset.planning.solvers.threshold import ThresholdSearch
from cutset.planning.solvers.within_limit import (
    cheapest_within,
    is_chain,
    is_exact,
    least_of,
    num_states,
    period_oracle,
)
from cutset.planning.watch import unheard

logger = logging.getLogger(__name__)

MAX_TIE_SIZE = 30_000
"""Up to this many states times pieces ties are broken by a full search for the cheapest plan."""

MAX_TIE_VISITS = 2_000
"""Beyond, by comparing up to this many ways back from the end; if there are more, by the first."""

MAX_EVEN_STATES = 1 << 12
"""Up to this many states a plan of least latency is also given the least period."""

MAX_COUPLED_TIE_SIZE = 10_000
"""The same, times classes, for coupled problems, whose search has to know both ends of every stage,
and for those with media, whose search keeps sums."""

SEARCH_SHARE = 0.6
"""Of the time that is left, for the exact search; the rest is for what finds plans without it."""

GRACE_S = 2.0
"""Seconds in which some plan is still looked for where the time was over without any."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solution:
    """An answer and its proof.

    Attributes:
        stages: in pipeline order.
        bound_s: no plan has an objective below this.
        proven_by: ``"exhaustion"``, ``"search"`` (ended by time) or ``"relaxation"``.
        groups: the same stages with all their devices, where one has several; else empty.
    """

    stages: tuple[Placed, ...]
    bound_s: float
    proven_by: str
    groups: GroupStages = ()


class Infeasible(Exception):
    """No plan keeps the limits, or none was found; the message says which limit it is.

    Attributes:
        best_s: the least latency or period that could be had (that was found, unless
            `is_proven`), or None where there is none at all.
        is_proven: whether nothing exists; False where not everything was searched.
        bound_s: what no plan can be below, 0 where nothing is known.
    """

    def __init__(
        self,
        message: str,
        *,
        best_s: float | None = None,
        is_proven: bool = True,
        bound_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.best_s = best_s
        self.is_proven = is_proven
        self.bound_s = bound_s


def find_best(problem: ChainProblem, goal: Goal) -> Found | None:
    """An exact answer, ties as they fall; None where no plan keeps the limit.

    Raises:
        OverBudget: the search was out of reach before it gave any plan.
    """
    if goal.by_latency:
        stages = cheapest_within(problem, goal.limit_s, "latency")
        if stages is None:
            return None
        value_s = problem.latency_s(stages)
        return Found(stages, value_s, value_s, is_complete=True)
    with unheard() if math.isfinite(goal.limit_s) else contextlib.nullcontext():
        found = _least_period(problem)
    if found is None or not found.stages or goal.is_kept(problem, found.stages):
        return found
    # The least period without the limit is a lower bound, and much cheaper to find.
    return least_period(problem, _within_latency(problem, goal.limit_s), found.bound_s)


def _least_period(problem: ChainProblem) -> Found | None:
    """The plan of least period; one that is the best without media is tried first."""
    bound_s = quick_bound(problem)
    if problem.shared is not None and problem.num_media:
        without = dataclasses.replace(problem.shared, media=())
        apart = dataclasses.replace(problem, shared=without)
        found = least_period(apart, period_oracle(apart), bound_s)
        if found is None:
            return None
        period_s = problem.period_s(found.stages)
        if not found.is_complete or period_s <= found.bound_s * (1 + ROUNDING):
            return found._replace(period_s=period_s)
        bound_s = found.bound_s
    return least_period(problem, period_oracle(problem), bound_s)


def _searched(problem: ChainProblem, goal: Goal) -> Found | None:
    """As `find_best`, in a part of the time; with nothing in it where this was out of reach."""
    nothing = Found((), math.inf, 0.0, is_complete=False)
    if not is_exact(problem):
        return nothing
    sooner = problem.deadline.sooner(SEARCH_SHARE)
    try:
        return find_best(dataclasses.replace(problem, deadline=sooner), goal)
    except OverBudget as reason:
        logger.info("the exact search is out of reach: %s", reason)
        return nothing


def _solve(problem: ChainProblem, goal: Goal) -> tuple[Found, str]:
    """The best plan there is or that was found, and what proves its bound.

    Raises:
        Infeasible: no plan keeps the limit, or none was found.
    """
    kind = "period" if goal.by_latency else "latency"
    found = _searched(problem, goal)
    if found is not None and found.is_complete:
        return found, "exhaustion"
    if found is None:
        raise _why_none(problem, goal, kind)
    known = [found.stages] if found.stages else []
    wide = solve_wide(_with_grace(problem), goal, find_best, known)
    bound_s = max(wide.bound_s, found.bound_s)
    if wide.stages is None:
        raise _why_none(problem, goal, kind, is_proven=math.isinf(wide.bound_s))
    value_s = goal.value_s(problem, wide.stages)
    name = "search" if found.bound_s >= wide.bound_s and found.bound_s > 0 else "relaxation"
    return Found(wide.stages, value_s, min(bound_s, value_s), is_complete=False), name


def _with_grace(problem: ChainProblem) -> ChainProblem:
    """The problem with a little time even where all of it is over: some plan is to be found."""
    least = within(GRACE_S)
    return problem if problem.deadline.end_s > least.end_s else dataclasses.replace(
        problem, deadline=dataclasses.replace(problem.deadline, end_s=least.end_s)
    )  # fmt: skip


def _why_none(
    problem: ChainProblem, goal: Goal, kind: str, *, is_proven: bool = True
) -> Infeasible:
    """What stands in the way: the limit, with the best value that could be had, or all else."""
    if math.isinf(goal.limit_s):
        return Infeasible("memory", is_proven=is_proven)
    # What has the limit is minimised alone.
    alone = Goal(by_latency=not goal.by_latency)
    try:
        with unheard():
            best, _ = _solve(_with_grace(problem), alone)
    except Infeasible as reason:
        return Infeasible("memory", is_proven=reason.is_proven)
    least_s = alone.value_s(problem, best.stages)
    if best.is_complete:
        return Infeasible(kind, best_s=least_s, bound_s=least_s)
    proven = is_proven or best.bound_s > goal.limit_s * (1 + 1e-9)
    return Infeasible(kind, best_s=least_s, is_proven=proven, bound_s=best.bound_s)


def solve_period(problem: ChainProblem, *, max_latency_s: float | None = None) -> Solution:
    """The plan of least period, ties broken; with a gap where not everything can be searched.

    Args:
        problem: what to solve.
        max_latency_s: the most that one micro-batch may take alone, or None.

    Raises:
        Infeasible: memory, or the latency asked for, allows no plan, or none was found.
    """
    goal = Goal(limit_s=math.inf if max_latency_s is None else max_latency_s)
    found, proven_by = _solve(problem, goal)
    if not found.is_complete:
        return Solution(stages=found.stages, bound_s=found.bound_s, proven_by=proven_by)
    stages = _break_ties(problem, found.stages, found.period_s, max_latency_s)
    return Solution(stages=stages, bound_s=problem.period_s(stages), proven_by=proven_by)


def _within_latency(problem: ChainProblem, max_latency_s: float) -> Oracle:
    alone = problem
    if problem.shared is not None and problem.num_media:
        alone = dataclasses.replace(problem, shared=dataclasses.replace(problem.shared, media=()))

    def oracle(limit_s: float, shared_s: float | None = None) -> tuple[Placed, ...] | None:
        stages = cheapest_within(alone, limit_s, "latency")
        if stages is None or problem.latency_s(stages) > max_latency_s * (1 + ROUNDING):
            return None
        most_s = limit_s if shared_s is None else shared_s
        if problem.media_s(stages) <= with_slack(most_s):
            return stages
        return cheapest_within(
            problem, limit_s, "media", shared_s=most_s, max_latency_s=max_latency_s
        )

    return oracle


def _break_ties(
    problem: ChainProblem,
    stages: tuple[Placed, ...],
    period_s: float,
    max_latency_s: float | None,
) -> tuple[Placed, ...]:
    """Among plans of this period the one whose cuts cost least, where that can be afforded."""
    size = num_states(problem) * problem.num_pieces
    is_dear = problem.is_coupled or problem.num_media
    if is_dear and size * problem.num_classes > MAX_COUPLED_TIE_SIZE:
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
    try:
        quick = cheapest_within(problem, period_s, "latency")
    except OverBudget as reason:
        logger.info("latencies stay as they fell (%s)", reason)
        return stages
    same = quick is not None and problem.ties(quick) <= problem.ties(stages)
    return quick if quick is not None and same else stages


def _cheapest_ties(problem: ChainProblem, period_s: float) -> tuple[Placed, ...] | None:
    if is_chain(problem) or num_states(problem) * problem.num_pieces <= MAX_TIE_SIZE:
        return cheapest_within(problem, period_s, "ties")
    if problem.is_coupled and not problem.has_uniform_moves:
        return None
    found = [ThresholdSearch(s).find_cheapest(period_s, MAX_TIE_VISITS) for s in problem.steps]
    return least_of(problem, found, "ties")


def solve_latency(problem: ChainProblem, *, max_period_s: float | None = None) -> Solution:
    """The plan of least latency, of the least period among those.

    Args:
        problem: what to solve.
        max_period_s: the most that a micro-batch may take in steady state, or None.

    Raises:
        Infeasible: memory, or the period asked for, allows no plan.
    """
    goal = Goal(by_latency=True, limit_s=math.inf if max_period_s is None else max_period_s)
    found, proven_by = _solve(problem, goal)
    if not found.is_complete:
        return Solution(stages=found.stages, bound_s=found.bound_s, proven_by=proven_by)
    stages = _even_out(problem, found.stages)
    return Solution(stages=stages, bound_s=problem.latency_s(stages), proven_by=proven_by)


def _even_out(problem: ChainProblem, stages: tuple[Placed, ...]) -> tuple[Placed, ...]:
    """Among plans of the same latency, one of less period, step by step."""
    latency_s = problem.latency_s(stages) * (1 + ROUNDING)
    period_s = problem.period_s(stages)
    while num_states(problem) <= MAX_EVEN_STATES and period_s > 0:
        try:
            other = cheapest_within(problem, period_s * (1 - 1e-9), "latency")
        except OverBudget:
            return stages
        if other is None or problem.latency_s(other) > latency_s:
            return stages
        stages, period_s = other, _smaller(problem.period_s(other), period_s)
    return stages


def _smaller(period_s: float, before_s: float) -> float:
    """`period_s`, which has to be below the one before: the loops that ask this end by it."""
    if not period_s < before_s:
        raise ArithmeticError(f"a search for less than {before_s!r} s gave {period_s!r} s")
    return period_s


@dataclasses.dataclass(frozen=True, kw_only=True)
class Front:
    """Plans that no other beats in both period and latency.

    Attributes:
        plans: of rising period.
        is_complete: whether these are all; False where time ended the search: plans of a smaller
            period and a larger latency may be missing.
    """

    plans: tuple[tuple[Placed, ...], ...]
    is_complete: bool


def solve_front(problem: ChainProblem) -> Front:
    """Every plan that no other beats in both period and latency.

    From the least latency down: the next plan is the one of least latency among those with a
    period below the last one's (the epsilon-constraint method, exact because each step is).

    Raises:
        Infeasible: memory allows no plan.
        OverBudget: an exact search would need too much memory, or its time was over before there
            was a plan.
    """
    front: list[tuple[Placed, ...]] = []
    limit_s, period_s = math.inf, math.inf
    while period_s > 0:
        try:
            stages = cheapest_within(problem, limit_s, "latency")
        except OutOfTime:
            if not front:
                raise
            return Front(plans=tuple(reversed(front)), is_complete=False)
        if stages is None:
            break
        if front and problem.latency_s(stages) <= problem.latency_s(front[-1]) * (1 + ROUNDING):
            front.pop()
        front.append(stages)
        period_s = _smaller(problem.period_s(stages), period_s)
        limit_s = period_s * (1 - 1e-11)
    if not front:
        raise Infeasible("memory")
    return Front(plans=tuple(reversed(front)), is_complete=True)
