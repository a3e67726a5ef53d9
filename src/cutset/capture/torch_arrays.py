"""Torch tensors as arrays over the same memory, and back."""

from __future__ import annotations

import numpy as np
import torch

from cutset.data.torch_border import plain_array, tensor_over


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over an array's memory, with its strides.

    A copy where torch cannot use that memory as it is: read-only, in a foreign byte order, at an
    odd address, or with strides that are negative or end within an element. It has the order of the
    array's dimensions.

    Raises:
        TypeError: torch has no such dtype.
    """
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="), order="K")
    elif not _is_usable(array):
        array = np.array(array, order="K")
    tensor: torch.Tensor = tensor_over(array)
    return tensor


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """An array over a tensor's memory, with its strides.

    A copy where the memory does not hold the numbers themselves (lazy conjugation or negation, a
    device).

    Raises:
        TypeError: NumPy has no such dtype or layout.
    """
    return plain_array(tensor.detach().cpu().resolve_conj().resolve_neg())


def _is_usable(array: np.ndarray) -> bool:
    return (
        array.flags.writeable
        and array.flags.aligned
        and all(stride >= 0 and stride % array.itemsize == 0 for stride in array.strides)
    )
