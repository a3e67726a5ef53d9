"""What may be wanted of a plan for a graph: an objective, and limits on the other one.

All of it comes from one question to the search: the least latency among plans whose period is at
most so much. The least period under a limit of latency is found by bisection, since that least
latency never falls as the period has to be shorter; the front by asking again just below the last
plan's period.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from cutset.planning.anyorder.downsets import DagProblem, DagSolution
from cutset.planning.anyorder.search import Opened, open_searches
from cutset.planning.deadline import OutOfTime, OverBudget
from cutset.planning.problem import with_slack

MAX_FRONT = 200
"""The most plans of a front."""

MAX_FEW_STATES = 1 << 10
"""Where devices have more states, a first plan is looked for on a part of them."""

_CLOSE = 1e-10
"""How near a bisection comes: well within what counts as proven (1e-9)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """The best plan for a goal.

    Attributes:
        solution: the plan.
        bound_s: nothing among the same cuts has an objective below this.
    """

    solution: DagSolution
    bound_s: float


class OutOfReach(Exception):  # it is an answer, which the caller puts into words
    """No plan keeps the limits.

    Attributes:
        limit: ``"period"``, ``"latency"``, or ``"both"`` where each alone can be kept.
        best_s: the least period or latency that there is; with ``"both"`` the least latency of
            the plans that keep the period.
        family: the cuts among which that is so.
    """

    def __init__(self, limit: str, best_s: float, family: str) -> None:
        super().__init__(limit)
        self.limit = limit
        self.best_s = best_s
        self.family = family


class Goals:
    """Answers about one problem.

    Attributes:
        family: the cuts among which the answers hold.

    Raises:
        OverBudget: the counts of devices have too many states.
    """

    def __init__(self, problem: DagProblem) -> None:
        few = _with_few_devices(problem)
        self._first: list[Opened] = []
        if few is not None:
            self._first = [
                dataclasses.replace(opened, family="orders") for opened in open_searches(few)
            ]
        try:
            self._opened = open_searches(problem)
        except OverBudget:
            if not self._first:
                raise
            self._opened, self._first = self._first, []
        self.family = self._opened[-1].family

    def least_period(self) -> Reached | None:
        """The plan of least period; None if there is no plan.

        Where the time ends after a first plan, that one with a bound from the volume of work.
        """
        bound_s, best = 0.0, None
        for opened in (*self._first, *self._opened):
            try:
                found = opened.search.run(math.inf if best is None else best.period_s)
            except OutOfTime:
                if best is None:
                    raise
                bound_s = min(self._opened[-1].search.volume_s(), best.period_s)
                break
            if found is not None:
                best = opened.solution(found[1])
                bound_s = best.period_s
        if best is None:
            return None
        best = dataclasses.replace(best, num_downsets=self._opened[-1].search.count)
        return Reached(solution=best, bound_s=bound_s)

    def least_latency(self, max_period_s: float = math.inf) -> DagSolution | None:
        """The plan of least latency among those that take at most `max_period_s` each."""
        opened = self._opened[-1]
        found = opened.search.run(max_period_s, least="latency")
        return None if found is None else opened.solution(found[1])

    def least_memory(self, raised: tuple[int, ...]) -> int | None:
        """The least memory with which there is a plan, if the classes `raised` had so much."""
        found = self._opened[-1].search.run(math.inf, least="memory", raised=raised)
        return None if found is None else math.ceil(found[0])

    def best(self, *, by_latency: bool, max_latency_s: float, max_period_s: float) -> Reached:
        """The best plan within limits (infinity for none).

        Raises:
            OutOfReach: no plan keeps them.
            LookupError: there is no plan at all.
        """
        if not by_latency and math.isinf(max_latency_s) and math.isinf(max_period_s):
            best = self.least_period()
            if best is None:
                raise LookupError("there is no plan")
            return best
        quickest = self.least_latency(max_period_s)
        if quickest is None or quickest.latency_s > with_slack(max_latency_s):
            raise self._out_of_reach(quickest, max_latency_s, max_period_s)
        if by_latency:
            return Reached(solution=quickest, bound_s=quickest.latency_s)
        fastest = self.least_period()
        assert fastest is not None
        if fastest.solution.latency_s <= with_slack(max_latency_s):
            return fastest
        return self._between(quickest, fastest.bound_s, max_latency_s)

    def _between(self, within: DagSolution, below_s: float, max_latency_s: float) -> Reached:
        """The least period of a plan that keeps the latency; `within` is one, `below_s` a bound."""
        while below_s < within.period_s * (1 - _CLOSE):
            middle_s = (
                math.sqrt(below_s * within.period_s)
                if below_s > 0
                else within.period_s * _CLOSE  # the next step knows the order of magnitude
            )
            try:
                found = self.least_latency(middle_s)
            except OutOfTime:
                break
            if found is not None and found.latency_s <= with_slack(max_latency_s):
                if found.period_s >= within.period_s:
                    break  # as near as floating point comes
                within = found
            elif middle_s <= below_s:
                break
            else:
                below_s = middle_s
        return Reached(solution=within, bound_s=min(below_s, within.period_s))

    def front(self, *, max_latency_s: float, max_period_s: float) -> tuple[DagSolution, ...] | None:
        """Every plan within limits that no other beats in both, by falling period.

        Returns:
            The plans, or None where there are more than `MAX_FRONT`.

        Raises:
            OutOfReach: no plan keeps the limits.
            LookupError: there is no plan at all.
        """
        found = self.least_latency(max_period_s)
        if found is None or found.latency_s > with_slack(max_latency_s):
            raise self._out_of_reach(found, max_latency_s, max_period_s)
        plans: list[DagSolution] = []
        while found is not None and found.latency_s <= with_slack(max_latency_s):
            if plans and found.latency_s <= with_slack(plans[-1].latency_s):
                plans.pop()  # as quick, and faster
            plans.append(found)
            if len(plans) > MAX_FRONT:
                return None
            # The slack of a comparison is taken off twice, so that each step is a step.
            found = self.least_latency(found.period_s * (1 - _CLOSE)) if found.period_s else None
        return tuple(plans)

    def _out_of_reach(
        self, quickest: DagSolution | None, max_latency_s: float, max_period_s: float
    ) -> Exception:
        if quickest is None:
            fastest = self.least_period()
            if fastest is None:
                return LookupError("there is no plan")
            return OutOfReach("period", fastest.bound_s, self.family)
        anyhow = self.least_latency()
        assert anyhow is not None
        if anyhow.latency_s <= with_slack(max_latency_s) and math.isfinite(max_period_s):
            return OutOfReach("both", quickest.latency_s, self.family)
        return OutOfReach("latency", anyhow.latency_s, self.family)


def _with_few_devices(problem: DagProblem) -> DagProblem | None:
    """The problem with the fastest devices only, for a first plan; None where all are few enough.

    A plan for a part of the devices is one for all of them.
    """

    def states(counts: list[int]) -> int:
        return math.prod(count + 1 for count in counts)

    if states(list(problem.counts)) <= MAX_FEW_STATES:
        return None
    least = problem.seconds.min(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.where(least > 0, least / problem.seconds, 0.0).max(axis=1)
    counts = [0] * len(problem.counts)
    for c in sorted(range(len(counts)), key=lambda c: (-rates[c], c)):
        fuller = [*counts[:c], problem.counts[c], *counts[c + 1 :]]
        if states(fuller) > MAX_FEW_STATES and sum(counts) >= (problem.num_stages or 1):
            break
        counts = fuller
    return dataclasses.replace(problem, counts=tuple(counts))
