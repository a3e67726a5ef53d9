from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from cutset.dtypes import NUMPY_DTYPES, dtype_name, empty_array, row_major
from cutset.tensors import DTYPE_BYTES


def test_every_dtype_of_a_boundary_has_one_of_numpy() -> None:
    assert NUMPY_DTYPES.keys() == DTYPE_BYTES.keys()
    for name, dtype in NUMPY_DTYPES.items():
        assert dtype.itemsize == DTYPE_BYTES[name]
        assert dtype_name(dtype) == name


def test_swapped_bytes_and_stand_ins_have_no_name() -> None:
    assert dtype_name(np.dtype("<f4")) == "float32"
    assert dtype_name(np.dtype(">f4")) is None  # its name is 'float32' all the same
    assert dtype_name(np.dtype("uint16")) is None
    assert dtype_name(np.dtype("int16")) == "int16"
    assert dtype_name(np.dtype(ml_dtypes.bfloat16)) == "bfloat16"
    assert dtype_name(np.dtype("V2")) is None
    assert dtype_name(np.dtype("O")) is None


@pytest.mark.parametrize("name", ["bool", "bfloat16", "float32", "complex128"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (3, 1, 7)])
def test_an_empty_array_begins_where_kernels_like(name: str, shape: tuple[int, ...]) -> None:
    held = [empty_array(shape, NUMPY_DTYPES[name]) for _ in range(5)]
    for array in held:
        assert array.shape == shape
        assert array.dtype == NUMPY_DTYPES[name]
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not array.size or array.ctypes.data % 64 == 0


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(2, 3, 4).transpose(0, 2, 1),
        np.arange(24.0).reshape(2, 3, 4)[:, ::-1],
        np.broadcast_to(np.float32(3), (2, 3)),
        np.arange(6, dtype=ml_dtypes.bfloat16).reshape(2, 3).T,
        np.frombuffer(bytes(8), np.float32),  # read-only
        np.frombuffer(bytearray(9), np.uint8)[1:].view(np.float32),  # at an odd address
    ],
)
def test_what_lies_otherwise_is_copied_into_rows(array: np.ndarray) -> None:
    copy = row_major(array)
    assert copy.flags.carray
    assert np.array_equal(copy, array)
    assert not np.shares_memory(copy, array)


def test_what_lies_in_rows_stays_as_it_is() -> None:
    for array in (np.zeros((2, 3)), np.zeros(()), np.zeros((0, 3)), np.zeros((4, 1, 1))):
        assert row_major(array) is array
