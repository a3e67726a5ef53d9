"""Arrays in and answers out: files of rows, files of raw outputs, and the best classes.

Importing this module does not import NumPy; reading and writing does.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cutset.errors import ModelError
from cutset.host import memory_bytes
from cutset.tensors import TensorSpec, dim_factor

if TYPE_CHECKING:
    import numpy as np

ARRAY_SUFFIXES = (".npy", ".npz", ".safetensors")
"""Suffixes of the files that `read_arrays` reads."""

RankedLabels: TypeAlias = tuple[tuple[str, float], ...]
"""Pairs of a label and its probability, best first."""


def read_arrays(path: Path, input_specs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """Reads a model's inputs from a file, without running any code that it may hold.

    Args:
        path: an ``.npy`` file where the model has one input; an ``.npz`` or ``.safetensors`` file
            with one array per input, under the input's name (where the model has one input and the
            file one array, any name will do).
        input_specs: the model's inputs.

    Returns:
        an array per input, in the order of `input_specs`, all with the same number of rows, in row-
        major order and this machine's byte order.

    Raises:
        ModelError: the file is missing, damaged or of another kind, or an array is missing,
            unexpected, or of another shape or dtype than its spec.
    """
    if not path.is_file():
        raise ModelError(f"input {path} does not exist")
    if path.suffix == ".npy":
        found = {"": _read_npy(path)}
    elif path.suffix == ".npz":
        found = _read_npz(path)
    elif path.suffix == ".safetensors":
        found = _read_safetensors(path)
    else:
        raise ModelError(
            f"input {path}: expected a file that ends in {', '.join(ARRAY_SUFFIXES)}, "
            f"found {path.suffix or 'no suffix'!r}"
        )
    if len(input_specs) == 1 and len(found) == 1:
        arrays = {input_specs[0].name: next(iter(found.values()))}
    else:
        _check_names(path, {spec.name for spec in input_specs}, set(found) - {""})
        arrays = {spec.name: found[spec.name] for spec in input_specs}
    num_rows: int | None = None
    for spec in input_specs:
        num_rows = _check_array(path, spec, arrays[spec.name], num_rows)
    return arrays


def _read_npy(path: Path) -> np.ndarray:
    import numpy as np

    try:
        array = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy's readers raise nearly anything on damaged files
        raise ModelError(f"input {path} is no array that can be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ModelError(f"input {path} holds several arrays; call it .npz, or use numpy.save")
    return _native(array)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file that `numpy.savez` wrote, packed or not.

    What it unpacks to is looked up before any of it is unpacked, and no array is larger than its
    entry.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(path) as file:
            num_bytes = sum(entry.file_size for entry in file.infolist())
        if num_bytes > memory_bytes():
            raise ValueError(f"it unpacks to {num_bytes} bytes, more than this machine's memory")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: _native(arrays[name]) for name in arrays.files}
    except Exception as error:  # as above, and those of zip files
        raise ModelError(f"input {path} holds no arrays that can be read: {error}") from error


def _native(array: np.ndarray) -> np.ndarray:
    """The array in this machine's byte order, row by row."""
    return array.astype(array.dtype.newbyteorder("="), order="C", copy=False)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    import ml_dtypes  # noqa: F401  # teaches NumPy the name bfloat16
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"input {path} is no safetensors file: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"input {path} has a dtype that NumPy lacks: {error}") from error


def _check_names(path: Path, expected: set[str], actual: set[str]) -> None:
    if expected != actual:
        raise ModelError(
            f"input {path}: expected tensors {', '.join(sorted(expected))}; "
            f"found {', '.join(sorted(actual)) or 'one without a name'}"
        )


def _check_array(path: Path, spec: TensorSpec, array: np.ndarray, num_rows: int | None) -> int:
    """Checks an array against its spec and gives its number of rows.

    A spec in which nothing grows with the rows says nothing about their number; it is then
    what the inputs before it had, or 1.
    """
    from cutset.dtypes import dtype_name

    actual = f"{array.dtype.name}{list(array.shape)}"
    rows = _rows_of(spec, array.shape)
    if rows is None or dtype_name(array.dtype) != spec.dtype:
        raise ModelError(
            f"input {path}: {spec.name} is expected to be {spec}, found {actual}"
            f"{_how_to_convert(spec, array)}"
        )
    if rows == 0:
        raise ModelError(f"input {path}: {spec.name} has no rows, found {actual}")
    if rows > 0 and num_rows is not None and rows != num_rows:
        raise ModelError(
            f"input {path}: {spec.name} has {rows} rows, the inputs before it have {num_rows}"
        )
    return rows if rows > 0 else num_rows or 1


