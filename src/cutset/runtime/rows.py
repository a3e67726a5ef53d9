"""Arrays in, micro-batches through the pipeline, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch

from cutset.runtime.ledger import Outputs
from cutset.shards.manifest import Manifest
from cutset.tensors import TensorSpec, dim_factor

Array: TypeAlias = torch.Tensor | np.ndarray
Answer: TypeAlias = Array | dict[str, Array]


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
    """
    by_tensor = {
        spec.name: tensor for spec, tensor in zip(manifest.stages[-1].outputs, outputs, strict=True)
    }
    arrays: list[Array] = [
        to_numpy(by_tensor[spec.name]) if as_numpy else by_tensor[spec.name]
        for spec in manifest.outputs
    ]
    if len(arrays) == 1:
        return arrays[0]
    return dict(zip(manifest.output_names, arrays, strict=True))


def to_tensor(array: Array) -> torch.Tensor:
    """An input as a tensor on the CPU, sharing the caller's memory where it can.

    Raises:
        TypeError: it is neither a tensor nor an array, or of a dtype that torch does not know.
    """
    if isinstance(array, torch.Tensor):
        # Two calls less where there is nothing to do: this is done for every request.
        plain = array.device.type == "cpu" and not array.requires_grad
        return array if plain else array.detach().cpu()
    if isinstance(array, np.ndarray):
        # torch warns of memory that it must not write; it never writes here, but a copy is cheap
        # next to a computation, and arrays with negative strides need one anyway.
        usable = array.flags.writeable and array.flags.c_contiguous
        return torch.from_numpy(array if usable else np.array(array, order="C"))
    raise TypeError(f"an input is a {type(array).__name__}; give a torch.Tensor or a numpy.ndarray")


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array over the same memory.

    Raises:
        TypeError: numpy has no such dtype (bfloat16).
    """
    result: np.ndarray = tensor.numpy()
    return result
