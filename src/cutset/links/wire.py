"""The header that goes before every tensor payload: fixed size, binary, checked, no pickle.

Layout (little endian, no padding), for a link that carries at most T tensors of at most R
dimensions::

    magic       4s   b"CuTs"
    version     B    2
    kind        B    1 = data, 2 = keep-alive
    num_tensors H    0..T
    epoch       Q
    sequence    Q    number of the micro-batch within the session
    num_rows    I    1..the micro-batch size
    slot        i    where the tensors lie in the link's shared memory; -1: they follow as messages
    then T times
      dtype     B    index into `DTYPES`
      rank      B    0..R
      lengths   Rq   the first `rank` count
      strides   Rq   in elements; the first `rank` count

Both ends know T and R from the manifest, so a header has the same size on a link for ever, and
nothing a peer sends decides how much is read. The strides keep the order of dimensions in memory: a
channels_last tensor arrives channels_last, which bit-exactness needs, since kernels differ. The
payload is in this machine's byte order, which `Layout` knows no other of.
What the fields cannot hold, a manifest may not promise: its limits are in `cutset.tensors`.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import NamedTuple

import numpy as np

from cutset.dtypes import NUMPY_DTYPES, dtype_name, empty_array
from cutset.tensors import DTYPE_BYTES, MAX_RANK

MAGIC = b"CuTs"
VERSION = 2
DATA = 1
KEEP_ALIVE = 2
DTYPES: tuple[str, ...] = tuple(DTYPE_BYTES)

_HEAD = struct.Struct("<4sBBHQQIi")
_MOST_LAYOUTS = 512
_MOST_BYTES = 2**63 - 1


class WireError(Exception):
    """A header that no peer of ours would send; the link is given up."""


class Layout(NamedTuple):
    """How one tensor lies in memory.

    Attributes:
        dtype: a name from `cutset.tensors.DTYPE_BYTES`.
        shape: lengths.
        strides: in elements, dense and without overlap.
    """

    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Header(NamedTuple):
    """What precedes the tensors of one micro-batch.

    Attributes:
        kind: `DATA` or `KEEP_ALIVE`.
        epoch: the epoch in which it was sent.
        sequence: number of the micro-batch within the session.
        num_rows: its rows.
        layouts: one for each tensor that follows.
        slot: where the tensors lie in the link's shared memory; -1 where they follow as messages.
    """

    kind: int
    epoch: int
    sequence: int = 0
    num_rows: int = 0
    layouts: tuple[Layout, ...] = ()
    slot: int = -1


@functools.lru_cache(maxsize=MAX_RANK + 1)
def _tensor_form(max_rank: int) -> struct.Struct:
    return struct.Struct(f"<BB{max_rank}q{max_rank}q")


def header_bytes(max_tensors: int, max_rank: int) -> int:
    """Size in bytes of a header on a link.

    Args:
        max_tensors: most tensors that the link carries at once.
        max_rank: most dimensions that one of them has.
    """
    return _HEAD.size + max_tensors * _tensor_form(max_rank).size


def pack_header(header: Header, buffer: bytearray, max_rank: int) -> None:
    """Writes `header` to the beginning of `buffer`, which has room for it.

    Args:
        header: what to write.
        buffer: as many bytes as `header_bytes` says.
        max_rank: as given to `header_bytes`; no layout has more dimensions.
    """
    _HEAD.pack_into(
        buffer,
        0,
        MAGIC,
        VERSION,
        header.kind,
        len(header.layouts),
        header.epoch,
        header.sequence,
        header.num_rows,
        header.slot,
    )
    packed = _pack_layouts(header.layouts, max_rank)
    buffer[_HEAD.size : _HEAD.size + len(packed)] = packed


def unpack_header(
    buffer: bytes | bytearray,
    *,
    epoch: int,
    max_rank: int,
    max_rows: int,
    max_bytes: int,
    num_slots: int,
) -> Header:
    """Reads and checks a header.

    Args:
        buffer: as many bytes as `header_bytes` says.
        epoch: the epoch of the link.
        max_rank: as given to `header_bytes`.
        max_rows: most rows that a micro-batch may have.
        max_bytes: most bytes that its tensors may have together.
        num_slots: slots of the link's shared memory, 0 where there is none.

    Raises:
        WireError: the bytes are no header of ours, or say more than the link may carry.
    """
    magic, version, kind, num_tensors, its_epoch, sequence, num_rows, slot = _HEAD.unpack_from(
        buffer
    )
    if magic != MAGIC or version != VERSION:
        raise WireError(f"bytes {magic!r}, version {version} instead of {MAGIC!r}, {VERSION}")
    if its_epoch != epoch:
        raise WireError(f"a message of epoch {its_epoch} in epoch {epoch}")
    if kind == KEEP_ALIVE and num_tensors == 0:
        return Header(kind=kind, epoch=epoch)
    if kind != DATA:
        raise WireError(f"unknown kind of message {kind}")
    stop = header_bytes(num_tensors, max_rank)
    if stop > len(buffer):
        raise WireError(f"{num_tensors} tensors announced on a link that carries fewer")
    if not 1 <= num_rows <= max_rows:
        raise WireError(f"{num_rows} rows announced; a micro-batch has 1 to {max_rows}")
    if not -1 <= slot < num_slots:
        raise WireError(f"slot {slot} named on a link that has {num_slots}")
    layouts, total = _unpack_layouts(bytes(buffer[_HEAD.size : stop]), max_rank)
    if total > max_bytes:
        raise WireError(f"{total} bytes announced on a link that carries at most {max_bytes}")
    return Header(
        kind=kind, epoch=epoch, sequence=sequence, num_rows=num_rows, layouts=layouts, slot=slot
    )


# The same few layouts cross a link again and again.
@functools.lru_cache(maxsize=_MOST_LAYOUTS)
def _pack_layouts(layouts: tuple[Layout, ...], max_rank: int) -> bytes:
    form = _tensor_form(max_rank)
    packed = []
    for layout in layouts:
        rank = len(layout.shape)
        padding = (0,) * (max_rank - rank)
        packed.append(
            form.pack(
                DTYPES.index(layout.dtype),
                rank,
                *layout.shape,
                *padding,
                *layout.strides,
                *padding,
            )
        )
    return b"".join(packed)


@functools.lru_cache(maxsize=_MOST_LAYOUTS)
def _unpack_layouts(packed: bytes, max_rank: int) -> tuple[tuple[Layout, ...], int]:
    """The layouts, checked, and the bytes of their tensors together."""
    layouts = tuple(
        _unpack_layout(index, max_rank, *numbers)
        for index, numbers in enumerate(_tensor_form(max_rank).iter_unpack(packed))
    )
    return layouts, sum(layout.num_bytes for layout in layouts)


def _unpack_layout(index: int, max_rank: int, dtype: int, rank: int, *numbers: int) -> Layout:
    if dtype >= len(DTYPES) or rank > max_rank:
        raise WireError(f"tensor {index} has dtype number {dtype} and rank {rank}")
    shape = numbers[:rank]
    strides = numbers[max_rank : max_rank + rank]
    if min(shape, default=0) < 0 or not is_dense(shape, strides):
        raise WireError(f"tensor {index} has lengths {shape} and strides {strides}")
    # Lengths beside a 0, and strides of what has one element, are free, but NumPy counts with them.
    reach = max(math.prod(length for length in shape if length), *strides, 1)
    if reach * DTYPE_BYTES[DTYPES[dtype]] > _MOST_BYTES:
        raise WireError(f"tensor {index} has lengths {shape} and strides {strides}")
    return Layout(dtype=DTYPES[dtype], shape=shape, strides=strides)


@functools.lru_cache(maxsize=_MOST_LAYOUTS)
def is_dense(shape: tuple[int, ...], strides: tuple[int, ...], step: int = 1) -> bool:
    """Whether the elements fill one stretch of memory, each place once, in any order of dims.

    The stride of a dimension of length 1 is free where it is not negative: it is never used to
    reach an element.

    Args:
        shape: lengths.
        strides: as many.
        step: how far apart, in the unit of the strides, two elements are that touch.
    """
    if any(stride < 0 for stride in strides):
        return False
    if 0 in shape:
        return True
    expected = step
    for stride, length in sorted(
        (stride, length) for stride, length in zip(strides, shape, strict=True) if length != 1
    ):
        if stride != expected:
            return False
        expected *= length
    return True


def layout_of(array: np.ndarray) -> Layout:
    """The layout of a dense array.

    Raises:
        WireError: the array has more dimensions than any may have, or a dtype that cannot cross.
    """
    return _layout(array.dtype, array.shape, array.strides)


@functools.lru_cache(maxsize=_MOST_LAYOUTS)
def _layout(dtype: np.dtype, shape: tuple[int, ...], strides: tuple[int, ...]) -> Layout:
    name = dtype_name(dtype)
    if len(shape) > MAX_RANK or name is None:
        order = "" if dtype.isnative else " in foreign byte order"
        raise WireError(
            f"a tensor {dtype.name}{list(shape)}{order} cannot be sent: at most {MAX_RANK}"
            f" dimensions and one of the dtypes {', '.join(DTYPES)}"
        )
    # NumPy's strides are in bytes. One that no element needs may end within an element.
    return Layout(
        dtype=name, shape=shape, strides=tuple(stride // dtype.itemsize for stride in strides)
    )


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The memory of a dense array as a one-dimensional array of uint8, without a copy."""
    data: np.ndarray = array.ravel("K").view(np.uint8)
    return data


def from_bytes(memory: np.ndarray, layout: Layout) -> np.ndarray:
    """An array of `layout` over the first bytes of `memory` (uint8, enough), without a copy."""
    dtype = NUMPY_DTYPES[layout.dtype]
    strides = [stride * dtype.itemsize for stride in layout.strides]
    array: np.ndarray = np.ndarray(layout.shape, dtype, buffer=memory, strides=strides)
    return array


def own_copy(array: np.ndarray) -> np.ndarray:
    """A copy of a dense array in memory of its own, with the very same strides; writable."""
    memory = empty_array((array.nbytes,), np.dtype(np.uint8))
    memory[:] = as_bytes(array)
    return from_bytes(memory, layout_of(array))