def _how_to_convert(spec: TensorSpec, array: np.ndarray) -> str:
    """What a person would type to make an array the spec's, or ``""`` where that is not plain."""
    from cutset.dtypes import FLOATING, dtype_name

    typed = "array"
    if _rows_of(spec, array.shape) is None:
        ways = {"array[None]": (1, *array.shape)}
        if array.ndim == 4:
            rows, height, width, channels = array.shape
            ways["array.transpose(0, 3, 1, 2)"] = (rows, channels, height, width)
        if array.ndim == 3:
            height, width, channels = array.shape
            ways["array.transpose(2, 0, 1)[None]"] = (1, channels, height, width)
        fitting = [way for way, shape in ways.items() if _rows_of(spec, shape) is not None]
        if not fitting:
            return ""
        typed = fitting[0]
    if array.dtype.name == spec.dtype:
        return f"; {typed} makes it that"
    is_whole = array.dtype.kind in "iu"
    if is_whole and spec.dtype in FLOATING:
        return (
            "; pixels as whole numbers must be scaled and normalised as the model was trained, "
            f"then {typed}.astype({spec.dtype!r}) makes it that"
        )
    if is_whole or (array.dtype.kind != "c" and dtype_name(array.dtype) in FLOATING):
        return f"; {typed}.astype({spec.dtype!r}) makes it that"
    return ""


def _rows_of(spec: TensorSpec, shape: tuple[int, ...]) -> int | None:
    """The number of rows that makes `shape` the spec's, -1 where any does, None where none."""
    if len(shape) != len(spec.shape):
        return None
    rows = -1
    for length, dim in zip(shape, spec.shape, strict=True):
        factor = dim_factor(dim)
        if factor is not None and rows < 0:
            rows = length // factor
    return rows if spec.concrete_shape(max(rows, 0)) == shape else None


def write_outputs(path: Path, outputs: Mapping[str, np.ndarray]) -> None:
    """Writes raw outputs as a ``.safetensors`` file, whole or not at all.

    Args:
        path: an existing file is replaced.
        outputs: arrays by the names that they get in the file.

    Raises:
        ModelError: the name has another suffix, the format lacks a dtype, or the file cannot be
            written.
    """
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    if path.suffix != ".safetensors":
        raise ModelError(f"raw outputs are written as .safetensors; {path} ends in another suffix")
    # What is written is a stretch of memory, whatever the strides say.
    own = {name: np.asarray(array, order="C") for name, array in outputs.items()}
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as folder:
            half = Path(folder) / path.name
            save_file(own, half)
            os.replace(half, path)  # noqa: PTH105  # atomic, also over an existing file
    except (OSError, SafetensorError) as error:
        raise ModelError(f"outputs cannot be written to {path}: {error}") from error


def are_scores(array: np.ndarray) -> bool:
    """Whether an answer can be scores: floating-point numbers of shape [rows, classes]."""
    return array.ndim == 2 and (array.dtype.kind == "f" or array.dtype.name == "bfloat16")


def top_k(logits: np.ndarray, labels: Sequence[str] | None, k: int = 5) -> tuple[RankedLabels, ...]:
    """The most probable classes of every row.

    The softmax is computed in float64, so that the rounding of small dtypes does not merge
    neighbouring scores; equal scores come in the order of their classes.

    Args:
        logits: [rows, classes], any floating-point dtype.
        labels: names of the classes, or None: then a class goes by its index.
        k: how many a row, 1 or more; all of them where there are fewer classes.

    Raises:
        ModelError: the array is no such answer, or the labels are not as many as the classes.
    """
    import numpy as np

    if not are_scores(logits):
        raise ModelError(
            "labels need floating-point scores of shape [rows, classes], found "
            f"{logits.dtype.name}{list(logits.shape)}"
        )
    num_classes = logits.shape[1]
    if labels is not None and len(labels) != num_classes:
        raise ModelError(f"the model gives {num_classes} classes, but {len(labels)} have labels")
    with np.errstate(invalid="ignore"):  # scores of a row with an infinity are not numbers
        wide = logits.astype(np.float64)
        powers = np.exp(wide - wide.max(axis=1, keepdims=True, initial=-np.inf))
        scores = powers / powers.sum(axis=1, keepdims=True)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(scores, best, axis=1)
    return tuple(
        tuple(
            (str(index) if labels is None else labels[index], value)
            for value, index in zip(row_values, row_indices, strict=True)
        )
        for row_values, row_indices in zip(values.tolist(), best.tolist(), strict=True)
    )
