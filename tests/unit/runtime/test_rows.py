from __future__ import annotations

import numpy as np
import pytest
import torch

from cutset.runtime.rows import cut_rows, to_tensor
from cutset.tensors import TensorSpec

_IMAGES = TensorSpec(name="x", shape=("batch", 2), dtype="float32")
_PAIRS = TensorSpec(name="p", shape=("batch*3", 2), dtype="float32")
_TABLE = TensorSpec(name="t", shape=(5,), dtype="float32")


@pytest.mark.parametrize(
    ("num_rows", "micro_batch", "lengths"),
    [(1, 4, [1]), (4, 4, [4]), (5, 4, [4, 1]), (13, 4, [4, 4, 4, 1]), (3, 1, [1, 1, 1])],
)
def test_the_last_micro_batch_may_be_short(
    num_rows: int, micro_batch: int, lengths: list[int]
) -> None:
    rows = torch.arange(num_rows * 2.0).reshape(num_rows, 2)
    slices = cut_rows((rows,), (_IMAGES,), num_rows, micro_batch)
    assert [length for length, _ in slices] == lengths
    assert torch.equal(torch.cat([part for _, (part,) in slices]), rows)


def test_several_values_a_row_stay_together_and_tables_go_whole() -> None:
    pairs, table = torch.arange(18.0).reshape(9, 2), torch.arange(5.0)
    slices = cut_rows((pairs, table), (_PAIRS, _TABLE), 3, 2)
    assert [parts[0].shape[0] for _, parts in slices] == [6, 3]
    assert all(parts[1] is table for _, parts in slices)


def test_arrays_become_tensors_without_a_copy_where_they_can() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = to_tensor(array)
    array[0, 0] = 9
    assert tensor[0, 0] == 9
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    assert to_tensor(frozen[::-1]).tolist() == [2.0, 1.0, 0.0]


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="an input is a list"):
        to_tensor([1.0])  # type: ignore[arg-type]
