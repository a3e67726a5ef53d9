"""Arrays in, micro-batches through the pipeline, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from cutset.bundles.manifest import Manifest
from cutset.data.arrays import Array, to_numpy, to_tensor
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
    tensors = tuple(
        to_tensor(array, boundary=boundary, expected=expected)
        for array, expected in zip(inputs, promised, strict=False)
    )
    num_rows = count_rows(tensors, specs)
    check_tensors(tensors, specs, num_rows, boundary)
    check_multiple(num_rows, manifest.micro_batch_only)
    return cut_rows(tensors, specs, num_rows, micro_batch)


def cut_rows(
    tensors: Outputs, specs: Sequence[TensorSpec], num_rows: int, micro_batch: int
) -> list[tuple[int, Outputs]]:
    """Cuts the inputs of a request into micro-batches, without copying.

    Args:
        tensors: inputs of the model, checked against `specs`.
        specs: of the inputs; one whose first dimension does not grow with the rows goes whole with
            every micro-batch.
        num_rows: rows of the request.
        micro_batch: most rows of a micro-batch; the last one may be shorter.

    Returns:
        Rows and inputs of each micro-batch, in order.
    """
    if num_rows <= micro_batch:
        return [(num_rows, tensors)]
    slices = []
    for start in range(0, num_rows, micro_batch):
        length = min(micro_batch, num_rows - start)
        parts = tuple(
            tensor
            if not spec.shape or (factor := dim_factor(spec.shape[0])) is None
            else tensor.narrow(0, start * factor, length * factor)
            for tensor, spec in zip(tensors, specs, strict=True)
        )
        slices.append((length, parts))
    return slices


def present(manifest: Manifest, outputs: Outputs, *, as_numpy: bool) -> Answer:
    """Turns the last stage's outputs into what the whole model would have returned.

    Args:
        manifest: of the bundle.
        outputs: in the order of the last stage's contract.
        as_numpy: give numpy arrays instead of tensors.

    Returns:
        The output, or a dict by output name where the model has several.

    Raises:
        TypeError: numpy has no such dtype (bfloat16).
    """
    by_tensor = {
        spec.name: tensor for spec, tensor in zip(manifest.stages[-1].outputs, outputs, strict=True)
    }
    arrays: list[Array] = [
        to_numpy(by_tensor[spec.name], name) if as_numpy else by_tensor[spec.name]
        for spec, name in zip(manifest.outputs, manifest.output_names, strict=True)
    ]
    if len(arrays) == 1:
        return arrays[0]
    return dict(zip(manifest.output_names, arrays, strict=True))
