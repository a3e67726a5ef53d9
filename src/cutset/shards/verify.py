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
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

import torch

from cutset.errors import BundleError
from cutset.shards import running_checks
from cutset.shards.checks import Verification, WholeModel
from cutset.shards.load import Bundle, open_bundle
from cutset.shards.verification import BACKENDS, CHECKS, CheckResult, VerificationReport


def verify_bundle(
    bundle: Bundle | str | os.PathLike[str],
    *,
    model: torch.nn.Module | None = None,
    call_model: Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], Any] | None = None,
    backends: Collection[str] = BACKENDS,
    progress: Callable[[str], None] | None = None,
) -> VerificationReport:
    """Verifies a bundle. What is wrong with it is reported, not raised.

    Args:
        bundle: its folder, or an opened bundle; of one that was opened for some stages only,
            these stages are verified, each on the reference tensors that it should receive. Its
            files are hashed again.
        model: the whole model, if it is at hand; it is run too and compared.
        call_model: how the model is called on the bundle's inputs, for one that takes keyword
            arguments or more inputs (`CapturedModel.call`); one positional argument each if None.
        backends: which of ``"torch"`` and ``"onnxruntime"`` to run; what made the reference
            always is.
        progress: called with a few words before each step.

    Raises:
        ValueError: there is no such backend.
    """
    for name in backends:
        if name not in BACKENDS:
            raise ValueError(f"backend {name!r} cannot be verified; choose among {BACKENDS}")
    report = progress or (lambda _text: None)
    report("checking files")
    try:
        if isinstance(bundle, Bundle):
            is_whole = len(bundle.stages) == len(bundle.manifest.stages)
            wanted = None if is_whole else bundle.stages
            opened = open_bundle(bundle.directory, stages=wanted)
        else:
            opened = open_bundle(bundle)
    except BundleError as error:
        return _unopened(error)
    call = call_model or running_checks.call_with_positional
    whole = None if model is None else WholeModel(model, call)
    return Verification(opened, whole, backends, report).run()


def _unopened(error: BundleError) -> VerificationReport:
    """The report on a bundle that cannot be opened: only the last check has an answer."""
    later = "not checked: the bundle cannot be opened, see integrity"
    checks = [CheckResult(name=name, ok=False, detail=later) for name in CHECKS[:-1]]
    checks.append(CheckResult(name=CHECKS[-1], ok=False, detail=str(error)))
    return VerificationReport(
        checks=tuple(checks), max_abs_error=None, bit_exact=False, error=error
    )
