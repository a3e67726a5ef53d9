"""What may be wanted of a plan for a graph: an objective, and limits on the other one.

All of it comes from one question to the search: the least latency among plans whose period is at
most so much. The least period under a limit of latency is found by bisection, since that least
latency never falls as the period has to be shorter; the front by asking again just below the last
plan's period.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Literal

import numpy as np

from cutset.planning.anyorder.downsets import DagProblem, DagSolution
from cutset.planning.anyorder.search import Ended, Opened, open_searches
from cutset.planning.deadline import OutOfTime, OverBudget
from cutset.planning.problem import with_slack
from cutset.planning.watch import note, unheard

MAX_FRONT = 200
"""The most plans of a front."""

MAX_FEW_STATES = 1 << 10
"""Where devices have more states, a first plan is looked for on a part of them."""

_SHARE = 0.5
"""Of the time, for the least period, where after it a limit of latency may have to be kept."""

_CLOSE = 1e-10
"""How near a bisection comes: well within what counts as proven (1e-9)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reached:
    """The best plan for a goal.

    Attributes:
        solution: the plan.
        bound_s: nothing among the same cuts has an objective below this.
        is_complete: whether everything was searched; False where the time was over, or where the
            bound was reached before.
    """

    solution: DagSolution
    bound_s: float
    is_complete: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class DagFront:
    """Plans that no other beats in both period and latency.

    Attributes:
        plans: by falling period.
        is_complete: whether these are all; False where the time was over: those of a smaller
            period may be missing.
    """

    plans: tuple[DagSolution, ...]
    is_complete: bool


