"""What a caller gives as rows, as arrays that can be sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from cutset.data.torch_border import array_over, is_tensor
from cutset.dtypes import NUMPY_DTYPES
from cutset.errors import ContractViolation

if TYPE_CHECKING:
    import torch

    Array: TypeAlias = torch.Tensor | np.ndarray
else:
    Array = np.ndarray
"""What callers give and get. Those who give tensors have torch, which nothing here imports."""

_NUMBERS = "biufc"
"""NumPy's kinds of numbers: bool, signed, unsigned, floating, complex."""

_ADDED = frozenset(dtype for dtype in NUMPY_DTYPES.values() if dtype.kind not in _NUMBERS)
"""Numbers that NumPy takes for opaque bytes, since another package adds them."""


def to_array(
    value: object, *, boundary: str = "an array", expected: str = "an array of numbers"
) -> np.ndarray:
    """An input as an array of NumPy's own class, sharing the caller's memory where it can.

    Args:
        value: a tensor or an array.
        boundary: where it comes in, for the message.
        expected: what was promised there, for the message.

    Returns:
        An array in this machine's byte order; it may be read-only, unaligned, and have any strides.

    Raises:
        TypeError: it is neither a tensor nor an array.
        ContractViolation: it has no numbers that can be read from the CPU's memory.
    """
    if isinstance(value, np.ndarray):
        return _plain(value, boundary, expected)
    if is_tensor(value):
        return array_over(value, boundary=boundary, expected=expected)
    raise TypeError(
        f"{boundary}: {expected} expected, a {type(value).__name__} came; give a torch.Tensor or a"
        " numpy.ndarray"
    )


def _plain(array: np.ndarray, boundary: str, expected: str) -> np.ndarray:
    dtype = array.dtype
    if isinstance(array, np.ma.MaskedArray):
        odd = "a masked array, which has no value where it is masked; give filled(value)"
    elif dtype.kind not in _NUMBERS and dtype not in _ADDED:
        odd = f"an array of dtype {dtype}; give an array of numbers"
    else:
        plain = np.asarray(array)
        if dtype.isnative:
            return plain
        return plain.astype(dtype.newbyteorder("="), order="K")
    raise ContractViolation(
        f"{boundary}: {expected} expected, but what came is {odd}",
        boundary=boundary,
        expected=expected,
        actual=odd.partition(";")[0],
    )
