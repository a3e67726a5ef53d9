"""Makes plans: the rules about cuts, devices and limits around the solver."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn

import msgspec

from cutset.cluster.devices import Cluster
from cutset.codecs.known_codecs import allowed_codecs
from cutset.costs.cost_model import CostModel
from cutset.errors import PlanError
from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph
from cutset.planning.assemble import assemble_plan
from cutset.planning.assemble_groups import copies_beside
from cutset.planning.deadline import Deadline, OverBudget, within
from cutset.planning.formulate import BuiltProblem, build_problem
from cutset.planning.group_problem import group_problem
from cutset.planning.make_groups import solve_with_groups
from cutset.planning.memory import explain_infeasible
from cutset.planning.micro_batches import best_of_sizes
from cutset.planning.plan import Alternative, Copies, Plan
from cutset.planning.request import PlanRequest
from cutset.planning.solvers.solve import (
    Infeasible,
    Solution,
    solve_front,
    solve_latency,
    solve_period,
)
from cutset.planning.solvers.within_limit import is_exact
from cutset.planning.watch import begin_anew, unheard

logger = logging.getLogger(__name__)

HEAD_GAIN = 1.05
"""A cut inside the classifier is used where the plan without it is worse by more than this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """A model's costs and what is wanted, checked against each other.

    Attributes:
        request: resolved.
        boundaries: of the pieces, where a cut may be.
    """

    graph: Graph
    cuts: CutPoints
    costs: CostModel
    request: PlanRequest
    boundaries: tuple[int, ...]
    deadline: Deadline

    @property
    def cluster(self) -> Cluster:
        return self.request.devices_and_links

    @property
    def max_period_s(self) -> float | None:
        return self.request.max_period_s(self.costs.micro_batch)

    def build(self, boundaries: Sequence[int]) -> BuiltProblem:
        return build_problem(
            self.costs,
            self.cluster,
            boundaries,
            serial=self.request.serial,
            fixed_order=self.request.fixed_order,
            num_stages=self.request.num_stages,
            deadline=self.deadline,
        )

    def without_heads(self) -> tuple[int, ...]:
        return tuple(b for b in self.boundaries if self.costs.kinds[b] != "head")


def make_plan(
    graph: Graph,
    cuts: CutPoints,
    costs: CostModel | Sequence[CostModel],
    request: PlanRequest,
    *,
    with_alternatives: bool = True,
) -> Plan:
    """The best plan for a model on a cluster, with its proof.

    Args:
        graph: the captured model.
        cuts: its positions, judged.
        costs: what its pieces cost, from the same graph and cuts. Of several, which differ in their
            micro-batches, each is planned with, and the best plan taken (`best_of_sizes`).
        request: what is wanted; its time limit is that of all together.
        with_alternatives: also plan for one stage ("do not split") and for one stage more and
            fewer.

    Raises:
        PlanError: a cut that is refused or unknown, more stages than pieces or devices, a limit
            that no plan keeps, or nothing was found (within the time limit).
        InfeasiblePlan: no placement fits the devices' memory.
    """
    models = [costs] if isinstance(costs, CostModel) else sorted(costs, key=_rows)
    deadline = within(request.time_limit_s)
    solved: dict[int, tuple[_Task, BuiltProblem, Solution]] = {}
    tried: dict[int, Plan | PlanError] = {}
    for index, each in enumerate(models):
        task = _task(graph, cuts, each, request, deadline.sooner(1 / (len(models) - index)))
        tried[each.micro_batch], found = _try(task)
        if found is not None:
            solved[each.micro_batch] = found
    plan = best_of_sizes(tried)
    if not with_alternatives:
        return plan
    task, built, solution = solved[plan.micro_batch]
    task = dataclasses.replace(task, deadline=deadline)
    return msgspec.structs.replace(
        plan,
        alternatives=_alternatives(task, solution, built),
        copies=_copies(task, plan),
    )


def _copies(task: _Task, plan: Plan) -> Copies | msgspec.UnsetType:
    """What whole copies would give; unset where there is one device, or they are the plan."""
    if len(task.cluster.devices) < 2 or (len(plan.stages) == 1 and plan.has_groups):
        return msgspec.UNSET
    return copies_beside(task.build(task.boundaries), task.cluster)


def _rows(costs: CostModel) -> int:
    return costs.micro_batch


