"""What a tensor looks like without the tensor: name, shape with a symbolic batch, dtype."""

from __future__ import annotations

import functools
import math
from typing import TypeAlias

import msgspec

BATCH = "batch"
"""The symbol that stands for the number of rows in a shape."""

Dim: TypeAlias = int | str
"""A fixed length, ``"batch"``, or ``"batch*K"`` with a positive integer K (K values a row)."""

DTYPE_BYTES: dict[str, int] = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "float16": 2,
    "bfloat16": 2,
    "float32": 4,
    "float64": 8,
    "complex64": 8,
    "complex128": 16,
}
"""Bytes of one element of each dtype that may cross a boundary, under torch's own names."""

MAX_RANK = 64
"""Most dimensions of a tensor, as in torch's and NumPy's own operations."""

MAX_TENSORS = 65_535
"""Most tensors that may cross one boundary."""


def dim_factor(dim: Dim) -> int | None:
    """How many entries of `dim` belong to one row, or None where `dim` is a fixed length.

    Raises:
        ValueError: `dim` is a string of another form than ``batch`` or ``batch*K``.
    """
    if isinstance(dim, int):
        return None
    head, star, factor = dim.partition("*")
    if head != BATCH or (star and not (factor.isdecimal() and int(factor) > 0)):
        raise ValueError(f"dimension {dim!r} is neither a length nor {BATCH!r} nor '{BATCH}*K'")
    return int(factor) if star else 1


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name, shape and dtype of a tensor whose number of rows is not fixed.

    Attributes:
        name: the name of the operation or input that makes it, unique within a model.
        shape: lengths; ``"batch"`` or ``"batch*K"`` where a length grows with the rows.
        dtype: torch's name for it without the prefix, e.g. ``"float32"``.
    """

    name: str
    shape: tuple[Dim, ...]
    dtype: str

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a length is negative or a symbol unknown, or the dtype is unknown.
        """
        for dim in self.shape:
            if dim_factor(dim) is None and int(dim) < 0:
                raise ValueError(f"tensor {self.name!r} has a negative length in {self.shape}")
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(
                f"tensor {self.name!r} has dtype {self.dtype!r}; known: {', '.join(DTYPE_BYTES)}"
            )

    def concrete_shape(self, num_rows: int) -> tuple[int, ...]:
        """The shape with `num_rows` rows put in for the batch symbol."""
        return _concrete_shape(self.shape, num_rows)

    def num_bytes(self, num_rows: int) -> int:
        """Bytes of the tensor's elements with `num_rows` rows."""
        return math.prod(self.concrete_shape(num_rows)) * DTYPE_BYTES[self.dtype]

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of one row; of the whole tensor where nothing in its shape grows with the rows."""
        return self.num_bytes(1)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(str(dim) for dim in self.shape)}]"


@functools.lru_cache(maxsize=4096)  # asked again for every micro-batch
def _concrete_shape(shape: tuple[Dim, ...], num_rows: int) -> tuple[int, ...]:
    return tuple(
        int(dim) if (factor := dim_factor(dim)) is None else factor * num_rows for dim in shape
    )
