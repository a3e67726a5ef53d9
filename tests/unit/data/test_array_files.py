"""Arrays in, raw outputs and ranked labels out."""

from __future__ import annotations

import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file

from cutset.data.array_files import read_arrays, top_k, write_outputs
from cutset.errors import ModelError
from cutset.tensors import TensorSpec

IMAGE = TensorSpec(name="x", shape=("batch", 3, 4), dtype="float32")
MASK = TensorSpec(name="mask", shape=("batch*2", 4), dtype="bool")
SCALE = TensorSpec(name="scale", shape=(1,), dtype="float32")


def _npy(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.zeros((2, 3, 4)), "; array.astype('float32') makes it that"),
        (np.zeros((3, 4), np.float32), "; array[None] makes it that"),
        (np.zeros((3, 4)), "; array[None].astype('float32') makes it that"),
        (
            np.zeros((2, 3, 4), np.uint8),
            (
                "; pixels as whole numbers must be scaled and normalised as the model was trained, "
                "then array.astype('float32') makes it that"
            ),
        ),
        (np.zeros((2, 3, 4), complex), ""),
        (np.zeros((2, 4, 3), np.float32), ""),
    ],
)
def test_how_an_array_of_another_shape_or_dtype_is_made_one(
    tmp_path: Path, array: np.ndarray, advice: str
) -> None:
    with pytest.raises(ModelError) as raised:
        read_arrays(_npy(tmp_path / "x.npy", array), [IMAGE])
    assert str(raised.value).partition("]")[2].partition("]")[2] == advice


def test_images_with_their_channels_last(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 3, 8, 9))
    for shape, way in (((2, 8, 9, 3), "(0, 3, 1, 2)"), ((8, 9, 3), "(2, 0, 1)[None]")):
        path = _npy(tmp_path / "x.npy", np.zeros(shape, np.float32))
        with pytest.raises(ModelError, match=re.escape(f"; array.transpose{way} makes it that")):
            read_arrays(path, [spec])


def test_npy(tmp_path: Path) -> None:
    array = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    found = read_arrays(_npy(tmp_path / "x.npy", array), (IMAGE,))
    assert list(found) == ["x"]
    assert np.array_equal(found["x"], array)
    assert found["x"].dtype == np.float32


def test_npy_of_another_byte_and_memory_order(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(24, dtype=">f4").reshape(2, 3, 4))
    found = read_arrays(_npy(tmp_path / "x.npy", array), (IMAGE,))
    assert np.array_equal(found["x"], np.arange(24).reshape(2, 3, 4))
    assert found["x"].dtype.isnative
    assert found["x"].flags.c_contiguous


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
        ModelError, match=rf"x is expected to be float32\[batch, 3, 4\], found {actual}(;|$)"
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
@pytest.mark.parametrize("name", ["x.npy", "x.npz", "x.safetensors"])
def test_damaged_file(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"x\.(npy is|npz holds|safetensors is) no "):
        read_arrays(path, (IMAGE,))


def test_archive_and_text_dtype(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.zeros(2), b=np.zeros(2))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(ModelError, match="holds several arrays"):
        read_arrays(tmp_path / "x.npy", (IMAGE,))
    with pytest.raises(ModelError, match=r"x is expected to be .*, found str32\[1\]$"):
        read_arrays(_npy(tmp_path / "t.npy", np.array(["a"])), (IMAGE,))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_archive_come_by_their_names(tmp_path: Path, save) -> None:
    x = np.arange(24, dtype=">f4").reshape(2, 3, 4)
    save(tmp_path / "one.npz", x)
    assert np.array_equal(read_arrays(tmp_path / "one.npz", (IMAGE,))["x"], x)
    save(tmp_path / "two.npz", mask=np.ones((4, 4), bool), x=x)
    found = read_arrays(tmp_path / "two.npz", (IMAGE, MASK))
    assert list(found) == ["x", "mask"]
    assert found["x"].dtype == np.float32
    save(tmp_path / "odd.npz", mask=np.ones((4, 4), bool), other=x)
    with pytest.raises(ModelError, match="expected tensors mask, x; found mask, other"):
        read_arrays(tmp_path / "odd.npz", (IMAGE, MASK))
    save(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ModelError, match="Object arrays cannot be loaded"):
        read_arrays(tmp_path / "objects.npz", (IMAGE,))


def test_an_archive_that_unpacks_to_more_than_there_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((100_000, 3, 4), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    monkeypatch.setattr("cutset.data.array_files.memory_bytes", lambda: 1_000_000)
    with pytest.raises(ModelError, match="it unpacks to 4800128 bytes, more than this machine's"):
        read_arrays(tmp_path / "bomb.npz", (IMAGE,))


def test_missing_file_and_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.npy does not exist"):
        read_arrays(tmp_path / "gone.npy", (IMAGE,))
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(ModelError, match=r"ends in \.npy, \.npz, \.safetensors, found '\.csv'"):
        read_arrays(tmp_path / "x.csv", (IMAGE,))


def test_several_inputs_come_in_the_order_of_the_specs(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file(
        {
            "mask": np.ones((6, 4), np.bool_),
            "scale": np.ones(1, np.float32),
            "x": np.ones((3, 3, 4), np.float32),
        },
        path,
    )
    found = read_arrays(path, (IMAGE, SCALE, MASK))
    assert [(name, array.shape) for name, array in found.items()] == [
        ("x", (3, 3, 4)),
        ("scale", (1,)),
        ("mask", (6, 4)),
    ]


def test_rows_that_do_not_agree(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"mask": np.ones((4, 4), np.bool_), "x": np.ones((3, 3, 4), np.float32)}, path)
    with pytest.raises(ModelError, match="mask has 2 rows, the inputs before it have 3"):
        read_arrays(path, (IMAGE, MASK))


def test_names_that_do_not_agree(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"y": np.ones((2, 3, 4)), "mask": np.ones((4, 4))}, path)
    with pytest.raises(ModelError, match="expected tensors mask, x; found mask, y"):
        read_arrays(path, (IMAGE, MASK))
    with pytest.raises(ModelError, match="expected tensors mask, x; found one without a name"):
        read_arrays(_npy(tmp_path / "x.npy", np.zeros((2, 3, 4), np.float32)), (IMAGE, MASK))


