"""Proves that the pieces equal the whole, from the bundle alone.

Five checks, always all reported, in this order:

`contracts`
    outputs and inputs of neighbours meet in name, shape and dtype, on paper and when the stages
    are run with several numbers of rows.
`completeness`
    every parameter, buffer and operation is in exactly one stage, or listed as shared, or as
    unused; the stage programs hold just what the manifest says, call by call.
`units`
    every boundary is a legal cut point of the graph: no unit is divided.
`numerics`
    the chained stages equal the reference tensors at every boundary, with one row, with two and
    with as many as a micro-batch has: bit for bit and in the same order in memory with torch,
    within a stated tolerance with others. A bundle made from an ONNX file has no torch programs;
    its stages are run in ONNX Runtime, which also made the reference.
`integrity`
    sizes and hashes agree, and no file could run code when it is loaded.

Where torch is not installed, nothing is claimed of the torch programs: the report's `not_run` says
what was not looked at, and the stages' ONNX models are compared with the reference all the same.

The programs are loaded and run in a process of its own with limits on memory and time, never in the
caller's: what is proven does not hang on what the caller's process has set in torch, and a
program that brings its process down fails a check.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cutset.bundles.allowance import allowance_of
from cutset.bundles.open import Bundle, read_manifest
from cutset.bundles.proof.checks import row_counts, unopened
from cutset.bundles.proof.child import check_in_child
from cutset.bundles.proof.results import BACKENDS, CheckResult, VerificationReport
from cutset.bundles.proof.running_checks import expected_tensors, opened_reference
from cutset.bundles.proof.structure import rows_in_words, summary
from cutset.bundles.proof.whole_model import model_faults
from cutset.bundles.reference import reference_rows
from cutset.capture.captured import WholeModel
from cutset.errors import BundleError, ManifestError
from cutset.progress import Progress, no_progress

if TYPE_CHECKING:
    import torch


def verify_bundle(
    bundle: Bundle | str | os.PathLike[str],
    *,
    model: torch.nn.Module | None = None,
    call_model: Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], Any] | None = None,
    captured: WholeModel | None = None,
    backends: Collection[str] = BACKENDS,
    progress: Progress | None = None,
) -> VerificationReport:
    """Verifies a bundle. What is wrong with it is reported, not raised.

    Args:
        bundle: its folder, or an opened bundle; of one that was opened for some stages only,
            these stages are verified, each on the reference tensors that it should receive. Its
            files are hashed again.
        model: the whole model, if it is at hand; it is run too and compared; this happens in the
            caller's process, as the model is the caller's.
        call_model: how the model is called on the bundle's inputs, for one that takes keyword
            arguments or more inputs; one positional argument each if None.
        captured: the whole model as it was captured, in the place of `model`: that is run then, as
            it was captured.
        backends: which of ``"torch"`` and ``"onnxruntime"`` to run; what made the reference
            always is.
        progress: called with a few words before each step.

    Raises:
        ValueError: there is no such backend.
        BundleError: no process can be started to check it.
    """
    for name in backends:
        if name not in BACKENDS:
            raise ValueError(f"backend {name!r} cannot be verified; choose among {BACKENDS}")
    progress = progress or no_progress
    try:
        if isinstance(bundle, Bundle):
            directory, manifest, stages = bundle.directory, bundle.manifest, bundle.stages
        else:
            directory = Path(bundle)
            manifest = read_manifest(directory)
            stages = tuple(range(len(manifest.stages)))
    except BundleError as error:
        return unopened(error)
    specs = expected_tensors(manifest)
    rows = reference_rows(specs, manifest.plan.micro_batch, manifest.micro_batch_only)
    report = check_in_child(
        directory,
        stages=None if len(stages) == len(manifest.stages) else stages,
        backends=backends,
        allowance=allowance_of(manifest, (*row_counts(manifest), *rows, *rows), stages),
        num_threads=manifest.num_threads,
        progress=progress,
    )
    agreement = None if manifest.agreement is msgspec.UNSET else manifest.agreement
    report = dataclasses.replace(report, part=manifest.part, agreement=agreement)
    if (model is None and captured is None) or report.error is not None:
        return report
    progress("comparing with the whole model")
    opened = Bundle(directory=directory, manifest=manifest, stages=stages)
    return compare_model(report, opened, captured or called_module(model, call_model))


def called_module(
    model: torch.nn.Module | None,
    call: Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], Any] | None,
) -> WholeModel:
    """A module of torch as what is compared with a bundle; one positional argument each if None."""
    from cutset.bundles.proof.torch.called_module import CalledModule, call_with_positional

    assert model is not None
    return CalledModule(model, call or call_with_positional)


def compare_model(
    report: VerificationReport, bundle: Bundle, model: WholeModel
) -> VerificationReport:
    """The report with what the whole model, run in this process, gives on the reference's inputs.

    Args:
        report: on the bundle, whose files are as they should be.
        bundle: opened.
        model: the whole model.
    """
    manifest = bundle.manifest
    try:
        references = opened_reference(bundle)
        with model.computing(manifest.num_threads, manifest.torch_settings):
            faults = model_faults(bundle, references, model)
    except ManifestError as error:
        references, faults = {}, (str(error),)
    before = report.check("numerics")
    if faults:
        said = () if before.ok else (before.detail,)
        after = CheckResult(name=before.name, ok=False, detail=summary((*said, *faults), ""))
    elif before.ok:
        rows = rows_in_words(references)
        part = bundle.manifest.part
        whole = f"part {part.path}, whole," if part else "the whole model"
        detail = f"{before.detail}, {whole} gives the same with {rows}"
        after = dataclasses.replace(before, detail=detail)
    else:
        after = before
    checks = tuple(after if check.name == before.name else check for check in report.checks)
    return dataclasses.replace(report, checks=checks)
