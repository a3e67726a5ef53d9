"""Plans the shards of a bundle anew for another cluster: which devices hold which of them."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import msgspec

from cutset.bundles.manifest import Manifest
from cutset.bundles.open import Bundle, open_bundle
from cutset.bundles.write.description import replace_plan
from cutset.cluster.devices import Cluster
from cutset.costs.cost_model import CostModel
from cutset.engines.placement import stages_as_pieces, with_speeds
from cutset.errors import PlanError
from cutset.graph.cuts import find_cut_points
from cutset.planning.make import make_plan
from cutset.planning.plan import Plan, StagePlan
from cutset.planning.request import PlanRequest


def plan_shards(
    bundle: Bundle | str | Path, request: PlanRequest, *, is_written: bool = False
) -> Plan:
    """The best plan that keeps a bundle's stages as they are: devices, groups and shares anew.

    Seconds are those of the bundle's plan, by the speed of the devices that it names. A stage
    of which no device is in the new cluster counts by its multiply-adds, which a note says.

    Args:
        bundle: a bundle, or the path of its folder.
        request: what is wanted, with a cluster, and without cuts, codecs or a number of stages.
        is_written: whether the plan takes the place of the bundle's.

    Raises:
        PlanError: the request says how to divide the model, names no cluster, or no plan exists.
        InfeasiblePlan: no placement fits the devices' memory.
        BundleError: the bundle cannot be read, or not be written.
    """
    if request.cluster is None:
        raise PlanError("shards are planned for the devices of a cluster: name its file")
    if request.num_stages is not None or request.cut_names or request.allow:
        raise PlanError("a bundle's stages, cuts and codecs are as they were split")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    manifest = opened.manifest
    plan = _planned(manifest, request, request.cluster)
    if is_written:
        replace_plan(opened, plan)
    return plan


def _planned(manifest: Manifest, request: PlanRequest, cluster: Cluster) -> Plan:
    old = manifest.plan
    cluster = with_speeds(cluster, old)
    # What a stage needs there is known with its worker.
    cluster = msgspec.structs.replace(
        cluster,
        devices=tuple(msgspec.structs.replace(d, worker_bytes=None) for d in cluster.devices),
    )
    cuts = find_cut_points(
        manifest.graph,
        keep=manifest.keep,
        divide=manifest.divide,
        max_tensors=manifest.max_tensors,
    )
    costs, guessed = _costs(manifest, cluster)
    request = msgspec.structs.replace(
        request,
        cluster=cluster,
        num_stages=len(old.stages),
        cut_names=tuple(stage.last for stage in old.stages[:-1]),
    )
    new = make_plan(manifest.graph, cuts, costs, request)
    stages = tuple(
        msgspec.structs.replace(
            was,
            device=now.device,
            compute_s=now.compute_s,
            overhead_s=now.overhead_s,
            send_s=now.send_s,
            receive_s=now.receive_s,
            memory_limit_bytes=now.memory_limit_bytes,
            backend=now.backend,
            replicas=now.replicas,
            encode_s=0.0,
            decode_s=0.0,
        )
        for was, now in zip(old.stages, new.stages, strict=True)
    )
    notes = (f"the shards of {manifest.model} are as they were split", *new.notes)
    if guessed:
        which = ", ".join(map(str, guessed))
        words = "by multiply-adds, as no device that it was planned on is in this cluster"
        notes = (*notes, f"seconds of stage {which}: {words}")
    return msgspec.structs.replace(
        new,
        stages=stages,
        notes=notes,
        input_codec=old.input_codec,
        input_bytes_per_sample=old.input_bytes_per_sample,
    )


def _costs(manifest: Manifest, cluster: Cluster) -> tuple[CostModel, list[int]]:
    """Costs in which a piece is a stage, and the stages that count by their multiply-adds."""
    stages = manifest.plan.stages
    speeds = {device.name: device.speed for device in cluster.devices}
    known_s = [_reference_s(stage, speeds) for stage in stages]
    rates = [
        stage.flops / seconds
        for stage, seconds in zip(stages, known_s, strict=True)
        if seconds and stage.flops
    ]
    if not rates and None in known_s:
        raise PlanError(
            "no device of the bundle's plan is in this cluster, so what its stages take there is"
            " not known: name one of them with its speed, or split again for this cluster"
        )
    rate = statistics.median(rates) if rates else math.inf
    seconds = tuple(
        stage.flops / rate if found is None else found
        for stage, found in zip(stages, known_s, strict=True)
    )
    costs = stages_as_pieces(manifest, cluster, seconds)
    return costs, [k for k, found in enumerate(known_s) if found is None]


def _reference_s(stage: StagePlan, speeds: dict[str, float]) -> float | None:
    """Seconds of a stage at speed 1, codecs included; None where none of its devices is known."""
    for replica in stage.group:
        if replica.device in speeds:
            coding_s = stage.coding_s / replica.share
            return (replica.compute_s + coding_s) * speeds[replica.device]
    return None
