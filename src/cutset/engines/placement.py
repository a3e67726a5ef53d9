"""Where the stages of a bundle run when some of its devices are gone.

The shards stay as they were cut; what is planned again is which device holds which run of them.
To the planner every stage is a piece, with the seconds that the first plan predicted for it, so the
new placement is the best that these shards allow, with the same rules for links and memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence

import msgspec

from cutset.backends.selection import never_computes
from cutset.bundles.manifest import Manifest
from cutset.cluster.devices import Cluster, Device, Link, LinkOverride
from cutset.costs.cost_model import REFERENCE, CostModel, PieceSeconds
from cutset.costs.profile import INPUT_NAME, OUTPUT_NAME
from cutset.errors import EngineError, PlanError
from cutset.graph.cuts import find_cut_points
from cutset.planning import Plan, PlanRequest, make_plan


def cluster_of_plan(plan: Plan) -> Cluster:
    """What a plan alone tells of its cluster.

    Devices are as fast as the plan predicts for their stages; one without a stage is taken for the
    slowest, and every link for the slowest that the plan uses.
    """
    rates = {
        stage.device: stage.flops / stage.compute_s if stage.compute_s and stage.flops else 1.0
        for stage in plan.stages
    }
    fastest = max(rates.values())
    devices = [
        Device(
            name=stage.device,
            speed=rates[stage.device] / fastest,
            memory_bytes=stage.memory_limit_bytes,
        )
        for stage in plan.stages
    ]
    slowest = min(device.speed for device in devices)
    devices += [Device(name=name, speed=slowest) for name in plan.unused_devices]
    bandwidths = [
        stage.output_bytes_per_sample * plan.micro_batch / stage.send_s
        for stage in plan.stages
        if stage.send_s and stage.output_bytes_per_sample
    ]
    link = Link(bandwidth_bytes_per_s=min(bandwidths, default=math.inf))
    unique = {device.name: device for device in devices}
    return Cluster(devices=tuple(unique.values()), link=link)


def with_speeds(cluster: Cluster, plan: Plan) -> Cluster:
    """The cluster with a speed for each device that has its own profile.

    A profile has the costs of pieces, but what is placed here are shards, each of which was planned
    on one device only. So such a device is as fast as its stages were planned to be; one without a
    stage is taken for the slowest.
    """
    if all(device.profile is None for device in cluster.devices):
        return cluster
    planned = {device.name: device.speed for device in cluster_of_plan(plan).devices}
    # Speeds in the file are relative to a device that was profiled, those of the plan to its
    # fastest one; a device that has both says how they compare.
    scales = [
        device.speed / planned[device.name]
        for device in cluster.devices
        if device.profile is None and device.name in planned
    ]
    scale = scales[0] if scales else 1.0
    slowest = min(planned.values()) * scale
    devices = tuple(
        device
        if device.profile is None
        else msgspec.structs.replace(
            device,
            profile=None,
            speed=planned[device.name] * scale if device.name in planned else slowest,
        )
        for device in cluster.devices
    )
    return msgspec.structs.replace(cluster, devices=devices)


def links_of(devices: Sequence[str], caller: str | None) -> list[frozenset[str]]:
    """Between which machines each link of a pipeline leads, in order, the caller's two included.

    One name alone, where both ends are on a machine or a caller is not named.
    """
    ring = itertools.pairwise((caller, *devices, caller))
    return [frozenset(name for name in ends if name is not None) for ends in ring]


def place_stages(
    manifest: Manifest,
    cluster: Cluster,
    lost: Collection[str],
    cut: Collection[frozenset[str]] = (),
) -> tuple[str, ...]:
    """The device of each stage: the plan's own, or the best of those that remain.

    Args:
        manifest: of the bundle.
        cluster: all devices and links.
        lost: names of the devices that are gone.
        cut: pairs of machines between which nothing passes.

    Raises:
        EngineError: what remains cannot hold the stages; says what is missing.
    """
    plan = manifest.plan
    planned = tuple(stage.device for stage in plan.stages)
    if not set(planned) & set(lost) and not set(links_of(planned, cluster.caller)) & set(cut):
        return planned
    cluster = _with_cut_links(_without_overheads(with_speeds(cluster, plan)), cut)
    ways = (f"a way between {' and '.join(sorted(ends))}" for ends in cut)
    gone = ", ".join([*sorted(set(lost)), *sorted(ways)])
    kept = [device.name for device in cluster.devices if device.name not in lost]
    if not kept:
        raise EngineError(f"no device remains without {gone}; the bundle needs one")
    try:
        again = make_plan(
            manifest.graph,
            find_cut_points(
                manifest.graph,
                keep=manifest.keep,
                divide=manifest.divide,
                max_tensors=manifest.max_tensors,
            ),
            stages_as_pieces(manifest, cluster, _reference_s(plan, cluster)),
            PlanRequest(
                cluster=cluster.without(*(set(lost) & {d.name for d in cluster.devices})),
                objective=plan.objective,
            ),
            with_alternatives=False,
        )
    except PlanError as error:
        raise EngineError(
            f"without {gone} the stages find no place on {', '.join(kept)}: {error}"
        ) from error
    placed: list[str] = []
    for stage in plan.stages:
        holder = next(new for new in again.stages if new.start <= stage.start < new.stop)
        placed.append(holder.device)
    if set(links_of(placed, cluster.caller)) & set(cut):
        raise EngineError(f"without {gone} the stages find no place on {', '.join(kept)}")
    return tuple(placed)


def require_backends(manifest: Manifest, stage: int, device: str, names: Sequence[str]) -> None:
    """Checks that one of a device's backends can compute a stage.

    Args:
        manifest: of the bundle.
        stage: index of the stage.
        device: name of the device.
        names: full names of what computes there.

    Raises:
        EngineError: none can; says why, and what to do.
    """
    entry = manifest.stages[stage]
    reasons = dict.fromkeys(never_computes(name, entry) for name in names)
    if "" in reasons:
        return
    need = "onnxruntime" if entry.program is None else "torch"
    raise EngineError(
        f"stage {stage} cannot run on {device}: {'; '.join(reasons) or 'no backend is there'}."
        f" {device} computes with {', '.join(names) or 'nothing'}: install {need} there, or say in"
        " the cluster file which backends each device has (backends = [...]) and split again"
    )


def _with_cut_links(cluster: Cluster, cut: Collection[frozenset[str]]) -> Cluster:
    """The cluster with ways so slow that only a plan without another choice uses them."""
    known = {device.name for device in cluster.devices} | {cluster.caller}
    ways = {way for ends in cut if ends <= known for way in itertools.permutations(ends)}
    kept = [o for o in cluster.overrides if (o.source, o.target) not in ways]
    slow = Link(bandwidth_bytes_per_s=1.0)
    made = [LinkOverride(source=a, target=b, link=slow) for a, b in sorted(ways)]
    return msgspec.structs.replace(cluster, overrides=(*kept, *made))


def _without_overheads(cluster: Cluster) -> Cluster:
    """The cluster for pieces that bring their overheads along, a worker's own memory too."""
    devices = tuple(
        msgspec.structs.replace(d, overhead_s=0.0, worker_bytes=None) for d in cluster.devices
    )
    return msgspec.structs.replace(cluster, devices=devices, caller_overhead_s=0.0)


