"""Codecs that pack what others write, and numbers as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutset.codecs.coding import Codec
from cutset.codecs.packing import PACKER
from cutset.dtypes import NUMPY_DTYPES


class Same:
    """Numbers as they are, to be packed; see `cutset.codecs.coding.Codec`.

    Booleans are left out: a byte that is neither 0 nor 1 would be none.
    """

    name = ""
    dtypes = frozenset(NUMPY_DTYPES) - {"bool"}
    item: np.dtype | None = None
    lossy = False
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
        """Writes an array."""
        np.copyto(numbers, array)

    def read(
        self,
        parameters: np.ndarray,  # noqa: ARG002  # there are none
        numbers: np.ndarray,
        array: np.ndarray,
    ) -> None:
        """Fills `array` with what was written."""
        np.copyto(array, numbers)


class Packed:
    """A codec whose payloads are packed; what arrives is what the codec alone makes of it.

    Args:
        codec: writes what is packed.
    """

    packs = True

    def __init__(self, codec: Codec) -> None:
        self.name = f"{codec.name}+{PACKER}" if codec.name else PACKER
        self.dtypes, self.item, self.lossy = codec.dtypes, codec.item, codec.lossy
        self.num_parameter_bytes = codec.num_parameter_bytes
        self.write, self.read = codec.write, codec.read
