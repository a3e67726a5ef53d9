from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

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
    own_copy,
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
        ((1, 3), (-3, 1), False),
        ((1, 3), (0, 1), True),
        ((0, 3), (3, 1), True),
        ((), (), True),
        ((2,), (-1,), False),
    ],
)
def test_dense_means_each_place_once(
    shape: tuple[int, ...], strides: tuple[int, ...], dense: bool
) -> None:
    assert is_dense(shape, strides) is dense


def _channels_last(array: np.ndarray) -> np.ndarray:
    """The same numbers as a tensor of images lies that torch has made channels_last."""
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
        _channels_last(np.arange(24.0).reshape(2, 3, 2, 2)),
        np.arange(12).reshape(3, 4).T,
        np.arange(24).reshape(2, 3, 4).transpose(1, 2, 0),
        np.array([True, False, True]),
        np.array([1 + 2j, 3 - 4j]),
        np.array([1.5, -2.5], ml_dtypes.bfloat16),
        np.array([1.5, -2.5], np.float16),
        np.array(5),
        np.array(5, ml_dtypes.bfloat16),
        np.zeros((0, 4)),
        np.zeros((3, 0, 4)).T,
        _channels_last(np.arange(6.0).reshape(1, 6, 1, 1)),
        np.ndarray((3, 1, 4), np.int32, np.arange(12, dtype=np.int32), strides=(4, 400, 12)),
    ],
)
def test_an_array_survives_as_bytes_with_its_strides(array: np.ndarray) -> None:
    memory = np.zeros(1024, np.uint8)
    data = as_bytes(array)
    memory[: data.size] = data
    for copy in (from_bytes(memory, layout_of(array)), own_copy(array)):
        assert copy.dtype == array.dtype
        assert copy.strides == array.strides or not array.size
        assert copy.shape == array.shape  # a number by itself keeps no dimension
        assert np.array_equal(copy, array)


def test_bytes_are_the_arrays_own_memory_and_a_copy_is_not() -> None:
    array = np.arange(6, dtype=np.int16).reshape(2, 3).T
    assert as_bytes(array).tolist() == [0, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert np.shares_memory(as_bytes(array), array)
    frozen = np.arange(3)
    frozen.flags.writeable = False
    copy = own_copy(frozen)
    assert not np.shares_memory(copy, frozen)
    assert copy.flags.writeable
    assert copy.ctypes.data % 64 == 0


@pytest.mark.parametrize("rank", [9, 64])
def test_any_rank_that_a_tensor_may_have_crosses(rank: int) -> None:
    layout = layout_of(np.zeros([1] * (rank - 1) + [2], np.float32))
    header = Header(kind=DATA, epoch=3, sequence=1, num_rows=1, layouts=(layout,))
    buffer = bytearray(header_bytes(1, rank))
    pack_header(header, buffer, rank)
    read = unpack_header(buffer, epoch=3, max_rank=rank, max_rows=1, max_bytes=8, num_slots=0)
    assert read == header


def test_what_has_too_many_dimensions_is_no_array() -> None:
    with pytest.raises(ValueError, match="64"):
        np.zeros([1] * 65)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (ml_dtypes.float8_e4m3fn, r"float8_e4m3fn\[2\] cannot"),
        (">f4", r"float32\[2\] in foreign byte order cannot"),
        (">c16", r"complex128\[2\] in foreign byte order cannot"),
        ("u2", "uint16"),
        ("V2", "void16"),
        ("U1", "str"),
        ("g", "float128|longdouble|float64"),
    ],
)
def test_a_dtype_that_cannot_cross_is_named(dtype: object, words: str) -> None:
    with pytest.raises(WireError, match=words):
        layout_of(np.zeros(2, np.dtype(dtype)))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((1, 3), (2**61, 1)),  # more bytes than an array may say
        ((0, 2**62), (2**62, 1)),
        ((0, 2**40, 2**40), (1, 1, 1)),
    ],
)
def test_lengths_and_strides_that_no_array_has_are_refused(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    layout = Layout(dtype="float32", shape=shape, strides=strides)
    buffer = _packed(Header(kind=DATA, epoch=3, sequence=1, num_rows=1, layouts=(layout,)))
    with pytest.raises(WireError, match="lengths"):
        _read(buffer)


@pytest.mark.parametrize(
    ("shape", "strides"), [((1, 3), (2**60, 1)), ((0, 2**40), (2**40, 1)), ((0, 5), (0, 0))]
)
def test_any_layout_that_is_read_makes_an_array(
    shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    layout = Layout(dtype="float32", shape=shape, strides=strides)
    header = Header(kind=DATA, epoch=3, sequence=1, num_rows=1, layouts=(layout,))
    assert _read(_packed(header)) == header
    assert from_bytes(np.zeros(64, np.uint8), layout).shape == shape
    assert from_bytes(np.zeros(12, np.uint8)[: layout.num_bytes], layout).shape == shape
