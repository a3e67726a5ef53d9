"""The whole model, which is the caller's and runs in his process, beside a bundle's reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from cutset.bundles.open import Bundle
from cutset.bundles.proof.results import Difference
from cutset.bundles.proof.structure import count, rows_in_words
from cutset.bundles.reference import Reference
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.differences import max_abs_difference

_RUN_ERRORS = (RuntimeError, ValueError, TypeError, IndexError)


def model_faults(
    bundle: Bundle,
    references: Reference,
    model: torch.nn.Module,
    call: Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], Any],
) -> tuple[str, ...]:
    """What the whole model gives otherwise, and at which numbers of rows, in words."""
    alike: list[int] = []
    fault = ""
    for num_rows, reference in references.items():
        try:
            found = model_differences(bundle, model, reference, call)
        except _RUN_ERRORS as error:
            return (f"the given model does not run on the reference's inputs: {error}",)
        if not found:
            alike.append(num_rows)
        elif not fault:
            fault = (
                f"the given model differs from the reference at output {found[0].tensor!r} with "
                f"{count(num_rows, 'row')} by {found[0].max_abs_error:.6g}"
            )
    if not fault:
        return ()
    if not alike:
        return (f"{fault}: other weights, or another model",)
    advice = "Split it for one number alone: --micro-batch-only N (micro_batch_only=N)"
    alike_at = rows_in_words(alike)
    why = "it computes a row otherwise by how many there are"
    return (f"{fault}, and equals it with {alike_at}: {why}. {advice}",)


def call_with_positional(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    """Calls a model with one positional argument for each input."""
    return model(*inputs)


def model_differences(
    bundle: Bundle,
    model: torch.nn.Module,
    reference: Mapping[str, np.ndarray],
    call_model: Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], Any],
) -> tuple[Difference, ...]:
    """The whole model's outputs on the reference's inputs, against the reference's.

    Raises:
        RuntimeError: the model does not take these inputs.
    """
    manifest = bundle.manifest
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            # Copies, since a model may write to its inputs.
            inputs = tuple(
                as_tensor(reference[spec.name]).clone() for spec in manifest.graph.inputs
            )
            results = call_model(model, inputs)
    finally:
        model.train(was_training)
    leaves = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]
    if len(leaves) != len(manifest.outputs):
        raise RuntimeError(
            f"the model returns {len(leaves)} tensors, the bundle {len(manifest.outputs)}"
        )
    last = len(manifest.stages) - 1
    errors = [
        (spec.name, max_abs_difference(as_array(leaf), reference[spec.name]))
        for spec, leaf in zip(manifest.outputs, leaves, strict=True)
    ]
    return tuple(
        Difference(stage=last, tensor=name, max_abs_error=error, tolerance=0.0)
        for name, error in errors
        if error > 0.0
    )
