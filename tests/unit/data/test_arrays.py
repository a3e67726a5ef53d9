from __future__ import annotations

import numpy as np
import pytest
import torch

from cutset.data.arrays import oddity, readable, to_numpy, to_tensor
from cutset.errors import ContractViolation


def test_arrays_become_tensors_without_a_copy_where_they_can() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for view in (array, array.T, array[:, ::2]):
        tensor = to_tensor(view)
        view[0, 0] += 1
        assert tensor[0, 0] == view[0, 0]
        assert tensor.stride() == tuple(stride // 4 for stride in view.strides)


def test_a_copy_keeps_the_order_of_dimensions_in_memory() -> None:
    frozen = np.zeros((2, 3, 4), np.float32).transpose(2, 0, 1)
    frozen.flags.writeable = False
    assert to_tensor(frozen).stride() == (1, 12, 4)
    assert to_tensor(frozen.astype(">f4")).stride() == (1, 12, 4)


def test_one_row_of_a_reversed_array_is_copied_too() -> None:
    assert to_tensor(np.ones((1, 3), np.float32)[::-1]).tolist() == [[1.0, 1.0, 1.0]]
    assert to_tensor(np.arange(3.0)[::-1]).tolist() == [2.0, 1.0, 0.0]


def test_a_tensor_as_it_is_stays_the_same_object() -> None:
    tensor = torch.randn(2, 3)
    assert to_tensor(tensor) is tensor
    assert readable(tensor) is tensor
    assert oddity(tensor) is None


def test_what_was_promised_and_what_came_are_attributes() -> None:
    with pytest.raises(ContractViolation) as caught:
        to_tensor(torch.ones(2).to_sparse(), boundary="into stage 0", expected="x: float32[2]")
    assert str(caught.value) == (
        "into stage 0: x: float32[2] expected, but what came is a tensor of layout"
        " torch.sparse_coo; give to_dense()"
    )
    assert caught.value.boundary == "into stage 0"
    assert caught.value.expected == "x: float32[2]"
    assert caught.value.actual == "a tensor of layout torch.sparse_coo"


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="a list came; give a torch"):
        to_tensor([1.0])


def test_numpy_lacks_bfloat16() -> None:
    with pytest.raises(TypeError, match="output 'y' is bfloat16, which NumPy lacks; give the"):
        to_numpy(torch.zeros(2, dtype=torch.bfloat16), "y")
    assert to_numpy(torch.arange(2), "y").tolist() == [0, 1]


def test_memory_that_was_made_smaller_is_noticed_at_its_last_element() -> None:
    tensor = torch.zeros(4, 2).t()[1:]
    assert oddity(tensor) is None
    tensor.untyped_storage().resize_(31)  # the last element ends at byte 32
    assert oddity(tensor) is not None
    with pytest.raises(ValueError, match="was given back"):
        readable(tensor)
    assert oddity(tensor[:0]) is None
