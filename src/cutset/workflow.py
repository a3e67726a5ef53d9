"""The whole way in a few calls: prepare a model, profile it, plan, split; what the commands do.

Each step takes values and returns a new one::

    prepared = prepare_model("torchvision:resnet50", weights="random:0")
    profile = profile_model(prepared, batch_size=1, num_threads=1)
    plan = plan_stages(prepared, num_stages=2, profile=profile)
    bundle, report = split_model(prepared, plan, "resnet50.cutset")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from cutset.backends.pieces import piece_backends
from cutset.costs.model import CostModel, Profile, costs_from_flops, costs_from_profile
from cutset.costs.profile import profile_costs
from cutset.devices import Cluster, equal_cluster
from cutset.errors import PlanError, VerificationError
from cutset.graph.capture import capture_model
from cutset.graph.cuts import CutPoints, find_cut_points
from cutset.graph.lowering import CapturedModel
from cutset.models import FoundModel, find_model
from cutset.planning import Plan, make_plan
from cutset.shards.export import export_bundle
from cutset.shards.verify import VerificationReport, verify_bundle

Say = Callable[[str], None]
"""Takes a few words about the step that begins."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedModel:
    """A model, captured, with its positions judged.

    Attributes:
        found: the model with its weights, preprocessing and labels.
        captured: its graph.
        cuts: where it may be cut.
        keep: classes that were made units.
        divide: classes that were allowed to be cut between their children.
    """

    found: FoundModel
    captured: CapturedModel
    cuts: CutPoints
    keep: tuple[str, ...]
    divide: tuple[str, ...]


def prepare_model(
    spec: str,
    *,
    weights: str | None = None,
    keep: Collection[str] = (),
    divide: Collection[str] = (),
    max_tensors: int = 1,
    say: Say | None = None,
) -> PreparedModel:
    """Finds a model, captures it and judges its positions.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``FILE.py:FACTORY`` or ``FILE.pt2``.
        weights: as `find_model` takes them.
        keep: classes to make units.
        divide: classes that may be cut between their children.
        max_tensors: how many tensors may cross a cut.
        say: told of every step.

    Raises:
        ModelError: the model or its weights cannot be found, or the model cannot be captured.
        PlanError: `keep` or `divide` names a class that the model does not call.
    """
    say = say or _silent
    say(f"building {spec}")
    found = find_model(spec, weights=weights)
    say(f"capturing {found.name}")
    captured = capture_model(found.model, found.example_inputs)
    cuts = find_cut_points(captured.graph, keep=keep, divide=divide, max_tensors=max_tensors)
    return PreparedModel(
        found=found, captured=captured, cuts=cuts, keep=tuple(keep), divide=tuple(divide)
    )


def profile_model(
    prepared: PreparedModel,
    *,
    batch_size: int = 1,
    num_threads: int = 1,
    num_runs: int = 20,
    device: str = "",
    progress: Callable[[str, int, int], None] | None = None,
) -> Profile:
    """Measures every piece of a prepared model on this device with every backend that is installed.

    Args and errors as for `profile_costs`.
    """
    return profile_costs(
        prepared.captured,
        prepared.cuts,
        micro_batch=batch_size,
        num_threads=num_threads,
        num_runs=num_runs,
        backends=piece_backends(prepared.captured, prepared.cuts, num_threads=num_threads),
        model_name=prepared.found.name,
        device=device,
        progress=progress,
    )


def cost_model(
    prepared: PreparedModel, *, profile: Profile | None = None, batch_size: int = 1
) -> CostModel:
    """Costs from a profile, or from multiply-adds alone where there is none."""
    graph, cuts = prepared.captured.graph, prepared.cuts
    if profile is None:
        return costs_from_flops(graph, cuts, micro_batch=batch_size)
    return costs_from_profile(graph, cuts, profile)


def plan_stages(
    prepared: PreparedModel,
    *,
    num_stages: int | None = None,
    cut_names: Sequence[str] = (),
    cluster: Cluster | None = None,
    profile: Profile | None = None,
    batch_size: int = 1,
    objective: str = "throughput",
) -> Plan:
    """Plans for N equal devices, for given cuts, or for a cluster.

    Args:
        prepared: the model.
        num_stages: that many equal devices, a stage each.
        cut_names: the cuts, by the names that `inspect` shows; there is one stage more.
        cluster: unequal devices and their links; of any number of stages the best.
        profile: measured costs; multiply-adds alone where None.
        batch_size: rows of a micro-batch, where there is no profile.
        objective: ``"throughput"`` or ``"latency"``.

    Raises:
        PlanError: no plan can be made; says why.
    """
    if cut_names and num_stages is not None and num_stages != len(cut_names) + 1:
        raise PlanError(
            f"{len(cut_names)} cuts make {len(cut_names) + 1} stages, not the {num_stages} "
            "that were asked for; leave one of the two out"
        )
    if cluster is None:
        wanted = len(cut_names) + 1 if cut_names else (num_stages or 1)
        cluster, num_stages = equal_cluster(wanted), wanted
    return make_plan(
        prepared.captured.graph,
        prepared.cuts,
        cost_model(prepared, profile=profile, batch_size=batch_size),
        cluster,
        objective=objective,
        num_stages=num_stages,
        cut_names=tuple(cut_names) or None,
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

    A bundle that fails a check is not left behind.

    Args:
        prepared: the model.
        plan: its stages.
        directory: the bundle's folder.
        num_threads: threads with which the reference tensors are computed.
        replace: whether a bundle that is there already may be replaced.
        say: told of every step.

    Raises:
        BundleError: the folder exists or cannot be written.
        VerificationError: the pieces do not equal the whole.
    """
    say = say or _silent
    reports: list[VerificationReport] = []

    def check(folder: Path) -> None:
        say("verifying")
        report = verify_bundle(folder, model=prepared.found.model)
        reports.append(report)
        raise_if_failed(report)

    path = export_bundle(
        prepared.found.model,
        plan,
        directory,
        captured=prepared.captured,
        model_name=prepared.found.name,
        weights=prepared.found.weights,
        preprocessing=prepared.found.preprocessing,
        labels=prepared.found.labels,
        keep=prepared.keep,
        divide=prepared.divide,
        max_tensors=prepared.cuts.max_tensors,
        num_threads=num_threads,
        replace=replace,
        check=check,
        progress=say,
    )
    return path, reports[0]


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


def _silent(_text: str) -> None:
    pass
