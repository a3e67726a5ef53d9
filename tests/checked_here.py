"""`verify_bundle` without a process of its own, for bundles that a test made and means no harm by.

A process a call would cost seconds; that the real one runs none of a bundle's programs here, and
what it does with those that end their process, is tested in ``unit/bundles/proof/test_child.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch

from cutset.bundles.open import Bundle, open_bundle
from cutset.bundles.proof.checks import check_bundle
from cutset.bundles.proof.results import BACKENDS, VerificationReport
from cutset.bundles.proof.verify import called_module, compare_model


def check_here(
    bundle: Bundle | Path,
    *,
    model: torch.nn.Module | None = None,
    call_model: Callable[..., Any] | None = None,
    backends: Collection[str] = BACKENDS,
) -> VerificationReport:
    """What `verify_bundle` reports."""
    stages = None
    if isinstance(bundle, Bundle):
        directory = bundle.directory
        stages = bundle.stages if len(bundle.stages) < len(bundle.manifest.stages) else None
    else:
        directory = bundle
    report = check_bundle(directory, stages=stages, backends=backends)
    if model is None or report.error is not None:
        return report
    opened = open_bundle(directory, stages=stages)
    return compare_model(report, opened, called_module(model, call_model))
