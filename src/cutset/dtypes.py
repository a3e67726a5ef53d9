"""Dtypes of arrays by the names that a `TensorSpec` has, and arrays that begin where kernels like.

NumPy has no bfloat16; `ml_dtypes` adds it, as a type of its own that is no int16 of the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import ml_dtypes
import numpy as np

from cutset.tensors import DTYPE_BYTES

Arrays: TypeAlias = tuple[np.ndarray, ...]

ALIGNMENT_BYTES = 64
"""Arrays of ours begin at multiples of it, as torch's do: some kernels choose by that."""

NUMPY_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name) for name in DTYPE_BYTES
}
"""NumPy's dtype, in this machine's byte order, for each name in `cutset.tensors.DTYPE_BYTES`."""

FLOATING = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})
"""Names of the dtypes whose numbers may be off in the last bits."""

_NAMES = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


def dtype_name(dtype: np.dtype) -> str | None:
    """The name of a dtype, or None where no boundary takes it: foreign byte order, another kind."""
    return _NAMES.get(dtype) if dtype.isnative else None


def empty_array(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A writable row-major array that begins at a multiple of `ALIGNMENT_BYTES`.

    Args:
        shape: lengths, each 0 or more.
        dtype: of its elements, e.g. one of `NUMPY_DTYPES`.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    return memory[start : start + num_bytes].view(dtype).reshape(shape)


def row_major(array: np.ndarray) -> np.ndarray:
    """The array itself where libraries take its memory as it is; otherwise a copy.

    They do where it lies row by row, without gaps, aligned and writable.
    """
    if array.flags.carray:
        return array
    copy = empty_array(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy


def strided_copy(array: np.ndarray, strides: Sequence[int]) -> np.ndarray:
    """A copy that begins where links and torch let theirs begin.

    What is read from a file lies at odd addresses, and there some matrix kernels give other last
    bits.

    Args:
        array: any.
        strides: in bytes; with them the elements fill one stretch of memory.
    """
    stretch = empty_array((array.size,), array.dtype)
    copy = np.lib.stride_tricks.as_strided(stretch, array.shape, strides)
    np.copyto(copy, array)
    return copy
