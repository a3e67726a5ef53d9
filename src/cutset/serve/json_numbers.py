"""JSON arrays of numbers to NumPy and back, in small steps.

One call that reads megabytes of JSON holds the interpreter's lock until it is done, on whichever
thread it runs, and everyone else's request waits for it. So long arrays are read and written a
piece at a time, and the lock is let go between the pieces.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from cutset.serve.refusal import invalid

_PIECE_BYTES = 16 << 10
_PIECE_NUMBERS = 4096
_PAUSE_S = 2e-5
"""Long enough that a thread that waits for the lock gets it."""


def read_numbers(
    text: bytes, shape: Sequence[int], dtype: np.dtype[Any], kind: str, field: str
) -> np.ndarray:
    """The values of a JSON array in row-major order.

    Args:
        text: an array, flat or nested as the shape says; it is known to be JSON.
        shape: of the tensor, all lengths at least 1.
        dtype: float64, int64 or bool; decides which JSON values are allowed.
        kind: what the values should be, for messages.
        field: where it came from, for messages.

    Returns:
        One dimension, `dtype`.

    Raises:
        Refusal: 400, another number of values, another nesting, or values of another kind.
    """
    reader = _Reader(dtype, kind, field, shape)
    num_lists = text.count(b"[")
    if text[:1] != b"[" or num_lists not in (1, _num_lists(shape)):
        raise reader.not_nested()
    reader.read(text, (math.prod(shape),) if num_lists == 1 else shape)
    return np.concatenate(reader.pieces)


def write_numbers(array: np.ndarray) -> bytes:
    """A flat JSON array of the values of a one-dimensional array, all of them finite."""
    pieces = []
    for start in range(0, len(array), _PIECE_NUMBERS):
        if start:
            time.sleep(_PAUSE_S)
        pieces.append(msgspec.json.encode(array[start : start + _PIECE_NUMBERS].tolist())[1:-1])
    return b"[" + b",".join(pieces) + b"]"


class _Reader:
    """Collects the pieces of one array."""

    def __init__(self, dtype: np.dtype[Any], kind: str, field: str, shape: Sequence[int]) -> None:
        self._dtype = dtype
        self._allowed: set[type] = {bool} if dtype == np.bool_ else {int}
        if dtype == np.float64:
            self._allowed = {int, float}
        self._kind = kind
        self._field = field
        self._shape = list(shape)
        self.pieces: list[np.ndarray] = []

    def read(self, text: bytes, shape: Sequence[int]) -> None:
        """Reads an array of a shape that is nested exactly so."""
        if text[:1] != b"[":
            raise self.not_nested()
        if len(text) <= _PIECE_BYTES:
            self._take(self._flattened(self._decoded(text), shape))
        elif len(shape) == 1:
            num_values = sum(self._take(self._decoded(piece)) for piece in _pieces_of(text))
            self._check_count(num_values, shape)
        else:
            lists = msgspec.json.decode(text, type=list[msgspec.Raw])
            if len(lists) != shape[0]:
                raise self.not_nested()
            for group in _groups_of(lists):
                if len(group) == 1:
                    self.read(bytes(group[0]), shape[1:])
                else:
                    values = self._decoded(b"[" + b",".join(group) + b"]")
                    self._take(self._flattened(values, (len(group), *shape[1:])))
                time.sleep(_PAUSE_S)

    def _decoded(self, text: bytes) -> list[Any]:
        try:
            values: list[Any] = msgspec.json.decode(text)
        except msgspec.MsgspecError as error:  # a comma in a string parted it
            raise invalid(self._field, f"has values that are no {self._kind}") from error
        return values

    def _flattened(self, values: list[Any], shape: Sequence[int]) -> list[Any]:
        for length in shape[1:]:
            if not all(type(each) is list and len(each) == length for each in values):
                raise self.not_nested()
            values = list(itertools.chain.from_iterable(values))
        self._check_count(len(values), shape)
        return values

    def _check_count(self, num_values: int, shape: Sequence[int]) -> None:
        if num_values == math.prod(shape):
            return
        if math.prod(shape) != math.prod(self._shape):  # of a part of it
            raise self.not_nested()
        raise invalid(self._field, f"has {num_values} values, its shape needs {math.prod(shape)}")

    def _take(self, values: list[Any]) -> int:
        """Keeps some values as an array; gives their number."""
        if not set(map(type, values)) <= self._allowed:
            odd = next(value for value in values if type(value) not in self._allowed)
            raise invalid(self._field, f"{str(odd)[:40]!r} is no value of {self._kind}")
        try:
            self.pieces.append(np.array(values, dtype=self._dtype))
        except OverflowError as error:
            raise invalid(self._field, f"a number is out of {self._kind}") from error
        return len(values)

    def not_nested(self) -> Exception:
        """What to say of an array that is neither flat nor nested as its shape."""
        return invalid(self._field, f"is neither flat nor nested as its shape {self._shape}")


def _num_lists(shape: Sequence[int]) -> int:
    """How many brackets open in an array that is nested as its shape."""
    return sum(math.prod(shape[:depth]) for depth in range(len(shape)))


def _pieces_of(text: bytes) -> Iterator[bytes]:
    """A flat array in several that are flat and short."""
    if len(text) <= _PIECE_BYTES:
        yield text
        return
    start, stop = 1, len(text) - 1
    while start < stop:
        end = text.find(b",", start + _PIECE_BYTES, stop)
        end = stop if end < 0 else end
        yield b"[" + text[start:end] + b"]"
        start = end + 1
        time.sleep(_PAUSE_S)


def _groups_of(lists: Sequence[msgspec.Raw]) -> Iterator[list[msgspec.Raw]]:
    """Neighbours that are short together; a long one by itself."""
    group: list[msgspec.Raw] = []
    num_bytes = 0
    for each in lists:
        length = len(memoryview(each))
        if group and num_bytes + length > _PIECE_BYTES:
            yield group
            group, num_bytes = [], 0
        group.append(each)
        num_bytes += length
    if group:
        yield group
