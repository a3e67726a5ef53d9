from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from cutset.errors import ContractViolation, EngineError
from cutset.runtime import contract
from cutset.runtime.contract import check_tensors, count_rows, want_of_memory
from cutset.tensors import TensorSpec

_SPEC = TensorSpec(name="relu_3", shape=("batch", 64, 56, 56), dtype="float32")


def test_the_promised_tensor_passes() -> None:
    check_tensors((np.zeros((3, 64, 56, 56), np.float32),), (_SPEC,), 3, "into stage 1")


@pytest.mark.parametrize(
    ("tensor", "actual", "advice"),
    [
        (np.zeros((3, 32, 56, 56), "f4"), "float32[3, 32, 56, 56]", "give it the promised lengths"),
        (np.zeros((2, 64, 56, 56), "f4"), "float32[2, 64, 56, 56]", "give it the promised lengths"),
        (np.zeros((3, 64, 56), "f4"), "float32[3, 64, 56]", "give it 4 dimensions"),
        (np.zeros((3, 64, 56, 56), "f2"), "float16[3, 64, 56, 56]", "convert it to float32"),
        (np.zeros((3, 64, 56, 56), ">f4"), ">f4[3, 64, 56, 56]", "convert it to float32"),
        (np.zeros((3, 64, 56, 56), "i4"), "int32[3, 64, 56, 56]", "convert it to float32"),
    ],
)
def test_another_tensor_is_named_with_what_was_expected(
    tensor: np.ndarray, actual: str, advice: str
) -> None:
    with pytest.raises(ContractViolation, match=advice) as caught:
        check_tensors((tensor,), (_SPEC,), 3, "into stage 1, after layer1.2")
    assert caught.value.boundary == "into stage 1, after layer1.2"
    assert caught.value.expected == "float32[batch, 64, 56, 56]"
    assert caught.value.actual == actual


def test_numbers_of_two_bytes_are_no_bfloat16_and_the_other_way_round() -> None:
    half = TensorSpec(name="h", shape=("batch",), dtype="bfloat16")
    whole = TensorSpec(name="n", shape=("batch",), dtype="int16")
    bits = np.zeros(2, np.int16)
    check_tensors((bits.view(ml_dtypes.bfloat16), bits), (half, whole), 2, "here")
    for array in (bits, bits.view(np.uint16), bits.view(np.float16), bits.view("V2")):
        with pytest.raises(ContractViolation, match="convert it to bfloat16"):
            check_tensors((array,), (half,), 2, "here")
    with pytest.raises(ContractViolation, match=r"is bfloat16\[2\] .* convert it to int16"):
        check_tensors((bits.view(ml_dtypes.bfloat16),), (whole,), 2, "here")


def test_rows_are_counted_by_the_first_input_that_has_them() -> None:
    table = TensorSpec(name="t", shape=(5,), dtype="float32")
    pairs = TensorSpec(name="p", shape=("batch*3", 2), dtype="float32")
    assert count_rows((np.zeros(5), np.zeros((12, 2))), (table, pairs)) == 4
    assert count_rows((np.zeros(5),), (table,)) == 1


def test_no_rows_and_no_dimensions_are_errors() -> None:
    with pytest.raises(EngineError, match="has no rows"):
        count_rows((np.zeros((0, 64, 56, 56), np.float32),), (_SPEC,))
    with pytest.raises(ContractViolation, match="give it 4 dimensions"):
        count_rows((np.array(1, np.float32),), (_SPEC,))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 GiB for an array with shape (1073741824,)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("Failed to allocate memory for requested buffer of size 68719476736"),
        RuntimeError("out of memory"),
    ],
)
def test_want_of_memory_names_use_and_limit(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(contract, "data_memory", lambda: (1_000_000, 3_000_000))
    words = want_of_memory(error)
    assert words is not None
    assert words.startswith(
        "out of memory: the process holds 1,000,000 bytes of data, and the bundle's stated sizes "
        "allow 3,000,000. "
    )
    monkeypatch.setattr(contract, "data_memory", lambda: None)
    words = want_of_memory(error)
    assert words is not None
    assert words.startswith("out of memory (")


@pytest.mark.parametrize(
    "words", ["", "no such luck", "shape '[2]' is invalid for input of size 3"]
)
def test_other_failures_are_no_want_of_memory(words: str) -> None:
    assert want_of_memory(RuntimeError(words)) is None