class OutOfReach(Exception):  # it is an answer, which the caller puts into words
    """No plan keeps the limits, or none was found in time.

    Attributes:
        limit: ``"period"``, ``"latency"``, or ``"both"`` where each alone can be kept.
        best_s: the least period or latency that there is, or that was found; with ``"both"`` the
            least latency of the plans that keep the period.
        bound_s: nothing is below this: `best_s` where everything was searched.
        family: the cuts among which that is so.
    """

    def __init__(
        self, limit: str, best_s: float, family: str, bound_s: float | None = None
    ) -> None:
        super().__init__(limit)
        self.limit = limit
        self.best_s = best_s
        self.bound_s = best_s if bound_s is None else bound_s
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

    def least_period(self, share: float = 1.0) -> Reached | None:
        """The plan of least period, within a share of the time that is left; None if there is none.

        Raises:
            OutOfTime: the time was over before there was any plan.
        """
        return self._least("period", math.inf, share)

    def quickest(self, max_period_s: float = math.inf) -> Reached | None:
        """The plan of least latency among those that take at most `max_period_s` each.

        Raises:
            OutOfTime: the time was over before there was any plan.
        """
        return self._least("latency", max_period_s, 1.0)

    def _least(
        self, least: Literal["period", "latency"], max_period_s: float, share: float
    ) -> Reached | None:
        """What is least, looked for on few devices and along one order first."""
        last = self._opened[-1].search
        least_s = last.volume_s() if least == "period" else float(last.space.work[-1])
        deadline = last.problem.deadline
        deadline = deadline if share == 1.0 else deadline.sooner(share)
        best: Reached | None = None
        for opened in (*self._first, *self._opened):
            known_s = max_period_s
            if least == "period" and best is not None:
                known_s = best.solution.period_s
            over: Ended | None = None
            try:
                with contextlib.nullcontext() if opened.search is last else unheard():
                    found = opened.search.run(known_s, least=least, deadline=deadline)
            except Ended as ended:
                over, found = ended, ended.found
            if found is not None:
                other = opened.solution(found[1])
                if best is None or _value_s(other, least) < _value_s(best.solution, least):
                    best = Reached(solution=other, bound_s=_value_s(other, least))
                    note(best_s=best.bound_s, bound_s=least_s)
            if over is not None:
                if best is None:
                    raise over
                bound_s = max(least_s, over.bound_s if opened.search is last else 0.0)
                bound_s = min(bound_s, best.bound_s)
                best = dataclasses.replace(best, bound_s=bound_s, is_complete=False)
                break
            is_least = best is not None and best.bound_s <= least_s * (1 + _CLOSE)
            if best is not None and is_least and opened.search is not last:
                best = dataclasses.replace(best, is_complete=False)
                break
        if best is None:
            return None
        solution = dataclasses.replace(best.solution, num_downsets=last.count)
        return dataclasses.replace(best, solution=solution)

    def least_latency(self, max_period_s: float = math.inf) -> DagSolution | None:
        """The plan of least latency among those that take at most `max_period_s` each.

        Raises:
            OutOfTime: the time was over.
        """
        opened = self._opened[-1]
        found = opened.search.run(max_period_s, least="latency")
        return None if found is None else opened.solution(found[1])

    def least_memory(self, raised: tuple[int, ...]) -> int | None:
        """The least memory with which there is a plan, if the classes `raised` had so much."""
        found = self._opened[-1].search.run(math.inf, least="memory", raised=raised)
        return None if found is None else math.ceil(found[0])

    def best(self, *, by_latency: bool, max_latency_s: float, max_period_s: float) -> Reached:
        """The best plan within limits (infinity for none; over a medium the other one has none).

        Raises:
            OutOfReach: no plan keeps them.
            LookupError: there is no plan at all.
        """
        if not by_latency and self._opened[-1].search.problem.medium is not None:
            return self._over_medium(max_period_s)
        if not by_latency and math.isinf(max_latency_s) and math.isinf(max_period_s):
            best = self.least_period()
            if best is None:
                raise LookupError("there is no plan")
            return best
        if by_latency:
            quickest = self.quickest(max_period_s)
            if quickest is None or quickest.solution.latency_s > with_slack(max_latency_s):
                raise self._out_of_reach(quickest, max_latency_s, max_period_s)
            return quickest
        fastest, below_s = self._fastest(max_latency_s, max_period_s)
        if fastest is not None:
            return fastest
        with unheard():
            quickest = self.quickest(max_period_s)
        if quickest is None or quickest.solution.latency_s > with_slack(max_latency_s):
            raise self._out_of_reach(quickest, max_latency_s, max_period_s)
        return self._between(quickest.solution, below_s, max_latency_s)

    def _over_medium(self, max_period_s: float) -> Reached:
        """The plan of least period where all cuts share a medium.

        Bisection: where the least that the medium can be busy, with all else within a limit, is
        more than that, no plan has that period.

        Raises:
            OutOfReach: none keeps the limit.
            LookupError: there is no plan at all.
        """
        with unheard():
            apart = self.least_period()
        if apart is None:
            raise LookupError("there is no plan")
        best, below_s, is_complete = apart.solution, apart.bound_s, apart.is_complete
        if best.busiest_s > best.period_s:
            is_complete = True
        opened = self._opened[-1]
        while below_s < best.busiest_s * (1 - _CLOSE):
            note(best_s=best.busiest_s, bound_s=below_s)
            middle_s = (below_s + best.busiest_s) / 2
            try:
                with unheard():
                    found = opened.search.run(middle_s, least="medium")
            except OutOfTime:
                is_complete = False
                break
            other = best if found is None else opened.solution(found[1])
            if other.busiest_s < best.busiest_s:
                best = dataclasses.replace(other, num_downsets=opened.search.count)
            if found is None or other.medium_s > with_slack(middle_s):
                below_s = middle_s
        below_s = min(below_s, best.busiest_s)
        if best.busiest_s > with_slack(max_period_s):
            raise OutOfReach("period", best.busiest_s, self.family, below_s)
        return Reached(solution=best, bound_s=below_s, is_complete=is_complete)

    def _fastest(self, max_latency_s: float, max_period_s: float) -> tuple[Reached | None, float]:
        """The plan of the least period where that keeps both limits, and a bound of the period.

        Raises:
            OutOfReach: no plan keeps the period.
            LookupError: there is no plan at all.
        """
        below_s = self._opened[-1].search.volume_s()
        fastest: Reached | None = None
        has_limit = math.isfinite(max_latency_s + max_period_s)
        for share in (_SHARE, 1.0) if math.isfinite(max_latency_s) else (1.0,):
            try:
                with unheard() if has_limit else contextlib.nullcontext():
                    found = self.least_period(share)
            except OutOfTime:
                continue
            if found is None:
                raise LookupError("there is no plan")
            below_s, period_s = max(below_s, found.bound_s), found.solution.period_s
            if below_s > with_slack(max_period_s):
                raise OutOfReach("period", period_s, self.family, below_s)
            latency_s = found.solution.latency_s
            if latency_s > with_slack(max_latency_s) or period_s > with_slack(max_period_s):
                break
            if fastest is None or period_s < fastest.solution.period_s:
                fastest = dataclasses.replace(found, bound_s=min(below_s, period_s))
            if fastest.bound_s >= fastest.solution.period_s:
                break
        return fastest, below_s

    def _between(self, within: DagSolution, below_s: float, max_latency_s: float) -> Reached:
        """The least period of a plan that keeps the latency; `within` is one, `below_s` a bound."""
        while below_s < within.period_s * (1 - _CLOSE):
            middle_s = (
                math.sqrt(below_s * within.period_s)
                if below_s > 0
                else within.period_s * _CLOSE  # the next step knows the order of magnitude
            )
            note(best_s=within.period_s, bound_s=below_s)
            try:
                with unheard():
                    found = self.least_latency(middle_s)
            except OutOfTime:
                return Reached(
                    solution=within, bound_s=min(below_s, within.period_s), is_complete=False
                )
            if found is not None and found.latency_s <= with_slack(max_latency_s):
                if found.period_s >= within.period_s:
                    break  # as near as floating point comes
                within = found
            elif middle_s <= below_s:
                break
            else:
                below_s = middle_s
        return Reached(solution=within, bound_s=min(below_s, within.period_s))

    def front(self, *, max_latency_s: float, max_period_s: float) -> DagFront | None:
        """Every plan within limits that no other beats in both.

        Returns:
            The plans, or None where there are more than `MAX_FRONT`.

        Raises:
            OutOfReach: no plan keeps the limits.
            LookupError: there is no plan at all.
            OutOfTime: the time was over before there was a plan.
        """
        found = self.least_latency(max_period_s)
        if found is None or found.latency_s > with_slack(max_latency_s):
            best = None if found is None else Reached(solution=found, bound_s=found.latency_s)
            raise self._out_of_reach(best, max_latency_s, max_period_s)
        plans: list[DagSolution] = []
        while found is not None and found.latency_s <= with_slack(max_latency_s):
            if plans and found.latency_s <= with_slack(plans[-1].latency_s):
                plans.pop()  # as quick, and faster
            plans.append(found)
            if len(plans) > MAX_FRONT:
                return None
            # The slack of a comparison is taken off twice, so that each step is a step.
            below_s = found.period_s * (1 - _CLOSE)
            try:
                found = self.least_latency(below_s) if below_s else None
            except OutOfTime:
                return DagFront(plans=tuple(plans), is_complete=False)
        return DagFront(plans=tuple(plans), is_complete=True)

    def _out_of_reach(
        self, quickest: Reached | None, max_latency_s: float, max_period_s: float
    ) -> Exception:
        if quickest is None:
            fastest = self.least_period()
            if fastest is None:
                return LookupError("there is no plan")
            return OutOfReach("period", fastest.solution.period_s, self.family, fastest.bound_s)
        # Where only a period is asked for, `anyhow` is what `quickest` is.
        latency_s, bound_s = quickest.solution.latency_s, quickest.bound_s
        if math.isfinite(max_period_s):
            try:
                anyhow = self.quickest()
            except OutOfTime:
                return OutOfReach("both", latency_s, self.family, bound_s)
            assert anyhow is not None
            if anyhow.solution.latency_s <= with_slack(max_latency_s):
                return OutOfReach("both", latency_s, self.family, bound_s)
            latency_s, bound_s = anyhow.solution.latency_s, anyhow.bound_s
        return OutOfReach("latency", latency_s, self.family, bound_s)


def _value_s(solution: DagSolution, least: Literal["period", "latency"]) -> float:
    return solution.latency_s if least == "latency" else solution.period_s


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
