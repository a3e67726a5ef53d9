"""Plans with groups of devices: what one device a stage gives first, then what groups gain."""

from __future__ import annotations

import dataclasses

from cutset.planning.deadline import OverBudget
from cutset.planning.formulate import BuiltProblem
from cutset.planning.group_problem import (
    GroupProblem,
    GroupStage,
    GroupStages,
    group_problem,
)
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
    reason = Infeasible("memory", is_proven=False)
    try:
        alone = solve_period(_sooner(built.problem), max_latency_s=limit_s)
    except Infeasible as caught:
        # Any one member of each group makes a plan of as many stages, and no slower a route: where
        # there is none with one device a stage, there is none with groups.
        if caught.is_proven:
            raise
        reason = caught
    known = _first_plan(problem, alone, limit_s)
    try:
        found = least_group_period(problem, known=known, max_latency_s=limit_s)
    except OverBudget:
        found = None
    if found is None and known is None:
        raise reason
    if found is None:
        found = GroupSolution(stages=known or (), bound_s=0.0, proven_by="search")
    return _better(problem, built.problem, alone, found)


def _first_plan(
    problem: GroupProblem, alone: Solution | None, max_latency_s: float | None
) -> GroupStages | None:
    """A good plan to begin with: whole copies, or one device a stage and those left over beside.

    Each device that has no stage, the first of each class first, joins the stage that gains most.
    """
    chain = problem.chain
    known = []
    if alone is not None:
        stages = _as_groups(chain, alone.stages)
        known.append(stages)
        for c, count in enumerate(chain.counts):
            for _ in range(count - sum(stage.members[c] for stage in stages)):
                more = [_joined(stages, k, c) for k in range(len(stages))]
                fitting = [s for s in more if problem.fits(s) and _is_small(problem, s)]
                best = min(fitting, key=problem.period_s, default=stages)
                if chain.deadline.is_past or problem.period_s(best) >= problem.period_s(stages):
                    break
                stages = best
        known.append(stages)
    whole = tuple(
        count if problem.fits((GroupStage(0, chain.num_pieces, _one(chain, c)),)) else 0
        for c, count in enumerate(chain.counts)
    )
    copies = (GroupStage(0, chain.num_pieces, whole),)
    if sum(whole) and _is_small(problem, copies) and chain.num_stages in (None, 1):
        known.append(copies)
    if max_latency_s is not None:
        known = [s for s in known if problem.latency_s(s) <= max_latency_s]
    return min(known, key=problem.period_s, default=None)


def _joined(stages: GroupStages, at: int, device_class: int) -> GroupStages:
    members = list(stages[at].members)
    members[device_class] += 1
    changed = stages[at]._replace(members=tuple(members))
    return (*stages[:at], changed, *stages[at + 1 :])


def _is_small(problem: GroupProblem, stages: GroupStages) -> bool:
    return all(stage.size <= problem.most for stage in stages)


def _one(chain: ChainProblem, device_class: int) -> tuple[int, ...]:
    return tuple(int(c == device_class) for c in range(chain.num_classes))


def _sooner(problem: ChainProblem) -> ChainProblem:
    return dataclasses.replace(problem, deadline=problem.deadline.sooner(ALONE_SHARE))


def _as_groups(problem: ChainProblem, stages: tuple[Placed, ...]) -> tuple[GroupStage, ...]:
    """Stages with one device each as groups."""
    return tuple(GroupStage(s.start, s.stop, _one(problem, s.device_class)) for s in stages)


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