def test_lone_tensor_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"anything": np.ones((2, 3, 4), np.float32)}, path)
    assert list(read_arrays(path, (IMAGE,))) == ["x"]


def test_outputs_are_written_as_they_are(tmp_path: Path) -> None:
    base = np.arange(12.0).reshape(3, 4)
    half = base.astype(ml_dtypes.bfloat16)
    path = tmp_path / "out.safetensors"
    path.write_bytes(b"old")
    given = {
        "a": base,
        "b": base,
        "turned": base.T,
        "backwards": base[::-1],
        "gaps": base[:, ::2],
        "same": np.broadcast_to(base[:1], (3, 4)),
        "foreign": base.astype(">f4"),
        "one": np.array(2.5, np.float32),
        "none": np.zeros((0, 4), np.float32),
        "half": half,
        "c": (base * 1j).astype(np.complex64),
    }
    write_outputs(path, given)
    found = load_file(path)
    assert set(found) == set(given)
    for name, array in given.items():
        assert found[name].shape == array.shape
        assert np.array_equal(found[name], array)
    assert found["half"].dtype == ml_dtypes.bfloat16
    assert found["foreign"].dtype == np.float32
    assert [file.name for file in tmp_path.iterdir()] == ["out.safetensors"]


def test_outputs_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written to"):
        write_outputs(tmp_path / "no" / "out.safetensors", {"a": np.ones(1)})
    with pytest.raises(ModelError, match="ends in another suffix"):
        write_outputs(tmp_path / "out.npy", {"a": np.ones(1)})
    with pytest.raises(ModelError, match=r"cannot be written to .*complex128"):
        write_outputs(tmp_path / "out.safetensors", {"a": np.ones(1, np.complex128)})
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_read_and_no_stand_in_for_it(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", shape=("batch", 2), dtype="bfloat16")
    array = np.array([[1.0, -2.5]], ml_dtypes.bfloat16)
    path = tmp_path / "x.safetensors"
    save_file({"x": array}, path)
    found = read_arrays(path, (spec,))["x"]
    assert found.dtype == ml_dtypes.bfloat16
    assert found.tolist() == [[1.0, -2.5]]
    for other in (array.view(np.int16), array.view("V2")):
        with pytest.raises(ModelError, match=r"expected to be bfloat16\[batch, 2\], found "):
            read_arrays(_npy(tmp_path / "x.npy", other), (spec,))


def test_a_dtype_that_numpy_lacks(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": np.ones((2, 3, 4), ml_dtypes.float8_e4m3fn)}, path)
    with pytest.raises(ModelError, match=r"x\.safetensors has a dtype that NumPy lacks|float8"):
        read_arrays(path, (IMAGE,))


def test_top_k() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3], [0.25, 0.25, 0.5]]))
    best = top_k(logits, ("cat", "dog", "cup"), k=2)
    assert [[label for label, _ in row] for row in best] == [["dog", "cup"], ["cup", "cat"]]
    assert [score for row in best for _, score in row] == pytest.approx([0.6, 0.3, 0.5, 0.25])


def test_top_k_without_labels_and_with_few_classes() -> None:
    ((first, second),) = top_k(np.zeros((1, 2), np.float16), None)
    assert (first, second) == (("0", 0.5), ("1", 0.5))


def test_top_k_of_something_else() -> None:
    with pytest.raises(ModelError, match=r"shape \[rows, classes\], found float32\[2, 3, 4\]"):
        top_k(np.zeros((2, 3, 4), np.float32), None)
    with pytest.raises(ModelError, match="found int64"):
        top_k(np.zeros((2, 3), np.int64), None)
    with pytest.raises(ModelError, match="gives 3 classes, but 2 have labels"):
        top_k(np.zeros((2, 3)), ("a", "b"))


def test_top_k_of_no_rows_and_no_classes() -> None:
    assert top_k(np.zeros((0, 3)), None) == ()
    assert top_k(np.zeros((2, 0)), None) == ((), ())


def test_top_k_of_numbers_that_are_none() -> None:
    inf, nan = np.inf, np.nan
    rows = top_k(np.array([[0.0, inf, 1.0], [0.0, nan, 1.0], [-inf, -inf, 1.0]]), None)
    assert [[label for label, _ in row] for row in rows] == [["0", "1", "2"]] * 2 + [
        ["2", "0", "1"]
    ]
    assert all(np.isnan(score) for row in rows[:2] for _, score in row)
    assert [score for _, score in rows[2]] == [1.0, 0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(
    scores=arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 40)),
        elements=st.floats(-90, 90, width=16),
    ),
    dtype=st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32, np.float64]),
    k=st.integers(1, 7),
)
def test_top_k_is_that_of_torch(scores: np.ndarray, dtype: type, k: int) -> None:
    scores = scores.astype(dtype)
    wide = torch.from_numpy(scores.astype(np.float64))
    values, indices = torch.sort(torch.softmax(wide, dim=1), dim=1, descending=True, stable=True)
    found = top_k(scores, None, k)
    assert [[int(label) for label, _ in row] for row in found] == indices[:, :k].tolist()
    given = np.array([[score for _, score in row] for row in found])
    np.testing.assert_allclose(given, values[:, :k].numpy(), rtol=1e-14, atol=0)
