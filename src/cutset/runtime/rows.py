"""Rows in, micro-batches through the pipeline, answers out: tensors for tensors, else arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from cutset.bundles.manifest import Manifest
from cutset.data.arrays import Array, to_array
from cutset.data.images import Preprocessing
from cutset.data.pixels import are_pixels, normalised, takes_images
from cutset.data.torch_border import tensor_over
from cutset.errors import EngineError
from cutset.runtime.contract import boundary_into, check_multiple, check_tensors, count_rows
from cutset.runtime.ledger import Outputs
from cutset.tensors import TensorSpec, dim_factor

Answer: TypeAlias = Array | dict[str, Array]


def cut_inputs(
    manifest: Manifest, inputs: Sequence[Array], micro_batch: int
) -> list[tuple[int, Outputs]]:
    """Checks a caller's inputs and cuts them into micro-batches.

    Args:
        manifest: of the bundle.
        inputs: what came, one for each input of the model.
        micro_batch: most rows of a micro-batch.

    Returns:
        As `cut_rows`.

    Raises:
        TypeError: one is neither a tensor nor an array.
        ContractViolation: they do not fit the model, or cannot be read from memory.
        EngineError: there is no row.
    """
    specs = manifest.stages[0].inputs
    boundary = boundary_into(manifest, 0)
    if len(inputs) == 1 and isinstance(inputs[0], dict | list | tuple):
        names = ", ".join(spec.name for spec in specs)
        raise TypeError(
            f"{boundary}: a {type(inputs[0]).__name__} came; give a torch.Tensor or a numpy.ndarray"
            f" for each of the model's inputs, in this order: {names}"
        )
    promised = [f"{spec.name}: {spec}" for spec in specs]
    promised += ["no more inputs"] * (len(inputs) - len(specs))
    arrays = tuple(
        to_array(array, boundary=boundary, expected=expected)
        for array, expected in zip(inputs, promised, strict=False)
    )
    images = manifest.preprocessing
    if images is not None and are_pixels(arrays, None, images) and takes_images(images, specs):
        return _cut_pixels(manifest, images, arrays, micro_batch)
    num_rows = count_rows(arrays, specs)
    check_tensors(arrays, specs, num_rows, boundary)
    check_multiple(num_rows, manifest.micro_batch_only)
    return cut_rows(arrays, specs, num_rows, micro_batch)


def _cut_pixels(
    manifest: Manifest, images: Preprocessing, arrays: Outputs, micro_batch: int
) -> list[tuple[int, Outputs]]:
    """As `cut_inputs`, of pixels: they travel as such where the plan wants it."""
    num_rows = len(arrays[0])
    if not num_rows:
        raise EngineError("there are no images; give at least one")
    check_multiple(num_rows, manifest.micro_batch_only)
    if not manifest.takes_pixels:
        arrays = (normalised(arrays[0], images),)
    # Pixels are cut by rows as the input is: both have them first.
    return cut_rows(arrays, manifest.stages[0].inputs, num_rows, micro_batch)


def cut_rows(
    arrays: Outputs, specs: Sequence[TensorSpec], num_rows: int, micro_batch: int
) -> list[tuple[int, Outputs]]:
    """Cuts the inputs of a request into micro-batches, without copying.

    Args:
        arrays: inputs of the model, checked against `specs`.
        specs: of the inputs; one whose first dimension does not grow with the rows goes whole with
            every micro-batch.
        num_rows: rows of the request.
        micro_batch: most rows of a micro-batch; the last one may be shorter.

    Returns:
        Rows and inputs of each micro-batch, in order.
    """
    if num_rows <= micro_batch:
        return [(num_rows, arrays)]
    slices = []
    for start in range(0, num_rows, micro_batch):
        length = min(micro_batch, num_rows - start)
        parts = tuple(
            array
            if not spec.shape or (factor := dim_factor(spec.shape[0])) is None
            else array[start * factor : (start + length) * factor]
            for array, spec in zip(arrays, specs, strict=True)
        )
        slices.append((length, parts))
    return slices


def present(manifest: Manifest, outputs: Outputs, *, as_tensors: bool) -> Answer:
    """Turns the last stage's outputs into what the whole model would have returned.

    Args:
        manifest: of the bundle.
        outputs: in the order of the last stage's contract.
        as_tensors: give torch's tensors over the same memory.

    Returns:
        The output, or a dict by output name where the model has several.
    """
    by_spec: dict[str, Array] = {
        spec.name: tensor_over(array) if as_tensors else array
        for spec, array in zip(manifest.stages[-1].outputs, outputs, strict=True)
    }
    answers = [by_spec[spec.name] for spec in manifest.outputs]
    if len(answers) == 1:
        return answers[0]
    return dict(zip(manifest.output_names, answers, strict=True))
