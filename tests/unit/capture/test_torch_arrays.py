from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.dtypes import NUMPY_DTYPES


def _tensors(dtype: torch.dtype) -> list[torch.Tensor]:
    numbers = torch.arange(1 * 2 * 3 * 4).to(dtype).reshape(1, 2, 3, 4)
    return [
        numbers,
        numbers.contiguous(memory_format=torch.channels_last),
        numbers.permute(3, 1, 0, 2),
        numbers[:, :, ::2, 1:],
        torch.empty_strided((1, 3, 4), (1, 4, 1), dtype=dtype).fill_(1),  # one row, odd stride
        numbers[0, 0, 0, 0],
        numbers[0, 0, 0, :1].expand(5),
    ]


@pytest.mark.parametrize("name", NUMPY_DTYPES)
def test_there_and_back_keeps_memory_and_strides(name: str) -> None:
    for tensor in _tensors(getattr(torch, name)):
        array = as_array(tensor)
        assert array.dtype == NUMPY_DTYPES[name]
        assert array.shape == tuple(tensor.shape)
        assert array.strides == tuple(s * tensor.element_size() for s in tensor.stride())
        back = as_tensor(array)
        assert back.dtype == tensor.dtype
        assert back.stride() == tensor.stride()
        assert back.data_ptr() == tensor.data_ptr()
        assert torch.equal(back, tensor)


def test_numbers_are_the_same_in_both() -> None:
    array = as_array(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))
    assert array.astype(np.float32).tolist() == [1.5, -2.0]
    tensor = as_tensor(np.array([3.25, 0.5], ml_dtypes.bfloat16))
    assert tensor.dtype is torch.bfloat16
    assert tensor.tolist() == [3.25, 0.5]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_without_elements_is_lost(dtype: str) -> None:
    tensor = torch.zeros((0, 3), dtype=getattr(torch, dtype))
    assert as_array(tensor).shape == (0, 3)
    assert as_tensor(as_array(tensor)).shape == (0, 3)


def test_what_is_lazy_or_records_gradients_is_resolved() -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    assert as_array(numbers.conj()).tolist() == [1 - 2j, 3 + 4j]
    assert as_array(numbers.conj().imag).tolist() == [-2.0, 4.0]
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    assert as_array(weight).astype(np.float32).tolist() == [1.0, 2.0]
    with torch.inference_mode():
        made = torch.ones(2) + 1
    assert as_array(made).tolist() == [2.0, 2.0]


def _read_only() -> np.ndarray:
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "array",
    [
        _read_only(),
        np.arange(6, dtype=np.float32).reshape(2, 3)[::-1],
        np.arange(6, dtype=">f4").reshape(2, 3).T,
        np.frombuffer(bytearray(25), np.uint8)[1:].view(np.float32).reshape(2, 3).T,
        np.zeros(3, np.dtype([("a", "<f4"), ("b", "u1")]))["a"],  # strides of five bytes
        np.arange(6).astype(ml_dtypes.bfloat16).reshape(2, 3)[:, ::-1],
    ],
    ids=["read-only", "backwards", "swapped", "odd address", "odd strides", "bfloat16"],
)
def test_what_torch_cannot_use_is_copied_in_the_same_order(array: np.ndarray) -> None:
    before = array.astype(np.float64)
    tensor = as_tensor(array)
    assert tensor.to(torch.float64).numpy().tolist() == before.tolist()
    order = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    assert order == sorted(range(array.ndim), key=lambda axis: -tensor.stride(axis))
    tensor.zero_()
    assert np.array_equal(array.astype(np.float64), before)


def test_a_sparse_tensor_is_no_array() -> None:
    with pytest.raises(TypeError):
        as_array(torch.eye(3).to_sparse())
