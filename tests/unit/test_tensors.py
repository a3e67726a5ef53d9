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


def test_json_round_trip_is_strict() -> None:
    spec = TensorSpec(name="x", shape=("batch", 3), dtype="int8")
    assert msgspec.json.decode(msgspec.json.encode(spec), type=TensorSpec) == spec
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.json.decode(b'{"name":"x","shape":[],"dtype":"int8","colour":1}', type=TensorSpec)