def _try(task: _Task) -> tuple[Plan | PlanError, tuple[_Task, BuiltProblem, Solution] | None]:
    """The best plan for a task, and what it was made from; or why there is none."""
    try:
        built, solution, notes = _solve_by_rules(task)
    except PlanError as error:
        return error, None
    return _assemble(task, built, solution, notes, ()), (task, built, solution)


def pareto_plans(
    graph: Graph, cuts: CutPoints, costs: CostModel, request: PlanRequest
) -> tuple[Plan, ...]:
    """Every plan that no other beats in both period and latency, of rising period.

    The front is exact, and each point a full plan. Arguments and errors are `make_plan`'s, of
    which the objective does not matter; cuts inside the classifier are allowed where they would be
    for the least period. Where the time limit ends the search, the plans found are on the front,
    and each has a note that there may be more of a smaller period.

    Raises:
        PlanError: also where there are too many devices to search exhaustively.
    """
    if request.replicas > 1:
        raise PlanError(
            "a front has plans with one device a stage only: leave replicas (--replicas) out"
        )
    request = msgspec.structs.replace(request, objective="throughput")
    task = _task(graph, cuts, costs, request, within(request.time_limit_s))
    built, _, notes = _solve_by_rules(task)
    try:
        if not is_exact(built.problem):
            raise OverBudget("more states than are searched")
        begin_anew()
        front = solve_front(built.problem)
    except OverBudget as reason:
        raise PlanError(
            f"the front over {len(task.cluster.devices)} unequal devices is out of reach "
            f"({reason}); fix the order of devices, or plan for one objective"
        ) from reason
    if not front.is_complete:
        notes = (*notes, f"{_time_is_over(task)}: plans of a smaller period may be missing")
    max_latency_s, min_rows_per_s = request.max_latency_s, request.min_rows_per_s
    plans = []
    for stages in front.plans:
        solution = Solution(
            stages=stages, bound_s=built.problem.period_s(stages), proven_by="exhaustion"
        )
        plan = _assemble(task, built, solution, notes, ())
        late = max_latency_s is not None and plan.latency_s > max_latency_s * (1 + 1e-9)
        slow = min_rows_per_s is not None and plan.rows_per_s < min_rows_per_s * (1 - 1e-9)
        if not late and not slow:
            plans.append(plan)
    return tuple(plans)


def _task(
    graph: Graph, cuts: CutPoints, costs: CostModel, request: PlanRequest, deadline: Deadline
) -> _Task:
    """The task, after a check that there are as many pieces and devices as stages.

    Raises:
        PlanError: there are fewer, a cut is refused or unknown, a piece runs on no device, or the
            costs lack a codec.
    """
    request = request.resolved()
    names = allowed_codecs(request.allow)
    missing = set(names) - {codec.name for codec in costs.codecs}
    if missing:
        raise PlanError(f"the costs say nothing of codec {min(missing)!r}, which is allowed")
    allowed = tuple(codec for codec in costs.codecs if codec.name in names)
    costs = msgspec.structs.replace(costs, codecs=allowed)
    boundaries: tuple[int, ...] = tuple(range(costs.num_pieces + 1))
    if request.cut_names:
        boundaries = _boundaries_of(cuts, costs, request.cut_names)
    num_stages, num_devices = request.num_stages, len(request.devices_and_links.devices)
    if num_stages is not None and num_stages > costs.num_pieces:
        raise PlanError(
            f"{num_stages} stages are more than this model can be cut into: it has "
            f"{costs.num_pieces - 1} cut points, so at most {costs.num_pieces} stages"
        )
    if num_stages is not None and num_stages > num_devices:
        raise PlanError(
            f"{num_stages} stages need {num_stages} devices, the cluster has {num_devices}; ask "
            f"for at most {num_devices} stages"
        )
    costs.require_a_device_each(request.devices_and_links.devices)
    return _Task(
        graph=graph,
        cuts=cuts,
        costs=costs,
        request=request,
        boundaries=boundaries,
        deadline=deadline,
    )


def _boundaries_of(cuts: CutPoints, costs: CostModel, names: Sequence[str]) -> tuple[int, ...]:
    """The boundaries after which the caller wants to cut."""
    known = {name: k for k, name in enumerate(costs.names) if 0 < k < costs.num_pieces}
    wanted = set()
    for name in names:
        if name not in known:
            _refuse(cuts, known, name)
        wanted.add(known[name])
    return (0, *sorted(wanted), costs.num_pieces)


