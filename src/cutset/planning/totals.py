"""Sums that do not blur: any difference of two totals, right to a few units in the last place.

A prefix sum in floating point forgets what is small once something large was added: after 1e15 s
the next 0.03 s are lost, and the difference of two prefixes is 0. So a number is taken apart into
whole numbers of a few tens of bits, their running totals are kept as 64-bit integers, which add and
subtract without error, and only the difference is put together as a float: a sum of numbers none
of which is negative, so nothing cancels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_MANTISSA_BITS = 53
_LEAST_EXPONENT = -1074


@dataclasses.dataclass(frozen=True)
class Digits:
    """Numbers as digits: a number is the sum over k of ``digits[k] * scales[k]``, exactly.

    Attributes:
        digits: whole numbers from 0, shape (L, ...) for numbers of shape (...).
        scales: powers of two, rising, shape (L,).
    """

    digits: Ints
    scales: Floats

    def together(self, digits: Ints) -> Floats:
        """Digits, or sums or differences of digits, as floats; each row from 0. Shape (...)."""
        total: Floats = digits[-1] * self.scales[-1]
        for k in range(len(self.scales) - 2, -1, -1):
            total = total + digits[k] * self.scales[k]
        return total


def digits_of(values: Floats, *, num_terms: int) -> Digits:
    """Takes numbers apart so that sums of up to `num_terms` of them stay exact in 64 bits.

    Args:
        values: finite and not negative, any shape.
        num_terms: how many are added at most, below 2^40.
    """
    width = 62 - max(num_terms, 1).bit_length()
    mantissa, exponent = np.frexp(values)
    whole = np.rint(np.ldexp(mantissa, _MANTISSA_BITS)).astype(np.int64)
    exponent = exponent.astype(np.int64) - _MANTISSA_BITS
    used = exponent[whole > 0]
    if not len(used):
        return Digits(np.zeros((1, *values.shape), dtype=np.int64), np.ones(1))
    base = max(int(used.min()), _LEAST_EXPONENT)
    bits = int(used.max()) + _MANTISSA_BITS - base
    count = -(-bits // width)
    mask = (1 << width) - 1
    rows = []
    for k in range(count):
        up = exponent - base - k * width
        left, right = np.clip(up, 0, width), np.clip(-up, 0, 63)
        rows.append(((whole >> right) & (mask >> left)) << left)
    scales = np.ldexp(1.0, base + width * np.arange(count))
    return Digits(np.stack(rows), scales)


class Totals:
    """Running totals of a row of numbers; any run of it is summed exactly, then rounded.

    Args:
        values: finite and not negative, shape (n,).
    """

    def __init__(self, values: Floats) -> None:
        self._parts = digits_of(values, num_terms=len(values))
        zero = np.zeros((len(self._parts.scales), 1), dtype=np.int64)
        self._rows: Ints = np.concatenate([zero, np.cumsum(self._parts.digits, axis=1)], axis=1)
        self.rounded: Floats = self._parts.together(self._rows)
        """Totals from the start as floats, never falling, shape (n + 1,)."""

    def between(self, starts: Ints | slice | int, stops: Ints | slice | int) -> Floats:
        """Sums of the runs [start, stop), element by element; never falling in `stops`."""
        first, last = self._rows[:, starts], self._rows[:, stops]
        # A single start or stop goes with every one of the other.
        if first.ndim < last.ndim:
            first = first.reshape(first.shape + (1,) * (last.ndim - first.ndim))
        elif last.ndim < first.ndim:
            last = last.reshape(last.shape + (1,) * (first.ndim - last.ndim))
        return self._parts.together(last - first)
