"""Plans side by side: this one, the front, one device more or fewer, what peers would choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec

from cutset.cluster.devices import Cluster
from cutset.errors import PlanError
from cutset.planning import PlanRequest, pareto_plans
from cutset.planning.peers import PeerChoice, peer_choices
from cutset.planning.plan import Alternative, Plan
from cutset.report.part_costs import PartCosts, first_devices
from cutset.report.strip import Strip

THIS, FRONT, DEVICES = "this plan", "front", "other number of devices"
MAX_FRONT = 60
"""The most points of the front that are listed; of more, this many are taken evenly."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A plan among others.

    Attributes:
        key: unique on the page.
        group: `THIS`, `FRONT`, `DEVICES`, or the peer's name.
        label: what it is called.
        last: the name at which each stage ends; empty where there is no such plan.
        devices: of each stage.
        backends: of each stage.
        compute_s: of each stage; empty where unknown.
        period_s: seconds per micro-batch, None where there is no such plan.
        latency_s: seconds for one micro-batch alone, None where there is no such plan.
        rows_per_s: rows per second, None where there is no such plan.
        reason: why there is none, or what else to know.
    """

    key: str
    group: str
    label: str
    last: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    compute_s: tuple[float, ...] = ()
    period_s: float | None = None
    latency_s: float | None = None
    rows_per_s: float | None = None
    reason: str = ""

    @property
    def num_stages(self) -> int:
        """How many stages; 0 where there is no such plan."""
        return len(self.last)


def _of_plan(plan: Plan, key: str, group: str, label: str, reason: str = "") -> Candidate:
    return Candidate(
        key=key,
        group=group,
        label=label,
        last=tuple(stage.last for stage in plan.stages),
        devices=tuple(stage.device for stage in plan.stages),
        backends=tuple(stage.backend for stage in plan.stages),
        compute_s=tuple(stage.compute_s for stage in plan.stages),
        period_s=plan.period_s,
        latency_s=plan.latency_s,
        rows_per_s=plan.rows_per_s if plan.period_s else None,
        reason=reason,
    )


def this_candidate(plan: Plan) -> Candidate:
    """The plan that the report is about."""
    return _of_plan(plan, "this", THIS, "This plan")


def stage_count(count: int) -> str:
    """``"Do not split"``, ``"3 stages"``."""
    return "Do not split" if count == 1 else f"{count} stages"


def alternative_candidates(plan: Plan, part_costs: PartCosts | None) -> tuple[Candidate, ...]:
    """What the planner found for other numbers of stages, "do not split" first."""
    return tuple(_of_alternative(each, plan, part_costs) for each in plan.alternatives)


def _of_alternative(
    alternative: Alternative, plan: Plan, part_costs: PartCosts | None
) -> Candidate:
    count = alternative.num_stages
    found = Candidate(
        key=f"stages-{count}",
        group=DEVICES,
        label=stage_count(count),
        last=alternative.last,
        devices=alternative.devices,
        backends=("",) * len(alternative.last),
        period_s=alternative.period_s,
        latency_s=alternative.latency_s,
        rows_per_s=plan.micro_batch / alternative.period_s if alternative.period_s else None,
        reason=alternative.reason,
    )
    if part_costs is None or part_costs.cluster is None or not alternative.last:
        return found
    # The planner keeps the names and times of an alternative, not its stages' seconds.
    known = {device.name: device for device in part_costs.cluster.devices}
    model = part_costs.cluster.devices[0]
    devices = tuple(
        known.get(name, msgspec.structs.replace(model, name=name)) for name in alternative.devices
    )
    rest = tuple(d for d in part_costs.cluster.devices if d.name not in alternative.devices)
    cluster = msgspec.structs.replace(part_costs.cluster, devices=devices + rest)
    try:
        again = part_costs.plan_with(alternative.last[:-1], plan, cluster)
    except PlanError:
        return found
    return dataclasses.replace(
        found,
        backends=tuple(stage.backend for stage in again.stages),
        compute_s=tuple(stage.compute_s for stage in again.stages),
    )


def front_candidates(plan: Plan, part_costs: PartCosts) -> tuple[tuple[Candidate, ...], str]:
    """Every plan on the cluster that no other beats in both period and latency.

    Returns:
        The plans, of rising period, and what a reader has to know of them or ``""``.
    """
    if part_costs.cluster is None:
        return (), ""
    try:
        front = pareto_plans(
            part_costs.graph,
            part_costs.cuts,
            part_costs.costs,
            PlanRequest(
                cluster=part_costs.cluster, serial=plan.serial, fixed_order=plan.fixed_order
            ),
        )
    except PlanError as error:
        return (), f"The front cannot be drawn: {error}."
    chosen: Sequence[Plan] = front
    note = ""
    if len(front) > MAX_FRONT:
        step = (len(front) - 1) / (MAX_FRONT - 1)
        chosen = [front[round(i * step)] for i in range(MAX_FRONT)]
        note = f"Of {len(front)} plans of the front {MAX_FRONT} are shown, taken evenly."
    elif len(front) == 1:
        note = (
            "The front is one point: no plan trades throughput for latency here, since links cost "
            "nothing or splitting does not pay."
        )
    return (
        tuple(
            _of_plan(each, f"front-{k}", FRONT, f"Front {k + 1}: {_stages(each)}")
            for k, each in enumerate(chosen)
        ),
        note,
    )


def _stages(plan: Plan) -> str:
    count = len(plan.stages)
    return f"{count} stage{'s' if count != 1 else ''}"


def peer_candidates(plan: Plan, part_costs: PartCosts, strip: Strip) -> tuple[Candidate, ...]:
    """What three common rules would choose on the same devices, judged by the same costs."""
    num_devices = len(plan.stages)
    if part_costs.cluster is None or num_devices == 1:
        return ()
    choices = peer_choices(part_costs.graph, part_costs.cuts, part_costs.costs, num_devices)
    return tuple(
        _of_peer(choice, f"peer-{k}", plan, part_costs, strip) for k, choice in enumerate(choices)
    )


def _of_peer(
    choice: PeerChoice, key: str, plan: Plan, part_costs: PartCosts, strip: Strip
) -> Candidate:
    assert part_costs.cluster is not None
    devices = part_costs.cluster.devices[: len(choice.stops)]
    begins = (0, *choice.stops[:-1])
    used = [k for k, stop in enumerate(choice.stops) if stop > begins[k]]
    names = [strip.parts[choice.stops[k] - 1].name for k in used[:-1]]
    idle = [device.name for k, device in enumerate(devices) if k not in used]
    reason = f"{choice.rule}; nothing is left for {', '.join(idle)}" if idle else choice.rule
    label = choice.name[0].upper() + choice.name[1:]
    try:
        again = part_costs.plan_with(
            names, plan, _only(part_costs.cluster, [devices[k].name for k in used])
        )
    except PlanError as error:
        return Candidate(
            key=key, group=choice.name, label=label, reason=f"{reason}; impossible here: {error}"
        )
    return _of_plan(again, key, choice.name, label, reason)


def _only(cluster: Cluster, names: Sequence[str]) -> Cluster:
    """The cluster with these devices first, in this order."""
    known = {device.name: device for device in cluster.devices}
    rest = tuple(device for name, device in known.items() if name not in names)
    ordered = msgspec.structs.replace(cluster, devices=(*(known[n] for n in names), *rest))
    return first_devices(ordered, len(names))
