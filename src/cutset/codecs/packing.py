"""Payloads of codecs in fewer bytes, without loss: planes of bytes, then zstd.

The bytes of a number are of different kinds: those of the exponent repeat, those of the mantissa
hardly do. So the first bytes of all numbers come first, then the second ones, and so on; what
repeats then stands together. A packed payload is::

    frame       one frame of zstd (RFC 8878) that says how long its content is, or the content
    kind        1 byte: 1 for a frame, 0 where the content is not longer than its frame

so it is never more than a byte longer than what it packs. Its length follows from the numbers, so
all that is known of it beforehand is the most that it may be. Nothing is unpacked before the frame
has said that it holds exactly the bytes that its tensor makes it: whatever else a frame claims to
hold, no memory is taken for it.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from cutset.dtypes import empty_array
from cutset.extras import naming_extras

PACKER = "zstd"
"""As bundles and options name it."""

_LEVEL = 1
_CONTENT, _FRAME = 0, 1
_BYTE = np.dtype(np.uint8)
_own = threading.local()  # neither end of zstd's may be used by two threads at once


def require_packer() -> None:
    """Makes sure that payloads can be packed and unpacked here.

    Raises:
        MissingExtra: the package is not installed; says what to type.
    """
    _zstd()


def _zstd() -> Any:
    with naming_extras(f"codec {PACKER}"):
        import zstandard
    return zstandard


def pack(content: np.ndarray, num_planes: int) -> np.ndarray:
    """The packed form of a payload.

    Args:
        content: uint8, of a length that is a multiple of `num_planes`.
        num_planes: bytes of a number.

    Raises:
        MissingExtra: the package that packs is not installed.
    """
    if not hasattr(_own, "packs"):
        _own.packs = _zstd().ZstdCompressor(level=_LEVEL)
    planes = np.ascontiguousarray(content.reshape(-1, num_planes).T)
    frame = np.frombuffer(_own.packs.compress(planes.data), _BYTE)
    kind, kept = (_FRAME, frame) if frame.size < content.size else (_CONTENT, content)
    packed = empty_array((kept.size + 1,), _BYTE)
    packed[:-1] = kept
    packed[-1] = kind
    return packed


def unpack(packed: np.ndarray, num_bytes: int, num_planes: int) -> np.ndarray:
    """The payload of which `packed` is the packed form.

    Args:
        packed: uint8, one byte at least; nothing of it is believed.
        num_bytes: length of the payload, a multiple of `num_planes`.
        num_planes: as for `pack`.

    Raises:
        ValueError: it is none of such a payload.
        MissingExtra: the package that unpacks is not installed.
    """
    kind, kept = int(packed[-1]), packed[:-1]
    if kind == _CONTENT:
        if kept.size != num_bytes:
            raise ValueError(f"{kept.size} bytes, not packed, in the place of {num_bytes}")
        return kept
    if kind != _FRAME:
        raise ValueError(f"it is of kind {kind}, expected {_CONTENT} or {_FRAME}")
    zstandard = _zstd()
    if not hasattr(_own, "unpacks"):
        _own.unpacks = zstandard.ZstdDecompressor()
    try:
        # A frame's own word decides how much is allocated for it, so it is looked at before.
        claimed = zstandard.get_frame_parameters(kept.data).content_size
        if claimed != num_bytes:
            raise ValueError(f"its frame claims to hold {claimed} bytes, expected {num_bytes}")
        content = _own.unpacks.decompress(
            kept.data, max_output_size=num_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise ValueError(f"its frame is none: {error}") from error
    planes = np.frombuffer(content, _BYTE).reshape(num_planes, -1)
    payload = empty_array((num_bytes,), _BYTE)
    payload.reshape(-1, num_planes)[...] = planes.T
    return payload
