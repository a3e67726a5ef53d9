from __future__ import annotations

import msgspec
import pytest
import torch

from cutset.tensors import DTYPE_BYTES, TensorSpec, dim_factor


def test_rows_are_put_in_for_the_batch() -> None:
    spec = TensorSpec(name="x", shape=("batch*4", 3, "batch"), dtype="float16")
    assert spec.concrete_shape(5) == (20, 3, 5)
    assert spec.num_bytes(5) == 20 * 3 * 5 * 2
    assert spec.bytes_per_sample == 4 * 3 * 2
    assert str(spec) == "float16[batch*4, 3, batch]"


@pytest.mark.parametrize(("dim", "factor"), [(7, None), ("batch", 1), ("batch*12", 12)])
def test_dimensions(dim: int | str, factor: int | None) -> None:
    assert dim_factor(dim) == factor


@pytest.mark.parametrize("dim", ["rows", "batch*", "batch*0", "batch*-1", "batch+1", "2*batch", -1])
def test_other_dimensions_are_refused(dim: int | str) -> None:
    with pytest.raises(ValueError, match=r"dimension|negative"):
        TensorSpec(name="x", shape=(dim,), dtype="float32")


def test_every_dtype_is_torchs_and_its_size_right() -> None:
    for name, size in DTYPE_BYTES.items():
        assert getattr(torch, name).itemsize == size
    with pytest.raises(ValueError, match="float31"):
        TensorSpec(name="x", shape=(1,), dtype="float31")


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1,) * 65, "has 65 dimensions, at most 64"),
        (("batch", 2**61), "9223372036854775808 bytes a row, at most 9223372036854775807"),
        ((2**63,), "bytes a row"),
        ((0, 2**63), "bytes a row"),
        ((f"batch*{2**62}",), "bytes a row"),
    ],
)
def test_what_no_link_could_carry_is_refused(shape: tuple[int | str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TensorSpec(name="x", shape=shape, dtype="float32")


def test_the_greatest_that_a_link_carries_is_taken() -> None:
    TensorSpec(name="x", shape=(1,) * 64, dtype="float32")
    TensorSpec(name="x", shape=("batch", 2**63 - 1), dtype="bool")


def test_json_round_trip_is_strict() -> None:
    spec = TensorSpec(name="x", shape=("batch", 3), dtype="int8")
    assert msgspec.json.decode(msgspec.json.encode(spec), type=TensorSpec) == spec
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.json.decode(b'{"name":"x","shape":[],"dtype":"int8","colour":1}', type=TensorSpec)
