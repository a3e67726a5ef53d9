"""Numbers of 32 or 64 bits as half-precision floats: 2 bytes each, 11 bits of precision.

NaN and infinities arrive as they are. A finite number that would become an infinity (65520 and
more) is refused, with its size: an answer made of it would look like one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutset.codecs.coding import CodecError

LARGEST = 65504.0
"""The largest finite half-precision number."""


class Fp16:
    """See `cutset.codecs.coding.Codec`; the number that arrives is the nearest there is."""

    name = "fp16"
    dtypes = frozenset({"float32", "float64"})
    item: np.dtype | None = np.dtype(np.float16)
    lossy = True
    packs = False

    def num_parameter_bytes(self, shape: Sequence[int]) -> int:  # noqa: ARG002  # of any shape
        """None."""
        return 0

    def write(
        self,
        array: np.ndarray,
        parameters: np.ndarray,  # noqa: ARG002  # there are none
        numbers: np.ndarray,
    ) -> None:
        """Writes an array.

        Raises:
            CodecError: a finite number is too large.
        """
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            np.copyto(numbers, array, casting="same_kind")
        if np.isfinite(numbers).all():
            return
        lost = np.isfinite(array) & ~np.isfinite(numbers)
        if lost.any():
            largest = float(np.abs(array[lost]).max())
            raise CodecError(
                self.name,
                f"it writes numbers up to {LARGEST:g}; {int(lost.sum())} of {array.size} are"
                f" larger, up to {largest:g}",
            )

    def read(
        self,
        parameters: np.ndarray,  # noqa: ARG002  # there are none
        numbers: np.ndarray,
        array: np.ndarray,
    ) -> None:
        """Fills `array` with what was written."""
        np.copyto(array, numbers)