def _reference_s(plan: Plan, cluster: Cluster) -> tuple[float, ...]:
    """Seconds of each stage at speed 1, with its overhead, which adds up on a device too."""
    speeds = {device.name: device.speed for device in cluster.devices}
    firsts = [stage.group[0] for stage in plan.stages]
    return tuple(first.busy_s * speeds.get(first.device, 1.0) for first in firsts)


def stages_as_pieces(
    manifest: Manifest, cluster: Cluster, reference_s: Sequence[float]
) -> CostModel:
    """Costs in which a piece is a stage.

    Each stage has a worker of its own, so the memory of several on a device adds up, that of the
    runtime, of activations and of what waits too; all of it is booked as weights.

    Args:
        manifest: of the bundle.
        cluster: where its stages are to be.
        reference_s: seconds of each stage for one micro-batch, at speed 1.
    """
    plan = manifest.plan
    # Where devices say what computes there, a stage that it cannot read has no time there.
    backends = {name for device in cluster.devices for name in device.backends or ()} or {""}
    return CostModel(
        micro_batch=plan.micro_batch,
        positions=(*(stage.start for stage in plan.stages), plan.stages[-1].stop),
        names=(INPUT_NAME, *(stage.last for stage in plan.stages[:-1]), OUTPUT_NAME),
        kinds=("", *("block" for _ in plan.stages[:-1]), ""),
        cut_bytes_per_row=(
            plan.input_bytes_per_sample
            or sum(spec.bytes_per_sample for spec in manifest.graph.inputs),
            *(stage.travelling_bytes for stage in plan.stages),
        ),
        flops_per_row=tuple(stage.flops for stage in plan.stages),
        own_weight_bytes=tuple(stage.memory_bytes for stage in plan.stages),
        shared_weights=(),
        peak_bytes_per_row=tuple(0 for _ in plan.stages),
        seconds=tuple(
            PieceSeconds(
                device=REFERENCE,
                backend=backend,
                seconds=tuple(
                    None if never_computes(backend, entry) else seconds
                    for entry, seconds in zip(manifest.stages, reference_s, strict=True)
                ),
            )
            for backend in sorted(backends)
        ),
        window=0,
    )
