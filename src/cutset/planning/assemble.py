"""Writes a solution down as a plan: names, devices, predictions, certificates."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np

from cutset.cluster.devices import Cluster
from cutset.codecs.known_codecs import NONE
from cutset.costs.cost_model import CostModel
from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph
from cutset.planning.anyorder.prefixes import prefixes_are_all_cuts
from cutset.planning.assemble_groups import messages_of_groups, with_groups
from cutset.planning.certificates import (
    group_certificates,
    latency_certificates,
    period_certificates,
)
from cutset.planning.formulate import BuiltProblem
from cutset.planning.group_problem import group_problem
from cutset.planning.plan import (
    GROUPS_FORMAT,
    PLAN_FORMAT,
    Alternative,
    Plan,
    StagePlan,
    gap_of,
    proven_among,
)
from cutset.planning.plan_messages import planned_messages
from cutset.planning.problem import ChainProblem, Placed
from cutset.planning.request import PlanRequest
from cutset.planning.solvers.solve import Solution


def assemble_plan(
    graph: Graph,
    cuts: CutPoints,
    costs: CostModel,
    built: BuiltProblem,
    solution: Solution,
    *,
    request: PlanRequest,
    notes: tuple[str, ...],
    alternatives: tuple[Alternative, ...],
) -> Plan:
    """The plan that a solution stands for.

    Args:
        graph: the captured model.
        cuts: its positions, judged.
        costs: what its pieces cost.
        built: the problem and what its numbers stand for.
        solution: of that problem.
        request: what was wanted.
        notes: as `Plan.notes`.
        alternatives: as `Plan.alternatives`.
    """
    problem, placed = built.problem, solution.stages
    groups, grouped = solution.groups, None
    if groups:
        grouped = group_problem(built, request.devices_and_links, request.replicas)
        period_s, latency_s = grouped.period_s(groups), grouped.latency_s(groups)
    else:
        period_s, latency_s = problem.period_s(placed), problem.latency_s(placed)
    by_latency = request.objective == "latency"
    value_s = latency_s if by_latency else period_s
    if request.replicas > 1 and not by_latency:
        certificates = group_certificates(problem, value_s, solution.bound_s, solution.proven_by)
    else:
        certify = latency_certificates if by_latency else period_certificates
        certificates = certify(problem, value_s, solution.bound_s, solution.proven_by)
    best = certificates[0]
    bound_s = min(best.bound_s, value_s)
    stages = _stages(graph, cuts, costs, built, placed)
    if grouped is not None:
        stages = with_groups(stages, built, grouped, groups)
        mean_s = grouped.mean_latency_s(groups)
        notes = notes if mean_s >= latency_s * (1 - 1e-9) else (*notes, _mean_latency(mean_s))
    used = {replica.device for stage in stages for replica in stage.group}
    family = _family(graph, cuts, costs, request)
    cluster = request.devices_and_links
    is_apart = not cluster.has_shared_wires and any(
        problem.link_row_s(*pair).any() for pair in problem.pairs
    )
    edges = [0, *(stage.stop for stage in placed)]
    sizes = [int(problem.cut_bytes[k]) for k in edges]
    names = [[(replica.device, replica.share) for replica in stage.group] for stage in stages]
    has_groups = any(len(group) > 1 for group in names)
    messages = (
        messages_of_groups(cluster, names, sizes)
        if has_groups
        else planned_messages(cluster, [stage.device for stage in stages], sizes)
    )
    return Plan(
        format=GROUPS_FORMAT if has_groups else PLAN_FORMAT,
        objective=request.objective,
        micro_batch=costs.micro_batch,
        stages=stages,
        period_s=period_s,
        latency_s=latency_s,
        bound_s=bound_s,
        bound_by=best.name,
        gap=gap_of(value_s, bound_s),
        serial=problem.serial,
        fixed_order=problem.fixed_order,
        max_latency_s=request.max_latency_s,
        min_rows_per_s=request.min_rows_per_s,
        family=family,
        proven_among=proven_among(family, is_apart=is_apart, most=request.replicas),
        certificates=certificates,
        alternatives=alternatives,
        unused_devices=tuple(d.name for g in built.classes for d in g if d.name not in used),
        notes=(*notes, *_without_keys(cluster, stages)),
        messages=messages,
        input_codec=built.codecs[0],
        input_bytes_per_sample=-(-sizes[0] // costs.micro_batch),
    )


def _mean_latency(mean_s: float) -> str:
    return (
        "the latency of one alone is that of the slowest route through its groups; on average over"
        f" routes it is {mean_s:.4g} s"
    )


def _without_keys(cluster: Cluster, stages: tuple[StagePlan, ...]) -> list[str]:
    """A note for each link of a plan that the cluster leaves without keys."""
    outer: list[str | None] = [cluster.caller]
    groups: list[list[str | None]] = [[each.device for each in stage.group] for stage in stages]
    ends = [outer, *groups, outer]
    return [
        f"run with this cluster file, rows from {source or 'the caller'} to"
        f" {target or 'the caller'} are not encrypted"
        ' and who sends them is not proven, as its security = "none" wants it'
        for before, after in pairwise(ends)
        for source, target in product(before, after)
        if not cluster.secured_between(source, target)
    ]


def _family(graph: Graph, cuts: CutPoints, costs: CostModel, request: PlanRequest) -> str:
    """The cuts that were searched, as `Plan.family` names them."""
    if request.cut_names:
        return "given"
    return "downset" if prefixes_are_all_cuts(graph, costs, cuts.max_tensors) else "prefix"


def _stages(
    graph: Graph,
    cuts: CutPoints,
    costs: CostModel,
    built: BuiltProblem,
    placed: tuple[Placed, ...],
) -> tuple[StagePlan, ...]:
    problem = built.problem
    moves, lost_s = problem.transfers_s(placed), problem.lost_s(placed)
    free = [list(group) for group in built.classes]
    stages = []
    for index, stage in enumerate(placed):
        device = free[stage.device_class].pop(0)
        first, last = built.boundaries[stage.start], built.boundaries[stage.stop]
        start, stop = costs.positions[first], costs.positions[last]
        needed = built.memory.needed(
            np.asarray([stage.start]), np.asarray([stage.stop]), num_stages=len(placed)
        )
        stages.append(
            StagePlan(
                index=index,
                first=_name_of_start(graph, cuts, start),
                last=costs.names[last],
                start=start,
                stop=stop,
                units=tuple(u.path for u in cuts.units if u.start >= start and u.stop <= stop),
                device=device.name,
                compute_s=problem.compute_s(stage),
                send_s=moves[index + 1],
                weight_bytes=costs.weight_bytes(first, last),
                memory_bytes=int(needed[0]) + built.memory.beside(device),
                output_bytes_per_sample=costs.cut_bytes_per_row[last],
                receive_s=moves[index],
                backend=_backend_of(problem, stage),
                memory_limit_bytes=device.memory_bytes,
                flops=sum(costs.flops_per_row[first:last]),
                cut_kind=costs.kinds[last],
                overhead_s=lost_s[index],
                **_codec_of(built, placed, index, costs.micro_batch),
            )
        )
    return tuple(stages)


def _codec_of(
    built: BuiltProblem, placed: tuple[Placed, ...], index: int, micro_batch: int
) -> dict[str, Any]:
    """What a stage's plan says of codecs, before it and after it."""
    stage, byte_costs = placed[index], built.problem.byte_costs
    found: dict[str, Any] = {}
    if byte_costs is not None:
        found["decode_s"] = float(byte_costs.decode_s[stage.device_class, stage.start])
    if built.codecs[stage.stop] != NONE:
        sent = int(built.problem.cut_bytes[stage.stop])
        found |= {
            "codec": built.codecs[stage.stop],
            "sent_bytes_per_sample": -(-sent // micro_batch),
        }
        if byte_costs is not None:
            found["encode_s"] = float(byte_costs.encode_s[stage.device_class, stage.stop])
    return found


def _name_of_start(graph: Graph, cuts: CutPoints, start: int) -> str:
    for unit in cuts.units:
        if unit.start == start:
            return unit.path
    return graph.operations[start].name


def _backend_of(problem: ChainProblem, stage: Placed) -> str:
    """The backend that is the fastest for a stage; the first by name among equals."""
    variants = problem.of_class(stage.device_class)
    return min(variants, key=lambda v: v.cost_s(stage.start, stage.stop)).backend


def gain_inside_units(plan: Plan, finer: Plan) -> float:
    """What cuts inside units would gain, as a fraction of the objective: 0.031 is 3.1%.

    Args:
        plan: a plan that respects units.
        finer: the plan for the same request with costs of ``granularity="op"``.

    Raises:
        ValueError: the plans have different objectives.
    """
    if plan.objective != finer.objective:
        raise ValueError(f"plans for {plan.objective} and {finer.objective} cannot be compared")
    by_latency = plan.objective == "latency"
    now_s = plan.latency_s if by_latency else plan.period_s
    then_s = finer.latency_s if by_latency else finer.period_s
    return max(0.0, 1 - then_s / now_s) if now_s else 0.0
