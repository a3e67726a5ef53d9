from __future__ import annotations

import pytest
import torch

from cutset.links.wire import (
    DATA,
    KEEP_ALIVE,
    Header,
    Layout,
    WireError,
    as_bytes,
    from_bytes,
    header_bytes,
    is_dense,
    layout_of,
    pack_header,
    unpack_header,
)

_LAYOUTS = (
    Layout(dtype="float32", shape=(2, 3, 4, 4), strides=(48, 1, 12, 3)),
    Layout(dtype="int64", shape=(), strides=()),
)
_HEADER = Header(kind=DATA, epoch=3, sequence=17, num_rows=2, layouts=_LAYOUTS, slot=1)


def _packed(header: Header = _HEADER, max_tensors: int = 2) -> bytearray:
    buffer = bytearray(header_bytes(max_tensors, 4))
    pack_header(header, buffer, 4)
    return buffer


def _read(buffer: bytearray) -> Header:
    return unpack_header(buffer, epoch=3, max_rank=4, max_rows=4, max_bytes=1000, num_slots=2)


def test_a_header_comes_back_as_it_was() -> None:
    assert _read(_packed()) == _HEADER


def test_a_header_has_a_known_size_and_beginning() -> None:
    assert header_bytes(0, 0) == 32
    assert header_bytes(2, 0) == 32 + 2 * 2
    assert header_bytes(2, 4) == 32 + 2 * 66
    assert bytes(_packed()[:32]) == (
        b"CuTs"
        b"\x02\x01\x02\x00"
        b"\x03" + b"\x00" * 7 + b"\x11" + b"\x00" * 7 + b"\x02\x00\x00\x00" + b"\x01\x00\x00\x00"
    )


def test_a_keep_alive_needs_no_rows() -> None:
    assert _read(_packed(Header(kind=KEEP_ALIVE, epoch=3))).kind == KEEP_ALIVE


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, 0x00, "instead of"),
        (4, 0x01, "version 1"),
        (5, 0x07, "unknown kind"),
        (6, 0x03, "carries fewer"),
        (8, 0x04, "of epoch 4 in epoch 3"),
        (24, 0x00, "0 rows announced"),
        (24, 0x05, "5 rows announced"),
        (28, 0x02, "slot 2 named"),
        (31, 0x80, "slot -"),
        (32, 0x63, "dtype number 99"),
        (33, 0x05, "rank 5"),
        (34, 0x7F, "bytes announced"),
        (41, 0x80, "lengths"),
        (66, 0x02, "strides"),
    ],
)
def test_bytes_that_no_neighbour_sends_are_refused(offset: int, value: int, words: str) -> None:
    buffer = _packed()
    buffer[offset] = value
    with pytest.raises(WireError, match=words):
        _read(buffer)


def test_more_bytes_than_the_link_carries_are_refused() -> None:
    with pytest.raises(WireError, match="392 bytes announced on a link that carries at most 391"):
        unpack_header(_packed(), epoch=3, max_rank=4, max_rows=4, max_bytes=391, num_slots=2)


@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), True),
        ((2, 3), (4, 1), False),
        ((2, 3), (0, 1), False),
        ((2, 3), (1, 1), False),
        ((1, 3), (77, 1), True),
        ((0, 3), (3, 1), True),
        ((), (), True),
        ((2,), (-1,), False),
    ],
)
def test_dense_means_each_place_once(
    shape: tuple[int, ...], strides: tuple[int, ...], dense: bool
) -> None:
    assert is_dense(shape, strides) is dense


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2),
        torch.arange(24.0).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        torch.arange(12).reshape(3, 4).t(),
        torch.tensor([True, False, True]),
        torch.tensor([1 + 2j, 3 - 4j]),
        torch.tensor([1.5, -2.5], dtype=torch.bfloat16),
        torch.tensor(5),
        torch.zeros(0, 4),
        torch.arange(6.0).reshape(1, 6, 1, 1).contiguous(memory_format=torch.channels_last),
    ],
)
def test_a_tensor_survives_as_bytes_with_its_strides(tensor: torch.Tensor) -> None:
    memory = torch.zeros(1024, dtype=torch.uint8)
    data = as_bytes(tensor)
    memory[: data.numel()] = data
    copy = from_bytes(memory, layout_of(tensor))
    assert copy.dtype == tensor.dtype
    assert copy.stride() == tensor.stride()
    assert torch.equal(copy, tensor)


@pytest.mark.parametrize("rank", [9, 64])
def test_any_rank_that_a_tensor_may_have_crosses(rank: int) -> None:
    layout = layout_of(torch.zeros([1] * (rank - 1) + [2]))
    header = Header(kind=DATA, epoch=3, sequence=1, num_rows=1, layouts=(layout,))
    buffer = bytearray(header_bytes(1, rank))
    pack_header(header, buffer, rank)
    read = unpack_header(buffer, epoch=3, max_rank=rank, max_rows=1, max_bytes=8, num_slots=0)
    assert read == header


def test_a_tensor_of_too_many_dimensions_cannot_be_sent() -> None:
    with pytest.raises(WireError, match="at most 64 dimensions"):
        layout_of(torch.zeros([1] * 65))


def test_a_dtype_that_cannot_cross_is_named() -> None:
    with pytest.raises(WireError, match="float8_e4m3fn"):
        layout_of(torch.zeros(2, dtype=torch.float8_e4m3fn))
