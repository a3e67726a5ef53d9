from __future__ import annotations

import numpy as np
import pytest

from cutset.runtime.rows import cut_rows
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
    rows = np.arange(num_rows * 2.0).reshape(num_rows, 2)
    slices = cut_rows((rows,), (_IMAGES,), num_rows, micro_batch)
    assert [length for length, _ in slices] == lengths
    assert np.array_equal(np.concatenate([part for _, (part,) in slices]), rows)
    assert all(np.shares_memory(part, rows) for _, (part,) in slices)  # nothing was copied


def test_several_values_a_row_stay_together_and_tables_go_whole() -> None:
    pairs, table = np.arange(18.0).reshape(9, 2), np.arange(5.0)
    slices = cut_rows((pairs, table), (_PAIRS, _TABLE), 3, 2)
    assert [parts[0].shape[0] for _, parts in slices] == [6, 3]
    assert all(parts[1] is table for _, parts in slices)
