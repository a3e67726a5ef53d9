"""The best plan with groups of devices, and the bound that proves it."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from typing import TypeAlias

from cutset.planning.certificates import spread_bound
from cutset.planning.deadline import OverBudget
from cutset.planning.group_problem import GroupProblem, GroupStages
from cutset.planning.problem import ROUNDING
from cutset.planning.solvers.groups import GroupSearch
from cutset.planning.solvers.unequal_groups import UnequalSearch, is_within_reach
from cutset.planning.watch import note

logger = logging.getLogger(__name__)

Ask: TypeAlias = Callable[[float], "GroupStages | None"]

CLOSE = 1e-9
"""Relative width to which a bound is narrowed."""

NARROW = 1e-5
"""Relative width from which it is asked whether anything is better than the best plan."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSolution:
    """An answer and its proof.

    Attributes:
        stages: in pipeline order.
        bound_s: no plan has an objective below this.
        proven_by: ``"exhaustion"``, ``"search"`` (ended by time) or ``"relaxation"``.
    """

    stages: GroupStages
    bound_s: float
    proven_by: str


def _oracle(problem: GroupProblem, *, dearest: bool, max_latency_s: float | None) -> Ask:
    """Finds some plan with a period of at most its argument, or None."""
    chain = problem.chain
    loose = dataclasses.replace(
        problem,
        chain=dataclasses.replace(
            chain, variants=tuple(v.with_stages(chain.num_stages or 1) for v in chain.variants)
        ),
    )

    def ask_one(step: GroupProblem, limit_s: float) -> GroupStages | None:
        search = GroupSearch(problem=step, dearest=dearest)
        if max_latency_s is None:
            return search.find(limit_s)
        found = search.soonest(limit_s)
        late = found is not None and step.latency_s(found) > max_latency_s * (1 + ROUNDING)
        return None if late else found

    def ask(limit_s: float) -> GroupStages | None:
        # What no plan keeps even if its stages had the room of one alone, none keeps.
        found = ask_one(loose, limit_s)
        if found is None or problem.fits(found):
            return found
        for step in problem.steps:
            found = ask_one(step, limit_s)
            if found is not None:
                return found
        return None

    return ask


@dataclasses.dataclass
class _Bisection:
    """The best plan so far, and the largest limit that has none."""

    problem: GroupProblem
    ask: Ask
    best: GroupStages | None
    period_s: float
    failed_s: float

    def run(self) -> bool:
        """Narrows until the two meet; False where the time or the memory ended that."""
        try:
            if self.best is None and not self._tell(math.inf):
                return True
            step = 1e-4
            limit_s = self.failed_s * (1 + ROUNDING)
            while limit_s < self.period_s * (1 - 4 * ROUNDING) and limit_s > 0:
                if self._tell(limit_s):
                    break
                limit_s, step = limit_s * (1 + step), step * 3
            self._narrow()
        except OverBudget as reason:
            logger.info("the search for groups was ended: %s", reason)
            return False
        return True

    def _narrow(self) -> None:
        if self.failed_s <= 0 and self.period_s > 0:
            self._tell(0.0)
        while self.period_s > max(self.failed_s, 0.0) * (1 + 4 * ROUNDING) and self.period_s > 0:
            low_s, high_s = self.failed_s, self.period_s
            if high_s - low_s <= high_s * NARROW:
                limit_s = high_s * (1 - 2 * ROUNDING)
                if not self._tell(limit_s):
                    return
            else:
                middle_s = math.sqrt(low_s) * math.sqrt(high_s) if low_s > 0 else high_s / 64
                self._tell(min(max(middle_s, low_s), high_s))

    def _tell(self, limit_s: float) -> bool:
        found = self.ask(limit_s)
        if found is None:
            self.failed_s = max(self.failed_s, limit_s)
            note(bound_s=limit_s)
            return False
        period_s = self.problem.period_s(found)
        if period_s < self.period_s:
            self.best, self.period_s = found, period_s
            note(best_s=period_s)
        elif limit_s < self.period_s:
            # Partners are not what they were taken to be: nothing better is known from here on.
            raise OverBudget("a plan within the limit is none with its real links")
        return True


