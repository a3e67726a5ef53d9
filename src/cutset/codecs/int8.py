"""Floats as one byte each, with a scale and a zero point for each row and channel.

A group of numbers (one row, one channel) from `low` to `high`, both sides of 0, is written as
``q = round(x / scale) + zero`` with ``scale = (high - low) / 255`` and ``zero = round(-low /
scale)``, and arrives as ``(q - zero) * scale``: at most half a scale away (Jacob et al. 2018,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
section 2.1). 0 arrives as 0. The range is each row's own, so what arrives of a row does not hang on
the rows beside it, nothing is cut off, and nothing need be known of the rows beforehand. Every
step is one operation of IEEE 754 on float32, so that all machines give the same bits.

NaN and infinities have no place on a scale: they are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from cutset.codecs.coding import CodecError
from cutset.dtypes import dtype_name

_LEAST_GROUP = 16
"""Groups of fewer numbers than this would be mostly parameters; the row is one group then."""
_SMALLEST = np.float32(np.finfo(np.float32).tiny)
_STEPS = np.float32(255)
_LARGEST: dict[str, np.float32] = {
    "float32": np.float32(np.finfo(np.float32).max),
    "float16": np.float32(np.finfo(np.float16).max),
    "bfloat16": np.float32(ml_dtypes.finfo(ml_dtypes.bfloat16).max),  # type: ignore[no-untyped-call]
}
_SCALE = np.dtype("<f4")
_PARAMETER_BYTES = 5


class Int8:
    """See `cutset.codecs.coding.Codec`."""

    name = "int8"
    dtypes = frozenset({"float16", "bfloat16", "float32", "float64"})
    item: np.dtype | None = np.dtype(np.uint8)
    lossy = True
    packs = False

    def num_parameter_bytes(self, shape: Sequence[int]) -> int:
        """Of each group a scale, float32, and after all of them of each a zero point, uint8."""
        return _PARAMETER_BYTES * math.prod(shape[: _num_group_dims(shape)])

    def write(self, array: np.ndarray, parameters: np.ndarray, numbers: np.ndarray) -> None:
        """Writes an array.

        Raises:
            CodecError: a number is NaN, infinite, or beyond what float32 holds.
        """
        if not array.size:
            return
        inner = tuple(range(_num_group_dims(array.shape), array.ndim))
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            values = array.astype(np.float32, order="K", copy=False)
            low = np.minimum(values.min(axis=inner, keepdims=True), np.float32(0))
            high = np.maximum(values.max(axis=inner, keepdims=True), np.float32(0))
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            num_odd = array.size - int(np.isfinite(values).sum())
            raise CodecError(
                self.name,
                f"it writes finite numbers of float32; {num_odd} of {array.size} are NaN, infinite"
                " or beyond",
            )
        # Not of the difference, which may overflow.
        scale = np.maximum(high / _STEPS - low / _STEPS, _SMALLEST)
        zero = np.minimum(np.rint(-low / scale), _STEPS)
        scaled = values / scale
        np.rint(scaled, out=scaled)
        scaled += zero
        np.clip(scaled, 0, _STEPS, out=scaled)
        np.copyto(numbers, scaled, casting="unsafe")
        parameters[: 4 * scale.size] = scale.astype(_SCALE).reshape(-1).view(np.uint8)
        parameters[4 * scale.size :] = zero.reshape(-1)

    def read(self, parameters: np.ndarray, numbers: np.ndarray, array: np.ndarray) -> None:
        """Fills `array` with what was written.

        Raises:
            CodecError: a scale is NaN, infinite, or not above 0.
        """
        if not array.size:
            return
        num_dims = _num_group_dims(array.shape)
        shape = (*array.shape[:num_dims], *(1 for _ in array.shape[num_dims:]))
        num_groups = math.prod(shape)
        # A copy, since it may begin anywhere.
        scale = parameters[: 4 * num_groups].copy().view(_SCALE).astype(np.float32).reshape(shape)
        zero = parameters[4 * num_groups :].astype(np.float32).reshape(shape)
        if not (np.isfinite(scale).all() and (scale >= _SMALLEST).all()):
            raise CodecError(self.name, f"a scale of {float(scale.min()):g}, expected above 0")
        values = numbers.astype(np.float32, order="K")
        values -= zero
        with np.errstate(over="ignore"):
            values *= scale
        if (scale > _largest(array.dtype) / _STEPS).any():
            # Half a scale beyond the largest number that there is would be infinite.
            np.clip(values, -_largest(array.dtype), _largest(array.dtype), out=values)
        np.copyto(array, values, casting="same_kind")


def _num_group_dims(shape: Sequence[int]) -> int:
    """How many leading dimensions count the groups: rows and channels, or rows alone."""
    return 2 if math.prod(shape[2:]) >= _LEAST_GROUP and len(shape) > 2 else min(1, len(shape))


def _largest(dtype: np.dtype) -> np.float32:
    """The largest finite number of a dtype that float32 holds."""
    return _LARGEST.get(dtype_name(dtype) or "", _LARGEST["float32"])
