"""Whether more tensors across a cut would give a better plan, or a plan at all."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import msgspec

from cutset.cluster.devices import Cluster
from cutset.costs.cost_model import CostModel
from cutset.errors import PlanError
from cutset.graph.cuts import CutPoints, CutRule, find_cut_points
from cutset.graph.ir import Graph
from cutset.planning.deadline import within
from cutset.planning.make import make_plan
from cutset.planning.plan import MoreTensors, Plan
from cutset.planning.request import PlanRequest
from cutset.planning.watch import unheard

TRIED_TENSORS = (2, 3, 4, 6, 8, 12)
"""Numbers of tensors across a cut that are tried."""

WORTH = 0.95
"""Largest ratio of new to old objective at which more tensors are worth naming."""

MAX_OPERATIONS = 5_000
"""Nothing is tried on larger graphs; judging the positions takes some 50 us for an operation."""

MAX_UNEQUAL_DEVICES = 12
"""Nothing is tried on more devices than this unless all are equal; the search is exponential."""


def try_more_tensors(
    graph: Graph,
    cuts: CutPoints,
    request: PlanRequest,
    costs_at: Callable[[CutPoints], CostModel],
    *,
    plan: Plan | None,
    keep: Collection[str] = (),
    divide: Collection[str] = (),
    rules: Sequence[CutRule] = (),
) -> MoreTensors | None:
    """The number of tensors across a cut that gives a plan better by a twentieth or more.

    It plans anew with each of `TRIED_TENSORS` that adds cut points, with what the tensors cost on
    the links. Graphs of more than `MAX_OPERATIONS` operations and clusters of more than
    `MAX_UNEQUAL_DEVICES` unequal devices are left alone, since there it would take long.

    Args:
        graph: the captured model.
        cuts: its positions, judged with the present `max_tensors`.
        request: what is wanted; its time limit is that of all tries together.
        costs_at: what the pieces between other cut points cost; these include those of `cuts`.
        plan: the best one as things are; None where there is none.
        keep: as given to `find_cut_points`.
        divide: likewise.
        rules: likewise.

    Returns:
        What the best of them gives, of nearly equal ones the smallest; None where none helps or
        nothing was tried.
    """
    if len(graph.operations) > MAX_OPERATIONS or is_hard(request.devices_and_links):
        return None
    deadline = within(request.time_limit_s)
    best = None if plan is None else _value_s(plan)
    num_points = len(cuts.points)
    found: MoreTensors | None = None
    for max_tensors in TRIED_TENSORS:
        if max_tensors <= cuts.max_tensors:
            continue
        if deadline.is_past:
            break
        more = find_cut_points(
            graph, keep=keep, divide=divide, max_tensors=max_tensors, rules=rules
        )
        if len(more.points) == num_points:
            continue
        num_points = len(more.points)
        try:
            with unheard():
                other = make_plan(
                    graph,
                    more,
                    costs_at(more),
                    request.within(deadline.left_s),
                    with_alternatives=False,
                )
        except PlanError:
            continue
        if best is None or _value_s(other) <= WORTH * best:
            best = _value_s(other)
            found = MoreTensors(
                max_tensors=max_tensors,
                num_points=num_points,
                num_points_now=len(cuts.points),
                period_s=other.period_s,
                latency_s=other.latency_s,
                slowest_over_even=_slowest_over_even(other),
            )
    return found


def _value_s(plan: Plan) -> float:
    return plan.latency_s if plan.objective == "latency" else plan.period_s


def _slowest_over_even(plan: Plan) -> float:
    """Compute of the slowest stage over that of the average one; 1 where nothing computes."""
    seconds = [stage.compute_s for stage in plan.stages]
    return max(seconds) * len(seconds) / (sum(seconds) or 1.0) or 1.0


def is_hard(cluster: Cluster) -> bool:
    """Whether planning anew may take long: many devices that cannot stand in for one another."""
    if len(cluster.devices) <= MAX_UNEQUAL_DEVICES:
        return False
    kinds = {msgspec.structs.replace(device, name="any") for device in cluster.devices}
    has_links = cluster.overrides or cluster.media
    return len(kinds) > 1 or bool(has_links) or cluster.caller is not None