def least_group_period(
    problem: GroupProblem,
    *,
    known: GroupStages | None = None,
    max_latency_s: float | None = None,
) -> GroupSolution | None:
    """The plan of least period; None where there is none.

    Args:
        problem: what to solve.
        known: a plan that keeps the limits.
        max_latency_s: the most that one micro-batch may take alone on the worst route, or None.

    Raises:
        OverBudget: the search was out of reach before it gave any plan.
    """
    lower_s = spread_bound(problem.chain) * (1 - 4 * ROUNDING)
    period_s = math.inf if known is None else problem.period_s(known)
    ask = _oracle(problem, dearest=True, max_latency_s=max_latency_s)
    upper = _Bisection(problem, ask, known, period_s, lower_s)
    is_complete = upper.run()
    if upper.best is None and not is_complete:
        raise OverBudget("no plan was found")
    if upper.best is None and problem.has_equal_partners:
        return None
    if problem.has_equal_partners:
        assert upper.best is not None
        bound_s = upper.period_s if is_complete else min(upper.failed_s, upper.period_s)
        return GroupSolution(
            stages=upper.best, bound_s=bound_s, proven_by="exhaustion" if is_complete else "search"
        )
    return _with_gap(problem, upper, lower_s, max_latency_s)


def _with_gap(
    problem: GroupProblem, upper: _Bisection, lower_s: float, max_latency_s: float | None
) -> GroupSolution | None:
    """Closes what lies between the worst and the best links, or tells how much that is.

    Raises:
        OverBudget: no plan was found, and not that there is none.
    """
    seen = [] if upper.best is None else [upper.best]
    bound_s = _easier_bound(problem, lower_s, upper.period_s, max_latency_s, seen)
    best = min(seen, key=problem.period_s, default=None)
    period_s = math.inf if best is None else problem.period_s(best)
    if best is None and math.isinf(bound_s):
        return None
    if best is not None and period_s <= bound_s * (1 + 4 * ROUNDING):
        return GroupSolution(stages=best, bound_s=period_s, proven_by="exhaustion")
    if max_latency_s is None and is_within_reach(problem):
        steps = [UnequalSearch(step) for step in problem.steps]

        def ask(limit_s: float) -> GroupStages | None:
            return next((s for each in steps if (s := each.find(limit_s)) is not None), None)

        exact = _Bisection(problem, ask, best, period_s, bound_s)
        is_complete = exact.run()
        if exact.best is None and is_complete:
            return None
        if exact.best is None:
            raise OverBudget("no plan was found")
        return GroupSolution(
            stages=exact.best,
            bound_s=exact.period_s if is_complete else min(exact.failed_s, exact.period_s),
            proven_by="exhaustion" if is_complete else "search",
        )
    if best is None:
        raise OverBudget("no plan was found")
    return GroupSolution(stages=best, bound_s=min(bound_s, period_s), proven_by="relaxation")


def _easier_bound(
    problem: GroupProblem,
    low_s: float,
    high_s: float,
    max_latency_s: float | None,
    seen: list[GroupStages],
) -> float:
    """The largest limit that has no plan even if each device had its best links only.

    Plans that were found on the way are added to `seen`.
    """
    ask = _oracle(problem, dearest=False, max_latency_s=None)
    try:
        if math.isinf(high_s):
            found = ask(math.inf)
            if found is None:
                return math.inf
            if problem.fits(found) and math.isfinite(problem.period_s(found)):
                seen.append(found)
                high_s = problem.period_s(found)
            else:
                return low_s
        if low_s <= 0 and ask(0.0) is not None:
            return 0.0
        is_asked = False
        while high_s - low_s > high_s * CLOSE:
            middle_s = math.sqrt(low_s) * math.sqrt(high_s) if low_s > 0 else high_s / 64
            best_s = min(map(problem.period_s, seen), default=math.inf)
            if high_s - low_s <= high_s * NARROW and best_s <= high_s * 2 and not is_asked:
                # Where the best plan has its best links, nothing is left.
                middle_s, is_asked = min(high_s, best_s * (1 - 2 * ROUNDING)), True
            found = ask(middle_s)
            if found is None:
                low_s = max(low_s, middle_s)
                continue
            high_s = min(middle_s, high_s)
            late = max_latency_s is not None and problem.latency_s(found) > max_latency_s
            if problem.fits(found) and not late:
                seen.append(found)
    except OverBudget as reason:
        logger.info("the search with the best links was ended: %s", reason)
    return low_s