def _refuse(cuts: CutPoints, known: dict[str, int], name: str) -> NoReturn:
    for point in cuts.refused:
        if point.after == name:
            raise PlanError(f"the model may not be cut after {name!r}: {point.reason}")
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else "inspect lists all of them"
    raise PlanError(f"there is no cut point after {name!r}; {hint}")


def _solve_by_rules(task: _Task) -> tuple[BuiltProblem, Solution, tuple[str, ...]]:
    """Solves without cuts inside the classifier first, with them only where that pays."""
    everywhere = task.build(task.boundaries)
    plain = task.boundaries if task.request.cut_names else task.without_heads()
    if plain == task.boundaries:
        return everywhere, _solve(task, everywhere), ()
    built = task.build(plain)
    try:
        solution = _solve_or_raise(task, built)
    except Infeasible:
        note = "a cut inside the classifier is used, because without one nothing keeps the limits"
        return everywhere, _solve(task, everywhere), (note,)
    try:
        other = _solve_or_raise(task, everywhere)
    except Infeasible:  # only where not everything was searched: what was found counts
        return built, solution, ()
    value_s = _value(task, built, solution)
    other_s = _value(task, everywhere, other)
    if value_s > other_s * HEAD_GAIN:
        note = (
            "a cut inside the classifier is used, because without one the plan is "
            f"{value_s / other_s - 1:.1%} worse"
        )
        return everywhere, other, (note,)
    if value_s > other_s * (1 + 1e-9):
        note = (
            f"cuts inside the classifier would gain {1 - other_s / value_s:.1%}, too little to "
            "divide it"
        )
        return built, solution, (note,)
    return built, solution, ()


def _value(task: _Task, built: BuiltProblem, solution: Solution) -> float:
    problem = built.problem
    if solution.groups:
        return group_problem(built, task.cluster, task.request.replicas).period_s(solution.groups)
    by_latency = task.request.objective == "latency"
    stages = solution.stages
    return problem.latency_s(stages) if by_latency else problem.period_s(stages)


def _solve_or_raise(task: _Task, built: BuiltProblem) -> Solution:
    """Solves for the objective under the limits; raises the solver's own `Infeasible`."""
    begin_anew()
    problem = built.problem
    by_latency = task.request.objective == "latency"
    if by_latency:
        solution = solve_latency(problem, max_period_s=task.max_period_s)
        limit_s = task.request.max_latency_s
    elif task.request.replicas > 1:
        solution, limit_s = solve_with_groups(built, task.request), task.max_period_s
    else:
        solution = solve_period(problem, max_latency_s=task.request.max_latency_s)
        limit_s = task.max_period_s
    value_s = _value(task, built, solution)
    if limit_s is not None and value_s > limit_s * (1 + 1e-9):
        raise Infeasible(
            "latency" if by_latency else "period",
            best_s=value_s,
            is_proven=solution.bound_s > limit_s * (1 + 1e-9),
            bound_s=solution.bound_s,
        )
    return solution


def _solve(task: _Task, built: BuiltProblem) -> Solution:
    """Solves, and tells the user what stands in the way where there is no plan."""
    try:
        return _solve_or_raise(task, built)
    except Infeasible as caught:
        reason = caught
    if reason.best_s is not None:
        words = _limit_words(task, str(reason), reason.best_s, reason)
        raise PlanError(words, is_proven=reason.is_proven)
    if not reason.is_proven and task.deadline.is_past:
        raise PlanError(
            f"{_time_is_over(task)} and no plan was found; that does not say that there is none:"
            " give more time (time_limit_s, --time-limit), or fix the order of devices"
        )
    raise explain_infeasible(task.cluster, built)


