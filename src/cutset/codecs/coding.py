"""What a codec is: an array into bytes, and bytes of a known number into the array again.

A link knows dtype, shape and codec of each of its tensors before a byte comes, so a payload says
none of them: its length follows from them, and what has another length is refused unread. A payload
is::

    order       rank x B   the dimensions, the one whose steps are largest in memory first
    parameters             of a fixed size, as the codec says; zeros up to a multiple of 64
    numbers                one for each element, in the order in which they lie in memory

The order is kept as links keep it: a channels_last tensor arrives channels_last. Where a codec
packs (`cutset.codecs.packing`), what travels is the packed form of that, at most a byte longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cutset.codecs.packing import pack, unpack
from cutset.dtypes import ALIGNMENT_BYTES, NUMPY_DTYPES, dtype_name, empty_array
from cutset.tensors import TensorSpec

_BYTE = np.dtype(np.uint8)


class CodecError(ValueError):
    """An array that a codec cannot write, or a payload that it never wrote.

    Attributes:
        codec: name of the codec.
    """

    def __init__(self, codec: str, message: str) -> None:
        super().__init__(f"codec {codec}: {message}")
        self.codec = codec


class Codec(Protocol):
    """A way to write the numbers of a tensor in fewer bytes.

    What it does to a row must not hang on the rows beside it: the first dimension holds them.

    Attributes:
        name: as bundles and options have it.
        dtypes: names of the dtypes that it takes; others travel as they are.
        item: dtype of a number in a payload; None for the array's own.
        lossy: whether other numbers may arrive than were sent.
        packs: whether payloads are packed, so that their length follows from the numbers.
    """

    name: str
    dtypes: frozenset[str]
    item: np.dtype | None
    lossy: bool
    packs: bool

    def num_parameter_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of the parameters before the numbers of an array of `shape`."""
        ...

    def write(self, array: np.ndarray, parameters: np.ndarray, numbers: np.ndarray) -> None:
        """Writes an array.

        Args:
            array: dense, of one of `dtypes`.
            parameters: uint8, to fill.
            numbers: of `item`, with the array's shape and order in memory, to fill.

        Raises:
            CodecError: a number cannot be written.
        """
        ...

    def read(self, parameters: np.ndarray, numbers: np.ndarray, array: np.ndarray) -> None:
        """Fills `array` (as in `write`) with what was written.

        Raises:
            CodecError: parameters that no `write` gives.
        """
        ...


def payload_bytes(codec: Codec, spec: TensorSpec, num_rows: int) -> int:
    """Bytes of the payload of a tensor with `num_rows` rows; if packed, the most of them."""
    return _content_bytes(codec, spec, num_rows) + codec.packs


def is_payload_length(codec: Codec, num_bytes: int, spec: TensorSpec, num_rows: int) -> bool:
    """Whether a payload of a tensor may have so many bytes."""
    most = payload_bytes(codec, spec, num_rows)
    return 1 <= num_bytes <= most if codec.packs else num_bytes == most


def _content_bytes(codec: Codec, spec: TensorSpec, num_rows: int) -> int:
    """Bytes of a payload before it is packed."""
    shape = spec.concrete_shape(num_rows)
    return _numbers_begin(codec, shape) + math.prod(shape) * _item(codec, spec).itemsize


def _item(codec: Codec, spec: TensorSpec) -> np.dtype:
    return NUMPY_DTYPES[spec.dtype] if codec.item is None else codec.item


def _numbers_begin(codec: Codec, shape: Sequence[int]) -> int:
    num_bytes = len(shape) + codec.num_parameter_bytes(shape)
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def encode(codec: Codec, array: np.ndarray, spec: TensorSpec, num_rows: int) -> np.ndarray:
    """The payload of a tensor, uint8.

    Args:
        codec: how to write it.
        array: dense; what `spec` promises for `num_rows`.
        spec: what the link carries.
        num_rows: rows of the micro-batch.

    Raises:
        CodecError: it is something else, or holds a number that the codec cannot write.
    """
    shape = spec.concrete_shape(num_rows)
    if array.shape != shape or dtype_name(array.dtype) != spec.dtype:
        raise CodecError(
            codec.name,
            f"{spec.name!r} is {array.dtype}{list(array.shape)}, expected {spec} with {num_rows}"
            " rows",
        )
    payload = empty_array((_content_bytes(codec, spec, num_rows),), _BYTE)
    order = sorted(range(len(shape)), key=lambda k: -array.strides[k])
    payload[: _numbers_begin(codec, shape)] = 0
    payload[: len(shape)] = order
    item = _item(codec, spec)
    codec.write(array, *_parts(codec, payload, shape, order, item))
    return pack(payload, item.itemsize) if codec.packs else payload


def decode(codec: Codec, payload: np.ndarray, spec: TensorSpec, num_rows: int) -> np.ndarray:
    """The tensor of a payload, in memory of its own.

    Args:
        codec: how it was written.
        payload: uint8; nothing of it is believed.
        spec: what the link carries.
        num_rows: rows of the micro-batch.

    Raises:
        CodecError: it is none of such a tensor.
    """
    shape = spec.concrete_shape(num_rows)
    item = _item(codec, spec)
    if (
        payload.dtype != _BYTE
        or payload.ndim != 1
        or not is_payload_length(codec, payload.size, spec, num_rows)
    ):
        most = f"{'at most ' * codec.packs}{payload_bytes(codec, spec, num_rows)}"
        raise CodecError(codec.name, f"{payload.size} bytes of {spec.name!r}, expected {most}")
    if codec.packs:
        try:
            payload = unpack(payload, _content_bytes(codec, spec, num_rows), item.itemsize)
        except ValueError as error:
            raise CodecError(codec.name, f"a payload of {spec.name!r}: {error}") from error
    order = payload[: len(shape)].tolist()
    if sorted(order) != list(range(len(shape))):
        raise CodecError(codec.name, f"the dimensions of {spec.name!r} come in the order {order}")
    array = _laid_out(empty_array((math.prod(shape),), NUMPY_DTYPES[spec.dtype]), shape, order)
    codec.read(*_parts(codec, payload, shape, order, item), array)
    return array


def round_trip(codec: Codec, array: np.ndarray, spec: TensorSpec, num_rows: int) -> np.ndarray:
    """What arrives where `array` is sent.

    Raises:
        CodecError: as for `encode`.
    """
    return decode(codec, encode(codec, array, spec, num_rows), spec, num_rows)


def _parts(
    codec: Codec,
    payload: np.ndarray,
    shape: tuple[int, ...],
    order: Sequence[int],
    item: np.dtype,
) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and numbers of a payload, as views of it."""
    parameters = payload[len(shape) : len(shape) + codec.num_parameter_bytes(shape)]
    numbers = payload[_numbers_begin(codec, shape) :].view(item)
    return parameters, _laid_out(numbers, shape, order)


def _laid_out(memory: np.ndarray, shape: tuple[int, ...], order: Sequence[int]) -> np.ndarray:
    """`memory` as an array of `shape` whose dimensions lie in `order`."""
    inverse = sorted(range(len(order)), key=order.__getitem__)
    array: np.ndarray = memory.reshape([shape[k] for k in order]).transpose(inverse)
    return array
