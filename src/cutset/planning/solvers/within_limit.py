"""Plans within a limit: any at all, or the cheapest, by the method that fits the problem.

- devices in fixed order, or all equal: `fixed` (polynomial);
- any order: `threshold` for any plan, `additive` for the cheapest and where loads depend on both
  neighbours of a stage;
- media, or a limit on the latency beside them: `labels`; the least that one medium alone can be
  busy is a cost that adds up.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from cutset.planning.deadline import OverBudget
from cutset.planning.problem import ChainProblem, Placed, with_slack
from cutset.planning.solvers.additive import cheapest
from cutset.planning.solvers.fixed import cheapest_fixed, feasible_fixed
from cutset.planning.solvers.labels import cheapest_within_sums
from cutset.planning.solvers.period_search import Oracle
from cutset.planning.solvers.threshold import ThresholdSearch

logger = logging.getLogger(__name__)

MAX_STATES = 1 << 17
"""States of a free order that are searched exactly: 16 distinct devices have 2^16."""


def is_chain(problem: ChainProblem) -> bool:
    """Whether devices come in a fixed order, given or because all are equal."""
    return problem.fixed_order or problem.num_classes == 1


def num_states(problem: ChainProblem) -> int:
    """How many states a free order has: the product of each class's count + 1."""
    return (
        1
        if is_chain(problem) or problem.reuse
        else math.prod(count + 1 for count in problem.counts)
    )


def is_exact(problem: ChainProblem) -> bool:
    """Whether this problem has few enough states to be searched exhaustively."""
    return num_states(problem) <= MAX_STATES


def cheapest_within(
    problem: ChainProblem,
    limit_s: float,
    cost: str,
    *,
    shared_s: float | None = None,
    max_latency_s: float = math.inf,
) -> tuple[Placed, ...] | None:
    """The plan of least cost with a period of at most `limit_s`, or None.

    Args:
        problem: any.
        limit_s: seconds; infinity for no limit.
        cost: ``"latency"``, ``"ties"``, or ``"media"``: the seconds of the busiest medium.
        shared_s: what media may be busy for; where None, as long as the rest.
        max_latency_s: the most that one micro-batch may take alone; for ``"media"`` only.

    Raises:
        OverBudget: an exact search would need too much memory.
    """
    shared_s = limit_s if shared_s is None else shared_s
    found = [
        _cheapest_in_step(step, limit_s, cost, shared_s, max_latency_s) for step in problem.steps
    ]
    return least_of(problem, found, cost)


def least_of(
    problem: ChainProblem, plans: Sequence[tuple[Placed, ...] | None], cost: str
) -> tuple[Placed, ...] | None:
    """The plan of least cost, of those that there are."""
    value = {"latency": problem.latency_s, "ties": problem.ties, "media": problem.media_s}[cost]
    return min((plan for plan in plans if plan is not None), key=value, default=None)


def _cheapest_in_step(
    problem: ChainProblem, limit_s: float, cost: str, shared_s: float, max_latency_s: float
) -> tuple[Placed, ...] | None:
    if problem.floor_s > with_slack(limit_s):
        return None
    if problem.num_media and (cost == "media" or math.isfinite(shared_s)):
        if cost != "media" or problem.num_media > 1 or math.isfinite(max_latency_s):
            return cheapest_within_sums(
                problem, limit_s, cost=cost, shared_s=shared_s, max_latency_s=max_latency_s
            )
        stages = _cheapest_alone(problem, limit_s, "medium 0")
        is_kept = stages is not None and problem.media_s(stages) <= with_slack(shared_s)
        return stages if is_kept else None
    return _cheapest_alone(problem, limit_s, cost)


def _cheapest_alone(problem: ChainProblem, limit_s: float, cost: str) -> tuple[Placed, ...] | None:
    """The plan of least cost within a limit that is none for media."""
    if is_chain(problem) and not (problem.is_coupled and math.isfinite(limit_s)):
        return cheapest_fixed(problem, limit_s, cost=cost)
    return cheapest(problem, limit_s, cost=cost)


def period_oracle(problem: ChainProblem) -> Oracle:
    """A function that finds some plan with a period of at most its argument, or None."""
    oracles = [_oracle_of_step(step) for step in problem.steps]

    def ask(limit_s: float, shared_s: float | None = None) -> tuple[Placed, ...] | None:
        for k, oracle in enumerate(oracles):
            stages = oracle(limit_s, shared_s)
            if stages is not None:
                oracles.insert(0, oracles.pop(k))  # likely the one that has the next plan too
                return stages
        return None

    return oracles[0] if len(oracles) == 1 else ask


def _oracle_of_step(problem: ChainProblem) -> Oracle:
    alone = _oracle_alone(problem)

    def ask(limit_s: float, shared_s: float | None = None) -> tuple[Placed, ...] | None:
        if problem.floor_s > with_slack(limit_s):
            return None
        stages = alone(limit_s)
        most_s = limit_s if shared_s is None else shared_s
        if stages is None or problem.media_s(stages) <= with_slack(most_s):
            return stages
        return _cheapest_in_step(problem, limit_s, "media", most_s, math.inf)

    return ask


def _oracle_alone(problem: ChainProblem) -> Oracle:
    """The oracle of a step for limits that are none for media."""
    if is_chain(problem):
        if problem.is_coupled:
            return lambda limit_s: cheapest_fixed(problem, limit_s, cost="load")
        return lambda limit_s: feasible_fixed(problem, limit_s)
    if not problem.is_coupled or problem.has_uniform_moves:
        try:
            return ThresholdSearch(problem).find
        except OverBudget as reason:
            logger.info("bit sets are out of reach (%s); searching by cost", reason)
    cost = "load" if problem.is_coupled else "ties"
    return lambda limit_s: cheapest(problem, limit_s, cost=cost, stop_at_first=True)
