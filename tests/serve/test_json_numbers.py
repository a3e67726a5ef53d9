"""Long arrays are read and written in pieces; that must not be seen in what comes of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutset.serve import json_numbers
from cutset.serve.json_numbers import read_numbers, write_numbers
from cutset.serve.refusal import Refusal


@pytest.fixture
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_numbers, "_PIECE_BYTES", 8)
    monkeypatch.setattr(json_numbers, "_PIECE_NUMBERS", 3)


@pytest.mark.usefixtures("_short_pieces")
@pytest.mark.parametrize("shape", [(1,), (2,), (7,), (2, 3), (4, 1, 5), (1, 1, 1)])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("flat", [True, False])
def test_pieces_make_the_whole(shape: tuple[int, ...], indent: int | None, flat: bool) -> None:
    values = np.random.default_rng(0).standard_normal(shape)
    text = json.dumps((values.reshape(-1) if flat else values).tolist(), indent=indent).encode()
    read = read_numbers(text, shape, np.dtype(np.float64), "FP64", "x")
    assert np.array_equal(read, values.reshape(-1))
    assert json.loads(write_numbers(values.reshape(-1))) == values.reshape(-1).tolist()


@pytest.mark.usefixtures("_short_pieces")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'["1,2", 3, 4, 5, 6]', "x: '1,2' is no value of INT64"),
        (b'[1, 2, 3, "a,,,,,,,,,,,,,b", 6]', "x: has values that are no INT64"),
        (b"[1, 2, 3, 4, 5, 6.5]", "x: '6.5' is no value of INT64"),
        (b"[1, 2, 3, 4]", "x: has 4 values, its shape needs 6"),
        (b"[1, 2, 3, 4, 5, 6, 7, 8, 9]", "x: has 9 values, its shape needs 6"),
        (b"[[1, 2, 3, 4, 5], [6]]", r"neither flat nor nested as its shape \[2, 3\]"),
        (b"[[1, 2, 3, 4, 5, 6], []]", r"neither flat nor nested as its shape \[2, 3\]"),
        (b"[[[1, 2, 3, 4, 5, 6]]]", r"neither flat nor nested as its shape \[2, 3\]"),
        (b"[1, [2, 3, 4, 5], [6]]", r"neither flat nor nested as its shape \[2, 3\]"),
    ],
)
def test_a_mistake_in_any_piece_is_found(text: bytes, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        read_numbers(text, (2, 3), np.dtype(np.int64), "INT64", "x")


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1))
def test_what_was_written_is_read_again(values: list[float]) -> None:
    array = np.array(values, np.float32)
    read = read_numbers(
        write_numbers(array), (len(values),), np.dtype(np.float64), "FP32", "x"
    ).astype(np.float32)
    assert np.array_equal(read, array)
