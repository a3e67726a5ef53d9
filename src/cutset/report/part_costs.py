"""The costs and the cluster that a report plans with, and how far they can be trusted.

A plan does not hold the costs of every part, nor the cluster. Where the caller gives them, they are
checked against the plan's own predictions. Where not, they are recovered as far as the plan allows,
and the report says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import msgspec

from cutset.cluster.devices import Cluster, Device
from cutset.costs.cost_model import CostModel, Granularity, costs_from_flops, costs_from_profile
from cutset.costs.profile import PROFILE_FORMAT, PieceProfile, Profile, Timing
from cutset.errors import PlanError
from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph
from cutset.planning import PlanRequest, make_plan
from cutset.planning.plan import Plan
from cutset.report.sources import ReportSources

MEASURED, WORK, SHARED = "measured", "work", "shared"
_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartCosts:
    """What parts cost, and on what.

    Attributes:
        graph: the captured model.
        cuts: its positions, judged.
        costs: at the candidate cuts.
        finer: the same between any two operations; for what respecting units costs.
        cluster: the plan's devices in the plan's order, then the others; None where it cannot be
            known, so that nothing can be planned anew.
        kind: ``"measured"``; ``"work"`` where seconds stand for multiply-adds; ``"shared"`` where
            each stage's seconds were shared among its parts by multiply-adds.
        notes: what a reader has to know about these numbers, a sentence each.
    """

    graph: Graph
    cuts: CutPoints
    costs: CostModel
    finer: CostModel
    cluster: Cluster | None
    kind: str
    notes: tuple[str, ...]

    def seconds_on(self, device: str, backend: str) -> tuple[float, ...]:
        """Seconds of every part on a device; of the reference where the device is unknown."""
        devices = self.cluster.devices if self.cluster is not None else ()
        known = next((d for d in devices if d.name == device), Device(name=device))
        entries = self.costs.seconds_on(known)
        entry = next((e for e in entries if e.backend == backend), entries[0])
        return tuple(s if s is not None else 0.0 for s in entry.seconds)

    def plan_with(self, names: Sequence[str], plan: Plan, cluster: Cluster | None = None) -> Plan:
        """The plan that cuts after `names` on the first devices of the cluster, in their order.

        Raises:
            PlanError: that is impossible, or the cluster is unknown.
            InfeasiblePlan: a device has too little memory for it.
        """
        where = cluster or self.cluster
        if where is None:
            raise PlanError("the cluster is unknown")
        return make_plan(
            self.graph,
            self.cuts,
            self.costs,
            PlanRequest(
                cluster=first_devices(where, len(names) + 1),
                num_stages=len(names) + 1,
                cut_names=tuple(names),
                objective=plan.objective,
                serial=plan.serial,
                fixed_order=True,
            ),
            with_alternatives=False,
        )


def first_devices(cluster: Cluster, count: int) -> Cluster:
    """The first `count` devices of a cluster, and the caller's where that is another."""
    gone = [d.name for d in cluster.devices[count:] if d.name != cluster.caller]
    return cluster.without(*gone)


def make_part_costs(sources: ReportSources) -> PartCosts | None:
    """The costs and cluster of a report; None where there is no captured model.

    Raises:
        PlanError: a profile is of another model, or a device of the plan is not in the cluster.
    """
    graph, cuts, plan = sources.graph, sources.cuts, sources.plan
    if graph is None or cuts is None:
        return None
    cluster = _cluster_of(sources)
    profiles = sources.profiles
    notes: list[str] = []
    if profiles is not None:
        kind = MEASURED
    elif _is_work(plan, cuts, cluster):
        kind = WORK
        notes.append(
            "The plan's times stand for work, 1e9 multiply-adds a second at speed 1: compare them "
            "with each other, not with a clock."
        )
    else:
        kind, profiles = SHARED, _shared_profile(plan, cuts, graph)
        notes.append(
            "No profile was given, so the seconds of each stage are shared among its parts by "
            "multiply-adds; --profile FILE replaces the estimate by measurements."
        )

    def costs(granularity: Granularity, base_bytes: int = 0) -> CostModel:
        if profiles is None:
            return costs_from_flops(
                graph, cuts, micro_batch=plan.micro_batch, base_bytes=base_bytes,
                granularity=granularity,
            )  # fmt: skip
        return costs_from_profile(
            graph, cuts, profiles, base_bytes=base_bytes, granularity=granularity
        )

    base_bytes = _base_bytes(plan, costs("unit"))
    part_costs = PartCosts(
        graph=graph,
        cuts=cuts,
        costs=costs("unit", base_bytes),
        finer=costs("op", base_bytes),
        cluster=cluster,
        kind=kind,
        notes=tuple(notes),
    )
    return _checked(part_costs, sources)


