"""Compares a bundle's reference with the whole model, which runs in the caller's process."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cutset.bundles.coded_model import CodedModel
from cutset.bundles.open import Bundle
from cutset.bundles.proof.results import Difference
from cutset.bundles.proof.structure import count, rows_in_words
from cutset.bundles.reference import EXACT_OUTPUT, Reference
from cutset.capture.captured import Captured, WholeModel
from cutset.differences import max_abs_difference


def model_faults(
    bundle: Bundle,
    references: Reference,
    model: WholeModel,
) -> tuple[str, ...]:
    """In words: where the whole model differs from the reference, and with how many rows."""
    alike: list[int] = []
    fault = ""
    for num_rows, reference in references.items():
        try:
            found = _differences(bundle, model, reference)
        except Exception as error:  # noqa: BLE001 - a model may fail in any way
            return (f"the given model does not run on the reference's inputs: {error}",)
        if not found:
            alike.append(num_rows)
        elif not fault:
            fault = (
                f"the given model differs from the reference at output {found[0].tensor!r} with "
                f"{count(num_rows, 'row')} by {found[0].max_abs_error:.6g}"
            )
    if not fault:
        return _coded_faults(bundle, references, model)
    if not alike:
        return (f"{fault}: other weights, or another model",)
    advice = "Split it for one number alone: --micro-batch-only N (micro_batch_only=N)"
    alike_at = rows_in_words(alike)
    why = "it computes a row otherwise by how many there are"
    return (f"{fault}, and equals it with {alike_at}: {why}. {advice}",)


def _coded_faults(bundle: Bundle, references: Reference, model: WholeModel) -> tuple[str, ...]:
    """In words: where the model with the bundle's codecs differs from the reference.

    A model that was not captured is compared without them alone.
    """
    manifest = bundle.manifest
    if not manifest.is_coded or not isinstance(model, Captured):
        return ()
    codecs = tuple(stage.output_codecs for stage in manifest.stages)
    coded = CodedModel(model, manifest.plan, codecs)
    for num_rows, reference in references.items():
        inputs = tuple(reference[spec.name] for spec in manifest.graph.inputs)
        try:
            _, results = coded.run(inputs, num_rows)
        except Exception as error:  # noqa: BLE001 - a model may fail in any way
            return (f"the given model does not run with the bundle's codecs: {error}",)
        for spec, result in zip(manifest.outputs, results, strict=True):
            error_found = max_abs_difference(result, reference[spec.name])
            if error_found:
                where = f"output {spec.name!r} with {count(num_rows, 'row')}"
                what = "the given model with the bundle's codecs differs from the reference"
                return (f"{what} at {where} by {error_found:.6g}",)
    return ()


def _differences(
    bundle: Bundle, model: WholeModel, reference: Mapping[str, np.ndarray]
) -> tuple[Difference, ...]:
    """The whole model's outputs on the reference's inputs, against the reference's.

    Raises:
        RuntimeError: the model does not take these inputs, or returns other outputs.
    """
    manifest = bundle.manifest
    results = model.run_whole(tuple(reference[spec.name] for spec in manifest.graph.inputs))
    if len(results) != len(manifest.outputs):
        raise RuntimeError(
            f"the model returns {len(results)} tensors, the bundle {len(manifest.outputs)}"
        )
    last = len(manifest.stages) - 1
    exact = EXACT_OUTPUT if manifest.is_coded else ""
    errors = [
        (spec.name, max_abs_difference(result, reference[exact + spec.name]))
        for spec, result in zip(manifest.outputs, results, strict=True)
    ]
    return tuple(
        Difference(stage=last, tensor=name, max_abs_error=error, tolerance=0.0)
        for name, error in errors
        if error > 0.0
    )
