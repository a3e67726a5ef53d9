"""Arrays in, raw outputs and ranked labels out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cutset.data.array_files import read_arrays, top_k, write_outputs
from cutset.errors import ModelError
from cutset.tensors import TensorSpec

IMAGE = TensorSpec(name="x", shape=("batch", 3, 4), dtype="float32")
MASK = TensorSpec(name="mask", shape=("batch*2", 4), dtype="bool")
SCALE = TensorSpec(name="scale", shape=(1,), dtype="float32")


def _npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def test_npy(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    found = read_arrays(_npy(tmp_path / "x.npy", array), (IMAGE,))
    assert list(found) == ["x"]
    assert torch.equal(found["x"], torch.arange(60.0).view(5, 3, 4))


def test_npy_of_another_byte_and_memory_order(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(24, dtype=">f4").reshape(2, 3, 4))
    found = read_arrays(_npy(tmp_path / "x.npy", array), (IMAGE,))
    assert torch.equal(found["x"], torch.arange(24.0).view(2, 3, 4))


@pytest.mark.parametrize(
    ("array", "actual"),
    [
        (np.zeros((2, 3, 5), np.float32), r"float32\[2, 3, 5\]"),
        (np.zeros((2, 3), np.float32), r"float32\[2, 3\]"),
        (np.zeros((), np.float32), r"float32\[\]"),
        (np.zeros((2, 3, 4), np.float64), r"float64\[2, 3, 4\]"),
    ],
)
def test_wrong_shape_or_dtype(tmp_path: Path, array: np.ndarray, actual: str) -> None:
    path = _npy(tmp_path / "x.npy", array)
    with pytest.raises(
        ModelError, match=rf"x is expected to be float32\[batch, 3, 4\], found {actual}$"
    ):
        read_arrays(path, (IMAGE,))


def test_no_rows(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="x has no rows"):
        read_arrays(_npy(tmp_path / "x.npy", np.zeros((0, 3, 4), np.float32)), (IMAGE,))


def test_pickled_array_is_not_read(tmp_path: Path) -> None:
    path = _npy(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(ModelError, match="Object arrays cannot be loaded"):
        read_arrays(path, (IMAGE,))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00\xff\xff"])
@pytest.mark.parametrize("name", ["x.npy", "x.safetensors"])
def test_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.(npy|safetensors) is no "):
        read_arrays(path, (IMAGE,))


def test_archive_and_text_dtype(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(2), b=np.zeros(2))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(ModelError, match="holds several arrays"):
        read_arrays(tmp_path / "x.npy", (IMAGE,))
    with pytest.raises(ModelError, match="has a dtype that torch lacks"):
        read_arrays(_npy(tmp_path / "t.npy", np.array(["a"])), (IMAGE,))


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.npy does not exist"):
        read_arrays(tmp_path / "gone.npy", (IMAGE,))
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ModelError, match=r"ends in \.npy or \.safetensors, found '\.csv'"):
        read_arrays(tmp_path / "x.csv", (IMAGE,))


def test_several_inputs_come_in_the_order_of_the_specs(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file(
        {
            "mask": torch.ones(6, 4, dtype=torch.bool),
            "scale": torch.ones(1),
            "x": torch.ones(3, 3, 4),
        },
        path,
    )
    found = read_arrays(path, (IMAGE, SCALE, MASK))
    assert [(name, tuple(tensor.shape)) for name, tensor in found.items()] == [
        ("x", (3, 3, 4)),
        ("scale", (1,)),
        ("mask", (6, 4)),
    ]


def test_rows_that_do_not_agree(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"mask": torch.ones(4, 4, dtype=torch.bool), "x": torch.ones(3, 3, 4)}, path)
    with pytest.raises(ModelError, match="mask has 2 rows, the inputs before it have 3"):
        read_arrays(path, (IMAGE, MASK))


def test_names_that_do_not_agree(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"y": torch.ones(2, 3, 4), "mask": torch.ones(4, 4)}, path)
    with pytest.raises(ModelError, match="expected tensors mask, x; found mask, y"):
        read_arrays(path, (IMAGE, MASK))
    with pytest.raises(ModelError, match="expected tensors mask, x; found one without a name"):
        read_arrays(_npy(tmp_path / "x.npy", np.zeros((2, 3, 4), np.float32)), (IMAGE, MASK))


def test_lone_tensor_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"anything": torch.ones(2, 3, 4)}, path)
    assert list(read_arrays(path, (IMAGE,))) == ["x"]


def test_outputs_are_written_as_they_are(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"old")
    write_outputs(path, {"a": base, "b": base, "t": base.t(), "h": base.to(torch.bfloat16)})
    found = load_file(path)
    assert torch.equal(found["a"], base)
    assert torch.equal(found["b"], base)
    assert torch.equal(found["t"], base.t())
    assert found["h"].dtype == torch.bfloat16
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors"]


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written to"):
        write_outputs(tmp_path / "no" / "out.safetensors", {"a": torch.ones(1)})
    with pytest.raises(ModelError, match="ends in another suffix"):
        write_outputs(tmp_path / "out.npy", {"a": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


def test_top_k() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]))
    best = top_k(logits, ("cat", "dog", "cup"), k=2)
    assert [[label for label, _ in row] for row in best] == [["dog", "cup"], ["cup", "cat"]]
    assert [score for row in best for _, score in row] == pytest.approx([0.6, 0.3, 0.5, 0.25])


def test_top_k_without_labels_and_with_few_classes() -> None:
    ((first, second),) = top_k(torch.tensor([[0.0, 0.0]], dtype=torch.float16), None)
    assert (first, second) == (("0", 0.5), ("1", 0.5))


def test_top_k_of_something_else() -> None:
    with pytest.raises(ModelError, match=r"shape \[rows, classes\], found float32\[2, 3, 4\]"):
        top_k(torch.zeros(2, 3, 4), None)
    with pytest.raises(ModelError, match="found int64"):
        top_k(torch.zeros(2, 3, dtype=torch.int64), None)
    with pytest.raises(ModelError, match="gives 3 classes, but 2 have labels"):
        top_k(torch.zeros(2, 3), ("a", "b"))