def _limit_words(task: _Task, kind: str, best_s: float, reason: Infeasible) -> str:
    """What a limit that is not kept is told with: what exists, or what was found, and no more."""
    rows = task.costs.micro_batch
    if kind == "latency":
        wanted = f"takes at most {task.request.max_latency_s:g} s for one micro-batch"
        best, bound = f"{best_s:g} s", f"none can take less than {reason.bound_s:g} s"
        least = "the least is"
        other = _and_limit(task.request.min_rows_per_s, "rows/s")
    else:
        wanted = f"gives {task.request.min_rows_per_s:g} rows/s"
        best = f"{rows / best_s:g} rows/s"
        most = rows / reason.bound_s if reason.bound_s > 0 else math.inf
        bound, least = f"none can give more than {most:g} rows/s", "the most is"
        other = _and_limit(task.request.max_latency_s, "s latency")
    is_best = reason.bound_s >= best_s * (1 - 1e-9)
    if reason.is_proven:
        found = f"{least} {best}" if is_best else f"the best found is {best}, and {bound}"
        return f"no plan {wanted}: {found}{other}"
    known = f", and {bound}" if reason.bound_s > 0 else ""
    why = _time_is_over(task) if task.deadline.is_past else (
        f"{len(task.cluster.devices)} devices that differ are too many to try every order"
    )  # fmt: skip
    return (
        f"no plan was found that {wanted}: the best found is {best}{known}{other}. One may exist: "
        f"{why}"
    )


def _time_is_over(task: _Task) -> str:
    return f"the time limit of {task.deadline.limit_s:g} s was reached"


def _and_limit(limit: float | None, unit: str) -> str:
    return "" if limit is None else f" together with the limit of {limit:g} {unit}"


def _alternatives(task: _Task, solution: Solution, chosen: BuiltProblem) -> tuple[Alternative, ...]:
    """The best plans with one stage, with one fewer and with one more than the plan has."""
    used, num_pieces = len(solution.stages), task.costs.num_pieces
    found = []
    for count in sorted({1, used - 1, used + 1} - {0, used}):
        if task.deadline.is_past:
            found.append(Alternative(num_stages=count, reason=_time_is_over(task)))
            continue
        if count > num_pieces:
            found.append(Alternative(num_stages=count, reason="there are not enough cut points"))
            continue
        cluster = _with_devices(task.cluster, count, chosen)
        if cluster is None:
            found.append(Alternative(num_stages=count, reason="there are not enough devices"))
            continue
        request = msgspec.structs.replace(
            task.request,
            num_stages=count,
            cut_names=(),
            cluster=cluster,
            max_latency_s=None,
            min_rows_per_s=None,
            replicas=1 if count == 1 else task.request.replicas,
        )
        boundaries = tuple(range(num_pieces + 1))
        other = dataclasses.replace(task, request=request, boundaries=boundaries)
        with unheard():
            found.append(_alternative(other, count))
    return tuple(found)


def _with_devices(cluster: Cluster, count: int, chosen: BuiltProblem) -> Cluster | None:
    """The cluster; of equal devices one as large as needed, since one more would be the same."""
    missing = count - len(cluster.devices)
    if missing <= 0:
        return cluster
    has_links = cluster.overrides or cluster.media
    if chosen.problem.num_classes > 1 or has_links or cluster.caller is not None:
        return None
    names = {device.name for device in cluster.devices}
    fresh = (name for k in range(len(names) * 2 + missing) if (name := f"device-{k}") not in names)
    extra = tuple(
        msgspec.structs.replace(cluster.devices[0], name=next(fresh)) for _ in range(missing)
    )
    return msgspec.structs.replace(cluster, devices=cluster.devices + extra)


def _alternative(task: _Task, count: int) -> Alternative:
    try:
        built, solution, _ = _solve_by_rules(task)
    except PlanError as reason:
        return Alternative(num_stages=count, reason=str(reason))
    plan = _assemble(task, built, solution, (), ())
    return Alternative(
        num_stages=count,
        devices=tuple(stage.device for stage in plan.stages),
        last=tuple(stage.last for stage in plan.stages),
        period_s=plan.period_s,
        latency_s=plan.latency_s,
        groups=tuple(tuple(each.device for each in stage.group) for stage in plan.stages)
        if plan.has_groups
        else msgspec.UNSET,
    )


def _assemble(
    task: _Task,
    built: BuiltProblem,
    solution: Solution,
    notes: tuple[str, ...],
    alternatives: tuple[Alternative, ...],
) -> Plan:
    if solution.proven_by == "search":
        notes = (*notes, f"{_time_is_over(task)}: more time may give a better plan or bound")
    return assemble_plan(
        task.graph,
        task.cuts,
        task.costs,
        built,
        solution,
        request=task.request,
        notes=notes,
        alternatives=alternatives,
    )
