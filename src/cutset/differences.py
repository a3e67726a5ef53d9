"""How far the numbers of two arrays are apart, and how far those of two backends may be."""

from __future__ import annotations

import numpy as np

from cutset.dtypes import dtype_name

_TOLERANCES = {
    "float64": 1e-9,
    "float32": 1e-4,
    "float16": 2e-2,
    "bfloat16": 1e-1,
    "complex64": 1e-4,
    "complex128": 1e-9,
}
"""Largest difference from the reference that another backend than torch may show, relative to the
largest magnitude in the reference tensor. Other dtypes must be equal."""


def max_abs_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference; 0 only if all bits that matter agree, NaN counts as NaN."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return float("inf")
    if actual.size == 0 or np.array_equal(actual, expected):
        return 0.0
    # Infinities less infinities are told apart below.
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(wide(actual) - wide(expected))
    # Equal infinities and NaNs on both sides differ by nothing; on one side, by everything.
    same = (actual == expected) | (_is_nan(actual) & _is_nan(expected))
    difference = np.where(same, 0.0, difference)
    return float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max())


def wide(array: np.ndarray) -> np.ndarray:
    """The same numbers with as many digits as NumPy has."""
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _is_nan(array: np.ndarray) -> np.ndarray:
    found: np.ndarray = array != array  # also of dtypes that isnan does not take
    return found


def magnitude_of(array: np.ndarray) -> float:
    """The largest finite absolute value in an array, 0 if it is empty."""
    if array.size == 0:
        return 0.0
    return float(np.nan_to_num(np.abs(wide(array)), nan=0.0, posinf=0.0).max())


def tolerance_of(expected: np.ndarray) -> float:
    """The absolute difference that another backend than torch may show for a tensor."""
    return _TOLERANCES.get(dtype_name(expected.dtype) or "", 0.0) * magnitude_of(expected)