def _cluster_of(sources: ReportSources) -> Cluster:
    """The plan's devices first, in its order; without a cluster file, equal ones with free links.

    Whether that is what was planned for is looked at in `_checked`.
    """
    plan, given = sources.plan, sources.cluster
    order = [*(stage.device for stage in plan.stages), *plan.unused_devices]
    if given is None:
        limits = {stage.device: stage.memory_limit_bytes for stage in plan.stages}
        return Cluster(
            devices=tuple(Device(name=n, memory_bytes=limits.get(n)) for n in dict.fromkeys(order))
        )
    known = {device.name: device for device in given.devices}
    missing = [name for name in order if name not in known]
    if missing:
        raise PlanError(
            f"the plan uses the device {missing[0]!r}, which the cluster lacks; give the cluster "
            "file that the plan was made for"
        )
    rest = [device for name, device in known.items() if name not in order]
    return msgspec.structs.replace(given, devices=(*(known[name] for name in order), *rest))


def _checked(part_costs: PartCosts, sources: ReportSources) -> PartCosts:
    """The part_costs without its cluster where that contradicts the plan's own predictions."""
    plan = sources.plan
    names = [stage.last for stage in plan.stages[:-1]]
    try:
        again = part_costs.plan_with(names, plan)
    except PlanError as error:
        reason = f"the plan cannot be made again with them: {error}"
    else:
        pairs = [
            (getattr(new, key), getattr(old, key))
            for new, old in zip(again.stages, plan.stages, strict=True)
            for key in ("compute_s", "overhead_s", "receive_s", "send_s")
        ]
        alone = next((a.period_s for a in plan.alternatives if a.num_stages == 1), None)
        whole = sum(part_costs.seconds_on(plan.stages[0].device, plan.stages[0].backend))
        if part_costs.kind == SHARED and alone is not None and sources.cluster is None:
            pairs.append((whole, alone))
        off = [(new, old) for new, old in pairs if not math.isclose(new, old, rel_tol=_TOLERANCE)]
        if not off:
            return part_costs
        reason = f"they give {off[0][0]:.4g} s where the plan has {off[0][1]:.4g} s"
    if sources.cluster is None:
        missing = "without a cluster file the devices were taken as equal and the links as free"
        cure = "give the plan's own --cluster FILE and --profile FILE"
    else:
        missing, cure = "with this cluster and these costs", "give those that the plan was made for"
    note = (
        f"Nothing could be planned anew: {missing}, and {reason}; {cure} to see the front, the "
        "peers' choices and what respecting units costs."
    )
    return dataclasses.replace(part_costs, cluster=None, notes=(*part_costs.notes, note))


def _is_work(plan: Plan, cuts: CutPoints, cluster: Cluster) -> bool:
    """Whether the plan's seconds are its multiply-adds at 1e9 a second, by speed of device."""
    del cuts
    speeds = {device.name: device.speed for device in cluster.devices}
    return all(
        math.isclose(
            stage.compute_s * speeds[stage.device] * 1e9,
            stage.flops * plan.micro_batch,
            rel_tol=_TOLERANCE,
        )
        for stage in plan.stages
    )


def _shared_profile(plan: Plan, cuts: CutPoints, graph: Graph) -> Profile:
    """A profile that adds up to the plan's stages, shared by multiply-adds within each."""
    points = [*((p.position, p.after, p.cumulative_flops) for p in cuts.points)]
    points.append((len(graph.operations), "output", graph.flops))
    pieces = []
    start, done = 0, 0
    for position, name, cumulative in points:
        flops = cumulative - done
        stage = next(s for s in plan.stages if s.start <= start < s.stop)
        share = (
            flops / stage.flops if stage.flops else (position - start) / (stage.stop - stage.start)
        )
        seconds = stage.compute_s * share
        timing = Timing(median_s=seconds, p10_s=seconds, p90_s=seconds, num_runs=1)
        pieces.append(PieceProfile(last=name, flops=flops, timings={"": timing}))
        start, done = position, cumulative
    return Profile(
        format=PROFILE_FORMAT,
        model="",
        device="",
        micro_batch=plan.micro_batch,
        num_threads=1,
        pieces=tuple(pieces),
        software={},
    )


def _base_bytes(plan: Plan, costs: CostModel) -> int:
    """What the plan reckoned for a worker before it holds a shard."""
    edge = {position: k for k, position in enumerate(costs.positions)}
    stage = plan.stages[0]
    counted = costs.memory_bytes(edge[stage.start], edge[stage.stop], num_stages=len(plan.stages))
    return max(0, stage.memory_bytes - counted)
