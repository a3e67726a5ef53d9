"""The whole way in a few calls: prepare a model, profile it, plan, split; what the commands do.

Each step takes values and returns a new one::

    prepared = prepare_model("torchvision:resnet50", weights="random:0")
    profile = profile_model(prepared, batch_size=1, num_threads=1)
    plan = plan_stages(prepared, num_stages=2, profile=profile)
    bundle, report = split_model(prepared, plan, "resnet50.cutset")
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cutset.backends.allocator import keep_freed_memory
from cutset.backends.base import AUTO, BACKENDS, missing_here
from cutset.bundles.open import Bundle, open_bundle, read_manifest
from cutset.bundles.proof.results import VerificationReport
from cutset.bundles.proof.verify import verify_bundle
from cutset.bundles.reference import reference_rows
from cutset.bundles.write.export import export_bundle, replace_plan
from cutset.capture.arguments import untouched
from cutset.capture.independence import check_micro_batch
from cutset.cluster.devices import Cluster
from cutset.costs.model import (
    REFERENCE,
    CostModel,
    Granularity,
    Profile,
    costs_from_flops,
    costs_from_profile,
    load_profile,
)
from cutset.errors import BundleError, PlanError, VerificationError
from cutset.graph.cuts import CutPoints
from cutset.measure.idle_memory import measure_worker_base
from cutset.measure.piece_backends import piece_backends
from cutset.measure.profiling import PieceBackend, profile_costs
from cutset.planning import (
    MoreTensors,
    Plan,
    PlanRequest,
    expect_on_cluster,
    make_plan,
    more_rows_advice,
    pareto_plans,
    try_more_tensors,
)
from cutset.preparation import (
    PreparedModel,
    Say,
    prepare_found,
    prepare_model,
    say_nothing,
)

if TYPE_CHECKING:
    from cutset.engines.ray.engine import RayCluster

__all__ = [
    "PlanRequest",
    "PreparedModel",
    "Say",
    "cost_model",
    "load_profiles",
    "plan_front",
    "plan_stages",
    "prepare_found",
    "prepare_model",
    "profile_model",
    "raise_if_failed",
    "rows_of_micro_batch",
    "split_model",
    "stage_backends",
    "time_on_cluster",
    "verify_against",
]


def rows_of_micro_batch(prepared: PreparedModel, batch_size: int | None) -> int:
    """Rows of a micro-batch: those that are asked for, or the only ones there are, or one.

    Raises:
        PlanError: the model was captured for another number alone.
    """
    only = prepared.captured.micro_batch_only
    if batch_size is None:
        return only or 1
    if only not in (None, batch_size):
        raise PlanError(
            f"{prepared.name} was captured for micro-batches of exactly {only} "
            f"{'row' if only == 1 else 'rows'}, not {batch_size}; leave the size out "
            "(--batch-size), or capture it for that number (--micro-batch-only)"
        )
    return batch_size


def stage_backends(
    prepared: PreparedModel, *, num_threads: int = 1, compiled: bool = False
) -> Mapping[str, PieceBackend]:
    """What can run pieces of a prepared model here.

    For `profile_model` and `cutset.measure.local_plans.expect_here`.

    Args and errors as for `piece_backends`.
    """
    return piece_backends(
        prepared.captured, prepared.cuts, num_threads=num_threads, compiled=compiled
    )


def profile_model(
    prepared: PreparedModel,
    *,
    batch_size: int | None = None,
    num_threads: int = 1,
    num_runs: int = 20,
    device: str = "",
    backends: Mapping[str, PieceBackend] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Profile:
    """Measures every piece of a prepared model on this device with every backend that is installed.

    Args and errors as for `profile_costs`; `backends` as `stage_backends` gives them if None. As
    workers do, this process keeps the memory of freed activations from now on, so that what is
    measured here is what they take.
    """
    keep_freed_memory()
    return profile_costs(
        prepared.captured,
        prepared.cuts,
        micro_batch=rows_of_micro_batch(prepared, batch_size),
        num_threads=num_threads,
        num_runs=num_runs,
        backends=backends or stage_backends(prepared, num_threads=num_threads),
        model_name=prepared.name,
        device=device,
        progress=progress,
    )


def load_profiles(
    cluster: Cluster | None, folder: Path, reference: Profile | None
) -> Profile | dict[str, Profile] | None:
    """The profiles to plan with: the reference, and those that a cluster's devices name.

    Args:
        cluster: the cluster, or None.
        folder: where the files that its devices name are looked for.
        reference: what devices without a profile are scaled from; where None, the first device's
            own profile serves.

    Raises:
        PlanError: a profile cannot be read.
    """
    named = {
        device.profile: load_profile(folder / device.profile)
        for device in (cluster.devices if cluster else ())
        if device.profile is not None
    }
    if not named:
        return reference
    return named if reference is None else {REFERENCE: reference, **named}


def cost_model(
    prepared: PreparedModel,
    *,
    profiles: Profile | Mapping[str, Profile] | None = None,
    batch_size: int | None = None,
    base_bytes: int = 0,
    granularity: Granularity = "unit",
    finer: CutPoints | None = None,
) -> CostModel:
    """Costs from profiles, or from multiply-adds alone where there are none.

    Args:
        prepared: the model.
        profiles: one for all devices, or by the name that a cluster gives them.
        batch_size: rows of a micro-batch; where None the profiles', or without them 1 or the only
            number that the model was captured for.
        base_bytes: what a worker needs before it holds a shard.
        granularity: ``"unit"``, or ``"op"`` to allow cuts between any two operations.
        finer: positions with more cut points than the model's, to see what these would give.

    Raises:
        PlanError: a profile is of another model, or of micro-batches of another size.
    """
    graph, cuts = prepared.captured.graph, prepared.cuts
    if profiles is None:
        return costs_from_flops(
            graph,
            finer or cuts,
            micro_batch=rows_of_micro_batch(prepared, batch_size),
            base_bytes=base_bytes,
            granularity=granularity,
        )
    for profile in [profiles] if isinstance(profiles, Profile) else profiles.values():
        rows_of_micro_batch(prepared, profile.micro_batch)
        if batch_size not in (None, profile.micro_batch):
            raise PlanError(
                f"the profile of {profile.device!r} was made with micro-batches of "
                f"{profile.micro_batch} {'row' if profile.micro_batch == 1 else 'rows'}, not the "
                f"{batch_size} that were asked for; leave the size out (--batch-size), or profile "
                "it again with that size"
            )
    return costs_from_profile(
        graph, cuts, profiles, base_bytes=base_bytes, granularity=granularity, finer=finer
    )


def plan_stages(
    prepared: PreparedModel,
    request: PlanRequest | None = None,
    *,
    num_stages: int | None = None,
    profile: Profile | Mapping[str, Profile] | None = None,
    batch_size: int | None = None,
    granularity: Granularity = "unit",
) -> Plan:
    """The best plan for a request; for N equal devices ``num_stages=N`` says enough.

    Args:
        prepared: the model.
        request: what is wanted.
        num_stages: short for a request that says only this.
        profile: measured costs; multiply-adds alone where None.
        batch_size: rows of a micro-batch; where None the profile's, or without one 1 or the only
            number that the model was captured for.
        granularity: ``"op"`` allows cuts between any two operations, to see what respecting units
            costs; such a plan is not for splitting.

    Raises:
        PlanError: no plan can be made; says why.
        InfeasiblePlan: no placement fits the devices' memory.
        TypeError: both a request and `num_stages` are given.
    """
    if request is not None and num_stages is not None:
        raise TypeError("give a request or num_stages; a request says the number itself")
    wanted = request or PlanRequest(num_stages=num_stages)
    costs_at = functools.partial(
        cost_model,
        prepared,
        profiles=profile,
        batch_size=batch_size,
        base_bytes=_base_bytes(wanted.devices_and_links, profile),
    )
    try:
        plan = make_plan(
            prepared.captured.graph,
            prepared.cuts,
            costs_at(granularity=granularity),
            wanted,
        )
    except PlanError as error:
        more = _more_tensors(prepared, wanted, None, costs_at) if granularity == "unit" else None
        if more is not None:
            error.args = (f"{error}; {_advice(more)}",)
        raise
    if granularity == "unit":
        more = _more_tensors(prepared, wanted, plan, costs_at)
        advice = more_rows_advice(
            prepared.captured.graph,
            prepared.cuts,
            costs_at(),
            wanted,
            plan=plan,
        )
        notes = (*plan.notes, advice) if advice else plan.notes
        plan = msgspec.structs.replace(plan, more_tensors=more, notes=notes)
    if profile is not None:
        return plan
    note = "times stand for work: 1e9 multiply-adds a second at speed 1; nothing was measured"
    return msgspec.structs.replace(plan, notes=(*plan.notes, note))


def _more_tensors(
    prepared: PreparedModel,
    wanted: PlanRequest,
    plan: Plan | None,
    costs_at: Callable[..., CostModel],
) -> MoreTensors | None:
    """What more tensors across a cut would give; None where the caller names the cuts."""
    if wanted.cut_names:
        return None
    return try_more_tensors(
        prepared.captured.graph,
        prepared.cuts,
        wanted,
        lambda finer: costs_at(finer=finer),
        plan=plan,
        keep=prepared.keep,
        divide=prepared.divide,
    )


def _advice(more: MoreTensors) -> str:
    """What the user of a model without a plan can do."""
    return (
        f"with max_tensors={more.max_tensors} (--max-tensors {more.max_tensors}) there would be "
        f"{more.num_points} cut points instead of {more.num_points_now}, and the slowest stage "
        f"would compute {more.slowest_over_even:.2f} times as long as the average one"
    )


def plan_front(
    prepared: PreparedModel,
    request: PlanRequest,
    *,
    profile: Profile | Mapping[str, Profile] | None = None,
    batch_size: int | None = None,
) -> tuple[Plan, ...]:
    """Every plan that no other beats in both period and latency; arguments as `plan_stages`."""
    costs = cost_model(
        prepared,
        profiles=profile,
        batch_size=batch_size,
        base_bytes=_base_bytes(request.devices_and_links, profile),
    )
    return pareto_plans(
        prepared.captured.graph,
        prepared.cuts,
        costs,
        request,
    )


def split_model(
    prepared: PreparedModel,
    plan: Plan,
    directory: str | Path,
    *,
    num_threads: int = 1,
    replace: bool = False,
    say: Say | None = None,
) -> tuple[Path, VerificationReport]:
    """Writes the bundle of a plan and proves it against the whole model.

    A bundle that fails a check is not left behind. Of a model that was prepared by a part the
    bundle holds that part, and says so.

    Args:
        prepared: the model.
        plan: its stages.
        directory: the bundle's folder.
        num_threads: threads with which the reference tensors are computed.
        replace: whether a bundle that is there already may be replaced.
        say: told of every step.

    Raises:
        CaptureError: a row's result is another among as many as the plan's micro-batches have.
        BundleError: the folder exists or cannot be written.
        VerificationError: the pieces do not equal the whole.
    """
    say = say or say_nothing
    rows_of_micro_batch(prepared, plan.micro_batch)
    say("trying a micro-batch's number of rows")
    captured = prepared.captured
    graph = captured.graph
    specs = (*graph.inputs, *map(graph.spec_of, graph.outputs))
    tried = reference_rows(specs, plan.micro_batch, captured.micro_batch_only)
    with untouched(prepared.module):
        check_micro_batch(captured, prepared.module, max(tried))
    reports: list[VerificationReport] = []

    def check(folder: Path) -> None:
        say("verifying")
        report = verify_bundle(folder, model=prepared.module, call_model=prepared.captured.call)
        reports.append(report)
        raise_if_failed(report)

    path = export_bundle(
        prepared.module,
        plan,
        directory,
        captured=prepared.captured,
        model_name=prepared.name,
        part=prepared.part_entry,
        weights=prepared.found.weights,
        preprocessing=prepared.found.preprocessing,
        # They name what the whole model answers.
        labels=None if prepared.part else prepared.found.labels,
        keep=prepared.keep,
        divide=prepared.divide,
        max_tensors=prepared.cuts.max_tensors,
        num_threads=num_threads,
        replace=replace,
        check=check,
        progress=say,
    )
    return path, reports[0]


def time_on_cluster(
    bundle: Bundle | str | Path,
    settings: RayCluster,
    *,
    num_threads: int = 1,
    duration_s: float = 5.0,
    say: Say | None = None,
) -> Plan:
    """Times a bundle's stages on their nodes, and writes what its plan then takes into the bundle.

    Args:
        bundle: a bundle, or the path of its folder.
        settings: the Ray cluster, and the cluster that the plan was made for.
        num_threads: threads of each stage.
        duration_s: for how long each stage computes, at least; and as long again with rests.
        say: told of every step.

    Returns:
        The plan with `Plan.expected`.

    Raises:
        EngineError: a stage cannot be timed; says which and why.
        BundleError: the bundle cannot be read, or not be written anew.
        ValueError: `settings` names no cluster.
    """
    from cutset.measure.stages_on_nodes import time_stages_on_nodes

    if settings.cluster is None:
        raise ValueError("settings.cluster is None: what messages take there is not known")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    plan, inputs = opened.manifest.plan, opened.manifest.graph.inputs
    with settings.stage_programs(opened, say or say_nothing) as programs:
        timed = time_stages_on_nodes(
            programs,
            backends=[AUTO] * len(plan.stages),
            num_threads=num_threads,
            micro_batch=plan.micro_batch,
            duration_s=duration_s,
        )
    plan = expect_on_cluster(
        plan,
        settings.cluster,
        sum(spec.bytes_per_sample for spec in inputs),
        [result.mean_s for result in timed],
        [result.rested_s or result.mean_s for result in timed],
    )
    replace_plan(opened, plan)
    return plan


def verify_against(
    bundle: str | Path,
    *,
    model: str | None = None,
    weights: str | None = None,
    say: Say | None = None,
) -> VerificationReport:
    """Verifies a bundle, and where a model is named compares it with the whole of that too.

    Args:
        bundle: the bundle's folder.
        model: as `find_model` takes it, or None.
        weights: as `find_model` takes it.
        say: told of every step.

    Raises:
        ModelError: the model cannot be found or captured.
    """
    say = say or say_nothing
    if model is None:
        return verify_bundle(bundle, progress=say)
    try:
        manifest = read_manifest(Path(bundle))
    except BundleError:
        return verify_bundle(bundle, progress=say)  # which says what is wrong with it
    # What a bundle holds of a model is compared with just that.
    prepared = prepare_model(
        model,
        weights=weights,
        part=manifest.part.path if manifest.part else None,
        micro_batch_only=manifest.micro_batch_only,
        say=say,
    )
    return verify_bundle(
        bundle, model=prepared.module, call_model=prepared.captured.call, progress=say
    )


def _base_bytes(cluster: Cluster, profiles: Profile | Mapping[str, Profile] | None) -> int:
    """What a worker needs before it holds a shard; measured only where memory is a limit.

    With the backend that needs the most, of those that are installed here and were measured.
    """
    if all(device.memory_bytes is None for device in cluster.devices):
        return 0
    found = [profiles] if isinstance(profiles, Profile) else [*(profiles or {}).values()]
    names = {name for profile in found for piece in profile.pieces for name in piece.timings}
    usable = [name for name in names.intersection(BACKENDS) if not missing_here(name)]
    return max(map(measure_worker_base, usable or [BACKENDS[0]]))


def raise_if_failed(report: VerificationReport) -> None:
    """Raises what a failed report says.

    Raises:
        VerificationError: a check failed; names the first one.
    """
    if report.error is not None:
        raise report.error
    failed = [check for check in report.checks if not check.ok]
    if failed:
        first = report.differences[0] if report.differences else None
        raise VerificationError(
            f"check {failed[0].name!r} failed: {failed[0].detail}",
            stage=first.stage if first else None,
            tensor=first.tensor if first else None,
            max_abs_error=first.max_abs_error if first else None,
            tolerance=first.tolerance if first else None,
        )
