"""Writes stages with groups of devices down: members, shares, messages between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import msgspec

from cutset.cluster.devices import Cluster, Device
from cutset.cluster.wires import Wires
from cutset.planning.formulate import BuiltProblem
from cutset.planning.group_problem import GroupProblem, GroupStage, GroupStages, group_problem
from cutset.planning.plan import Copies, Replica, StagePlan
from cutset.planning.plan_messages import PlannedMessage, WireUse
from cutset.planning.problem import Placed
from cutset.planning.request import MAX_REPLICAS
from cutset.planning.totals import Floats


class _Member(msgspec.Struct, frozen=True, kw_only=True):
    device: Device
    device_class: int
    share: float


def members_of(
    built: BuiltProblem, problem: GroupProblem, stages: GroupStages
) -> list[list[_Member]]:
    """The devices of each stage with their shares, in the order of classes."""
    free = [list(group) for group in built.classes]
    return [
        [
            _Member(device=free[c].pop(0), device_class=c, share=own[c])
            for c in stage.classes
            for _ in range(stage.members[c])
        ]
        for stage, own in zip(stages, problem.shares(stages), strict=True)
    ]


def with_groups(
    firsts: Sequence[StagePlan],
    built: BuiltProblem,
    problem: GroupProblem,
    stages: GroupStages,
) -> tuple[StagePlan, ...]:
    """Stages with their groups.

    Args:
        firsts: the stages as if each was on the first of its devices.
        built: what the problem stands for.
        problem: what was solved.
        stages: the solution.
    """
    loads = problem.lost_s(stages)
    members = members_of(built, problem, stages)
    found = []
    for k, (plan, stage, group) in enumerate(zip(firsts, stages, members, strict=True)):
        replicas = []
        shared_bytes = plan.memory_bytes - built.memory.beside(group[0].device)
        for member in group:
            c, share = member.device_class, member.share
            compute_s = float(problem.compute_s[c][stage.start, stage.stop])
            steady_s, each_s = loads[k][c]
            replicas.append(
                Replica(
                    device=member.device.name,
                    share=share,
                    compute_s=compute_s,
                    memory_bytes=shared_bytes + built.memory.beside(member.device),
                    memory_limit_bytes=member.device.memory_bytes,
                    backend=_backend_of(problem, c, stage.start, stage.stop),
                    overhead_s=max(0.0, each_s - compute_s) + steady_s / share,
                )
            )
        tightest = min(
            replicas,
            key=lambda r: (
                math.inf if r.memory_limit_bytes is None else r.memory_limit_bytes - r.memory_bytes
            ),
        )
        compute_s = max(r.share * r.compute_s for r in replicas)
        busy_s = max(r.share * r.busy_s for r in replicas)
        codecs = problem.chain.byte_costs
        found.append(
            msgspec.structs.replace(
                plan,
                device=replicas[0].device,
                compute_s=compute_s,
                overhead_s=busy_s - compute_s,
                encode_s=_most_s(group, None if codecs is None else codecs.encode_s[:, stage.stop]),
                decode_s=_most_s(
                    group, None if codecs is None else codecs.decode_s[:, stage.start]
                ),
                receive_s=_moves_s(problem, members, stages, k),
                send_s=_moves_s(problem, members, stages, k + 1),
                memory_bytes=tightest.memory_bytes,
                memory_limit_bytes=tightest.memory_limit_bytes,
                replicas=tuple(replicas) if len(replicas) > 1 else (),
            )
        )
    return tuple(found)


def _most_s(group: list[_Member], by_class: Floats | None) -> float:
    """Seconds per micro-batch of the member for which its share takes longest."""
    if by_class is None:
        return 0.0
    return max(member.share * float(by_class[member.device_class]) for member in group)


def _backend_of(problem: GroupProblem, device_class: int, start: int, stop: int) -> str:
    """The backend that is the fastest for a stage; the first by name among equals."""
    variants = problem.chain.of_class(device_class)
    return min(variants, key=lambda v: v.cost_s(start, stop)).backend


def _moves_s(
    problem: GroupProblem, members: list[list[_Member]], stages: GroupStages, k: int
) -> float:
    """Seconds per micro-batch of the busiest link into stage k, or from the last to the caller."""
    chain = problem.chain
    if k == 0:
        return max(m.share * float(chain.source_s[m.device_class]) for m in members[0])
    if k == len(members):
        return max(m.share * float(chain.sink_s[m.device_class]) for m in members[-1])
    return max(
        min(a.share, b.share)
        * float(chain.link_row_s(a.device_class, b.device_class)[stages[k].start])
        for a, b in itertools.product(members[k - 1], members[k])
    )


def messages_of_groups(
    cluster: Cluster, groups: Sequence[Sequence[tuple[str, float]]], sizes: Sequence[int]
) -> tuple[PlannedMessage, ...]:
    """The messages between machines: a link carries at most the smaller share of its two ends.

    Args:
        cluster: where the stages are.
        groups: devices of each stage with their shares.
        sizes: bytes of one micro-batch of the model's inputs, across each cut, of its outputs.
    """
    wires, found = Wires(cluster), []
    outer = [[(cluster.caller, 1.0)]] if cluster.caller is not None else [[]]
    places = [*outer, *groups, *outer]
    for index, (sources, targets) in enumerate(itertools.pairwise(places)):
        for (source, from_share), (target, to_share) in itertools.product(sources, targets):
            way = wires.between(str(source), str(target))
            if not way.uses:
                continue
            # The link itself carries at most so much; a port the mean of all that pass through it.
            link, *shared = way.uses
            parts = [(link, min(from_share, to_share))]
            parts += [(use, from_share * to_share) for use in shared]
            uses = [
                WireUse(wire=use.wire, busy_s=part * use.seconds(sizes[index]))
                for use, part in parts
            ]
            found.append(
                PlannedMessage(
                    after=index - 1 if index else None,
                    source=str(source),
                    target=str(target),
                    num_bytes=sizes[index],
                    seconds=way.seconds(sizes[index]),
                    uses=tuple(uses),
                    limit=way.limit,
                )
            )
    return tuple(found)


def copies_beside(built: BuiltProblem, cluster: Cluster) -> Copies:
    """What the whole model on every device that holds it would give."""
    if cluster.media:
        return Copies(reason="copies are not planned where devices share a medium")
    problem = group_problem(built, cluster, MAX_REPLICAS)
    num = built.problem.num_pieces
    whole = Placed(0, num, 0)
    members = tuple(
        count if built.problem.fits((whole._replace(device_class=c),)) else 0
        for c, count in enumerate(built.problem.counts)
    )
    if sum(members) < 2:
        names = [built.classes[c][0].name for c, count in enumerate(members) if count]
        where = f"on {names[0]} only" if names else "on none of the devices"
        return Copies(reason=f"the whole model fits {where}")
    stages = (GroupStage(0, num, members),)
    (group,) = members_of(built, problem, stages)
    order = {device.name: k for k, device in enumerate(cluster.devices)}
    group.sort(key=lambda member: order[member.device.name])
    return Copies(
        devices=tuple(member.device.name for member in group),
        shares=tuple(member.share for member in group),
        period_s=problem.period_s(stages),
        latency_s=problem.latency_s(stages),
    )
