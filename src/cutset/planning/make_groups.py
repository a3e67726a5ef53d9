"""Plans with groups of devices: what one device a stage gives first, then what groups gain."""

from __future__ import annotations

import dataclasses

from cutset.planning.deadline import OverBudget
from cutset.planning.formulate import BuiltProblem
from cutset.planning.group_problem import GroupProblem, GroupStage, group_problem
from cutset.planning.problem import ChainProblem, Placed
from cutset.planning.request import PlanRequest
from cutset.planning.solvers.group_search import GroupSolution, least_group_period
from cutset.planning.solvers.solve import Infeasible, Solution, solve_period

ALONE_SHARE = 0.3
"""Of the time that is left, for plans with one device a stage."""


def solve_with_groups(built: BuiltProblem, request: PlanRequest) -> Solution:
    """The plan of least period with up to `PlanRequest.replicas` devices a stage.

    Args:
        built: the problem with one device a stage.
        request: resolved, for the throughput.

    Raises:
        Infeasible: memory, or the latency asked for, allows no plan, or none was found.
    """
    problem = group_problem(built, request.devices_and_links, request.replicas)
    limit_s = request.max_latency_s
    alone: Solution | None = None
    reason: Infeasible | None = None
    try:
        alone = solve_period(_sooner(built.problem), max_latency_s=limit_s)
    except Infeasible as caught:
        reason = caught
    known = None if alone is None else _as_groups(built.problem, alone.stages)
    try:
        found = least_group_period(problem, known=known, max_latency_s=limit_s)
    except OverBudget:
        found = None
        if alone is None:
            assert reason is not None
            raise _unproven(reason) from None
    if found is None:
        if alone is None:
            # Groups need no less memory than their members, and no less time on their routes.
            assert reason is not None
            raise reason
        return dataclasses.replace(alone, bound_s=0.0, proven_by="search")
    return _better(problem, built.problem, alone, found)


def _sooner(problem: ChainProblem) -> ChainProblem:
    return dataclasses.replace(problem, deadline=problem.deadline.sooner(ALONE_SHARE))


def _unproven(reason: Infeasible) -> Infeasible:
    """The same, though what it says of one device a stage may not hold for groups."""
    return Infeasible(str(reason), best_s=reason.best_s, is_proven=False)


def _as_groups(problem: ChainProblem, stages: tuple[Placed, ...]) -> tuple[GroupStage, ...]:
    """Stages with one device each as groups."""
    classes = range(problem.num_classes)
    return tuple(
        GroupStage(s.start, s.stop, tuple(int(c == s.device_class) for c in classes))
        for s in stages
    )


def _better(
    problem: GroupProblem, chain: ChainProblem, alone: Solution | None, found: GroupSolution
) -> Solution:
    """The groups where they gain something; else the stages as they are without them."""
    period_s = problem.period_s(found.stages)
    if alone is not None and chain.period_s(alone.stages) <= period_s * (1 + 1e-9):
        return dataclasses.replace(
            alone, bound_s=min(found.bound_s, period_s), proven_by=found.proven_by
        )
    return Solution(
        stages=tuple(Placed(s.start, s.stop, s.classes[0]) for s in found.stages),
        bound_s=found.bound_s,
        proven_by=found.proven_by,
        groups=found.stages if any(s.size > 1 for s in found.stages) else (),
    )
