from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from cutset.data.torch_border import array_over, is_tensor, oddity, tensor_over
from cutset.errors import ContractViolation
from cutset.tensors import DTYPE_BYTES


def _array(tensor: object) -> np.ndarray:
    return array_over(tensor, boundary="here", expected="numbers")


def test_tensors_and_parameters_are_tensors_and_arrays_are_not() -> None:
    assert is_tensor(torch.zeros(2))
    assert is_tensor(torch.nn.Parameter(torch.zeros(2)))
    assert not is_tensor(np.zeros(2))
    assert not is_tensor(torch.Size([2]))


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_every_dtype_that_may_cross_goes_there_and_back(dtype: str) -> None:
    tensor = torch.arange(6).reshape(2, 3).t().to(getattr(torch, dtype))
    array = _array(tensor)
    assert array.dtype.name == dtype
    assert array.strides == tuple(step * DTYPE_BYTES[dtype] for step in tensor.stride())
    assert array.ctypes.data == tensor.data_ptr()
    again = tensor_over(array)
    assert again.dtype == tensor.dtype
    assert again.stride() == tensor.stride()
    assert again.data_ptr() == tensor.data_ptr()
    assert torch.equal(again, tensor)


@pytest.mark.parametrize("shape", [(), (0, 3), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_number_stays_a_number_and_nothing_stays_nothing(
    shape: tuple[int, ...], dtype: str
) -> None:
    array = _array(torch.ones(shape, dtype=getattr(torch, dtype)))
    assert array.shape == shape
    assert tuple(tensor_over(array).shape) == shape


def test_bfloat16_and_float8_are_their_numbers() -> None:
    numbers = torch.tensor([1.5, -2.0, 0.25])
    for name in ("bfloat16", "float8_e5m2", "float8_e4m3fn"):
        array = _array(numbers.to(getattr(torch, name)))
        assert array.dtype == np.dtype(getattr(ml_dtypes, name))
        assert array.astype(np.float32).tolist() == [1.5, -2.0, 0.25]


@pytest.mark.parametrize(
    ("tensor", "numbers"),
    [
        (torch.tensor([1 + 2j, 3j]).conj(), [1 - 2j, -3j]),
        (torch.tensor([1 + 2j, 3j]).conj().imag, [-2.0, -3.0]),
        (torch._neg_view(torch.tensor([1, 2])), [-1, -2]),
        (torch._neg_view(torch.tensor([1.0, 2.0]).bfloat16()), [-1.0, -2.0]),
        (torch.tensor([1 + 2j, 3j]).conj().requires_grad_(), [1 - 2j, -3j]),
    ],
)
def test_lazy_conjugation_and_negation_are_resolved(
    tensor: torch.Tensor, numbers: list[complex]
) -> None:
    assert _array(tensor).tolist() == numbers


class _Meddling(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called in the caller's mode")


class _MeddlingBelow(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} was called in the caller's mode")


@pytest.mark.parametrize(
    "mode",
    [
        FakeTensorMode(allow_non_fake_inputs=True),
        _Meddling(),
        _MeddlingBelow(),
        torch.device("meta"),
        torch.inference_mode(),
    ],
)
def test_modes_of_the_thread_have_no_say(mode: Any) -> None:
    numbers = torch.tensor([1.0, -2.0, 3.0])
    given = (
        numbers,
        numbers.bfloat16(),
        torch._neg_view(numbers),
        torch._neg_view(numbers.bfloat16()),
        torch.complex(numbers, numbers).conj(),
        numbers.clone().requires_grad_(),
    )
    with mode:
        arrays = [_array(tensor) for tensor in given]
    plain, halves, negated, halves_negated, conjugated, leaf = (a.tolist() for a in arrays)
    assert plain == halves == leaf == [1.0, -2.0, 3.0]
    assert negated == halves_negated == [-1.0, 2.0, -3.0]
    assert conjugated == [1 - 1j, -2 + 2j, 3 - 3j]


def test_a_tensor_that_gets_other_memory_leaves_the_array_its_own() -> None:
    tensor = torch.arange(1000.0)
    array = _array(tensor)
    tensor.data = torch.zeros(1)
    _ = [torch.ones(1000) for _ in range(10)]  # would lie where the old numbers lay
    assert array.tolist() == list(range(1000))
    kept = _array(tensor)
    with pytest.raises(RuntimeError, match="resiz"):
        tensor.untyped_storage().resize_(0)
    assert kept.tolist() == [0.0]


def test_a_dtype_that_no_array_has_is_refused() -> None:
    bits = torch.zeros(4, dtype=torch.uint8).view(torch.bits8)
    with pytest.raises(ContractViolation, match=r"a tensor of dtype torch\.bits8, which no array"):
        _array(bits)


def test_memory_that_was_made_smaller_is_noticed_at_its_last_element() -> None:
    tensor = torch.zeros(4, 2).t()[1:]
    assert oddity(tensor) is None
    tensor.untyped_storage().resize_(31)  # the last element ends at byte 32
    assert oddity(tensor) is not None
    with pytest.raises(ContractViolation, match="was given back"):
        _array(tensor)
    assert oddity(tensor[:0]) is None
