"""From a plan to a bundle that is proven to be the whole model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cutset.backends.selection import AUTO
from cutset.bundles.agreement import AgreementEntry
from cutset.bundles.open import Bundle, open_bundle, read_manifest
from cutset.bundles.proof.results import VerificationReport, raise_if_failed
from cutset.bundles.proof.verify import verify_bundle
from cutset.bundles.reference import reference_rows
from cutset.bundles.write.description import replace_plan
from cutset.bundles.write.export import export_bundle
from cutset.capture.independence import check_micro_batch
from cutset.cluster.devices import Cluster
from cutset.codecs.coding import CodecError
from cutset.errors import BundleError, ModelError, PlanError
from cutset.planning import Plan, expect_on_cluster
from cutset.progress import Progress, no_progress
from cutset.workflow.allowed_codecs import AnswerLimits, agreement_of
from cutset.workflow.measured_costs import rows_of_micro_batch
from cutset.workflow.prepare import PreparedModel, prepare_model

if TYPE_CHECKING:
    from cutset.engines.registry import EngineSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProvenBundle(Bundle):
    """A bundle that was proven to be the whole model.

    Attributes:
        verification: what was checked, and how near the pieces come to the whole.
    """

    verification: VerificationReport

    def __iter__(self) -> Iterator[Bundle | VerificationReport]:
        """Itself and its verification: the pair that `split_model` returned before; deprecated."""
        warnings.warn(
            "split_model returns one bundle; write bundle = split_model(...) and take its"
            " bundle.verification",
            DeprecationWarning,
            stacklevel=2,
        )
        yield self
        yield self.verification


def split_model(
    prepared: PreparedModel,
    plan: Plan,
    directory: str | Path,
    *,
    num_threads: int = 1,
    agreement: AgreementEntry | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> ProvenBundle:
    """Writes the bundle of a plan, proves it against the whole model, and opens it.

    A bundle that fails a check is not left behind. Of a model that was prepared by a part the
    bundle holds that part, and says so.

    Args:
        prepared: the model.
        plan: its stages.
        directory: the bundle's folder.
        num_threads: threads with which the reference tensors are computed.
        agreement: where the plan has codecs, how far they change answers, as `plan_within` gives
            it; looked at on the reference's rows if None.
        replace: whether a bundle that is there already may be replaced.
        progress: told of every step.

    Raises:
        CaptureError: a row's result is another among as many as the plan's micro-batches have.
        BundleError: the folder exists or cannot be written, or a codec of the plan refuses a number
            of the reference.
        VerificationError: the pieces do not equal the whole.
    """
    progress = progress or no_progress
    rows_of_micro_batch(prepared, plan.micro_batch)
    progress("trying a micro-batch's number of rows")
    captured = prepared.captured
    graph = captured.graph
    specs = (*graph.inputs, *map(graph.spec_of, graph.outputs))
    tried = reference_rows(specs, plan.micro_batch, captured.micro_batch_only)
    check_micro_batch(captured, max(tried))
    reports: list[VerificationReport] = []

    def check(folder: Path) -> None:
        progress("verifying")
        report = verify_bundle(folder, captured=captured)
        reports.append(report)
        raise_if_failed(report)

    try:
        agreement = agreement or agreement_of(prepared, plan, AnswerLimits())
    except CodecError as error:
        raise BundleError(
            f"{directory}: the plan's codecs do not fit the model: {error}"
        ) from error

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
        agreement=agreement,
        replace=replace,
        check=check,
        progress=progress,
    )
    bundle = open_bundle(path)
    return ProvenBundle(
        directory=bundle.directory,
        manifest=bundle.manifest,
        stages=bundle.stages,
        verification=reports[0],
    )


def time_on_cluster(
    bundle: Bundle | str | Path,
    settings: EngineSettings,
    *,
    num_threads: int = 1,
    duration_s: float = 5.0,
    progress: Progress | None = None,
) -> Plan:
    """Times a bundle's stages on their nodes, and writes what its plan then takes into the bundle.

    Args:
        bundle: a bundle, or the path of its folder.
        settings: an engine for several hosts, and the cluster that the plan was made for.
        num_threads: threads of each stage.
        duration_s: for how long each stage computes, at least; and as long again with rests.
        progress: told of every step.

    Returns:
        The plan with `Plan.expected`.

    Raises:
        EngineError: a stage cannot be timed; says which and why.
        BundleError: the bundle cannot be read, or not be written anew.
        PlanError: the plan has stages on several devices.
        ValueError: `settings` names no cluster, or is an engine for this machine alone.
    """
    from cutset.measure.stages_on_nodes import time_stages_on_nodes

    cluster: Cluster | None = getattr(settings, "cluster", None)
    if cluster is None:
        raise ValueError("settings.cluster is None: what messages take there is not known")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(Path(bundle))
    plan, inputs = opened.manifest.plan, opened.manifest.graph.inputs
    if plan.has_groups:
        raise PlanError(
            "a stage is timed on one device, and this plan has stages on several: what was planned"
            " stands; plan with one device a stage (--no-replicas) to time it"
        )
    there = settings.stage_programs(opened, progress or no_progress)
    if there is None:
        raise ValueError(f"the engine {settings.name!r} computes on this machine alone")
    with there as programs:
        timed = time_stages_on_nodes(
            programs,
            backends=[AUTO] * len(plan.stages),
            num_threads=num_threads,
            micro_batch=plan.micro_batch,
            duration_s=duration_s,
        )
    plan = expect_on_cluster(
        plan,
        cluster,
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
    calibration: Sequence[Path] = (),
    progress: Progress | None = None,
) -> VerificationReport:
    """Verifies a bundle, and where a model is named compares it with the whole of that too.

    Args:
        bundle: the bundle's folder.
        model: as `find_model` takes it, or None.
        weights: as `find_model` takes it.
        calibration: files of rows, as `AnswerLimits` has them: how far the codecs of the bundle
            change the named model's answers on them is the report's `agreement` then.
        progress: told of every step.

    Raises:
        ModelError: the model cannot be found or captured, or a row cannot be read.
        ValueError: there are calibration rows, and no model, or no codecs in the bundle.
    """
    progress = progress or no_progress
    if model is None:
        if calibration:
            raise ValueError("calibration rows are for the answers of a model; name it")
        return verify_bundle(bundle, progress=progress)
    try:
        manifest = read_manifest(Path(bundle))
    except BundleError:
        return verify_bundle(bundle, progress=progress)  # which says what is wrong with it
    if calibration and not manifest.is_coded:
        raise ValueError(f"{bundle} has no codecs: on every row its answers are the model's")
    # What a bundle holds of a model is compared with just that.
    prepared = prepare_model(
        model,
        weights=weights,
        part=manifest.part.path if manifest.part else None,
        micro_batch_only=manifest.micro_batch_only,
        progress=progress,
    )
    report = verify_bundle(bundle, captured=prepared.captured, progress=progress)
    if not calibration or not report.ok:
        return report
    progress("comparing answers with and without codecs")
    try:
        found = agreement_of(prepared, manifest.plan, AnswerLimits(calibration=tuple(calibration)))
    except CodecError as error:
        raise ModelError(f"calibration: {error}") from error
    return dataclasses.replace(report, agreement=found)
