"""The reference tensors of a bundle: what the whole model gives, at every boundary.

Kernels, and the order in which a tensor lies in memory, may change with the number of rows. So a
bundle holds the true tensors for one row, for two, and for as many as its micro-batches have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from cutset.capture.captured import with_rows
from cutset.dtypes import dtype_name, strided_copy
from cutset.tensors import TensorSpec

REFERENCE_NAME = "reference.safetensors"
EXACT_OUTPUT = "exact output/"
"""Before the name of an output of the model without codecs, where stages have some."""
MAX_MORE_BYTES = 256 << 20
"""Most bytes of tensors with as many rows as a micro-batch has; fewer rows are taken instead."""

_ROWS = re.compile(r"rows-([1-9][0-9]{0,8})/(.+)", re.DOTALL)
_STRIDES = "strides"

Reference: TypeAlias = "dict[int, dict[str, np.ndarray]]"
"""Tensors by name, by number of rows; the numbers in the order in which they were written."""


def reference_rows(specs: Iterable[TensorSpec], micro_batch: int, only: int | None) -> list[int]:
    """With how many rows the whole model is run; who runs it only once takes the first.

    Args:
        specs: of all tensors that the reference holds.
        micro_batch: rows of a micro-batch in the plan.
        only: the only number of rows of the bundle, or None.
    """
    if only is not None:
        return [only]
    bytes_per_row = sum(spec.bytes_per_sample for spec in specs)
    most = max(2, MAX_MORE_BYTES // max(1, bytes_per_row))
    return list(dict.fromkeys((2, 1, min(micro_batch, most))))


def as_sent(array: np.ndarray) -> np.ndarray:
    """The array as a link delivers it: without gaps, the order of its dimensions kept."""
    return array if _is_dense(array) else strided_copy(array, np.empty_like(array).strides)


def _is_dense(array: np.ndarray) -> bool:
    """Whether its elements fill one stretch of memory, each place once, in whatever order."""
    expected = array.itemsize
    for stride, length in sorted(zip(array.strides, array.shape, strict=True)):
        if length != 1:
            if stride != expected and array.size:
                return False
            expected *= length
    return True


def encode_reference(tensors: Reference) -> bytes:
    """The reference as a safetensors file; the first number of rows under the tensors' own names.

    The format knows row-major order only. Where a tensor lies otherwise, the file's metadata have
    its strides.
    """
    stored: dict[str, np.ndarray] = {}
    strides: dict[str, tuple[int, ...]] = {}
    for place, (num_rows, group) in enumerate(tensors.items()):
        for name, array in group.items():
            key = f"rows-{num_rows}/{name}" if place else name
            sent = as_sent(array)
            stored[key] = sent.copy(order="C")
            if sent.size and sent.strides != stored[key].strides:
                strides[key] = tuple(stride // sent.itemsize for stride in sent.strides)
    metadata = {_STRIDES: json.dumps(strides)} if strides else None
    content: bytes = to_safetensors(stored, metadata=metadata)
    return content


def read_reference(
    file: Path, specs: Sequence[TensorSpec], inputs: Sequence[TensorSpec]
) -> tuple[Reference, tuple[str, ...]]:
    """The reference, and what is wrong with its names, shapes, dtypes and strides.

    Args:
        file: of the format that `encode_reference` writes.
        specs: of all tensors that it must hold for each number of rows.
        inputs: those that are the model's inputs; for all but the first number of rows they are
            the first one's rows, repeated or cut off, and not stored.
    """
    try:
        with safe_open(str(file), framework="np") as opened:
            metadata = opened.metadata() or {}
            keys = list(opened.keys())
            found = {key: opened.get_tensor(key) for key in keys}
        stored = {key: strided_copy(array, array.strides) for key, array in found.items()}
    except (SafetensorError, OSError, TypeError) as error:  # a dtype that NumPy lacks
        return {}, (f"{file.name} is not in the safetensors format: {error}",)
    by_name = {spec.name: spec for spec in specs}
    groups, excess = _grouped(stored, by_name, _strides(metadata))
    first = groups.get(0, {})
    faults = [f"the reference lacks {name!r}" for name in by_name if name not in first]
    faults += [f"the reference has {name!r} in excess" for name in excess]
    leader = inputs[0].name
    if not faults and not first[leader].ndim:
        faults = [f"the reference's {leader!r} has no rows"]
    if faults:
        return {}, tuple(faults)
    groups = {first[leader].shape[0]: first} | {rows: g for rows, g in groups.items() if rows}
    for num_rows, group in groups.items():
        # A large number costs the file little, and what stands on it much.
        is_too_large = sum(spec.num_bytes(num_rows) for spec in inputs) > 4 * MAX_MORE_BYTES
        faults += [
            f"the reference's {name!r} is {describe(array)}, expected {by_name[name]} with "
            f"{num_rows} rows"
            for name, array in group.items()
            if num_rows < 1 or is_too_large or not fits(array, by_name[name], num_rows)
        ]
        faults += [
            f"the reference lacks {name!r} with {num_rows} rows"
            for name in by_name.keys() - group.keys() - {spec.name for spec in inputs}
        ]
    if faults:
        return {}, tuple(faults)
    for num_rows, group in groups.items():
        for spec in inputs:
            group.setdefault(spec.name, with_rows(first[spec.name], spec, num_rows))
    return groups, ()


def _grouped(
    stored: Mapping[str, np.ndarray],
    by_name: Mapping[str, TensorSpec],
    strides: Mapping[str, Sequence[int]],
) -> tuple[dict[int, dict[str, np.ndarray]], list[str]]:
    """Tensors by number of rows, 0 for those under their own names; and keys that are neither."""
    groups: dict[int, dict[str, np.ndarray]] = {0: {}}
    excess = []
    for key, array in stored.items():
        laid_out = _laid_out(array, strides.get(key))
        match = _ROWS.fullmatch(key)
        if key in by_name:
            groups[0][key] = laid_out
        elif match is not None and match[2] in by_name:
            groups.setdefault(int(match[1]), {})[match[2]] = laid_out
        else:
            excess.append(key)
    return groups, excess


def _strides(metadata: Mapping[str, str]) -> dict[str, list[int]]:
    """Strides by key; nothing that is not a list of whole numbers."""
    try:
        found: Any = json.loads(metadata.get(_STRIDES, "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        key: strides
        for key, strides in found.items()
        if isinstance(strides, list) and all(type(stride) is int for stride in strides)
    }


def _laid_out(array: np.ndarray, strides: Sequence[int] | None) -> np.ndarray:
    """The array in memory as `strides` say, if they fill one stretch of it, each place once.

    Args:
        array: row by row.
        strides: in elements.
    """
    if strides is None or len(strides) != array.ndim or array.size == 0:
        return array
    expected = 1
    for stride, length in sorted(zip(strides, array.shape, strict=True)):
        if not 0 <= stride <= array.size or (length != 1 and stride != expected):
            return array
        expected *= length
    return strided_copy(array, [stride * array.itemsize for stride in strides])


def describe(array: np.ndarray) -> str:
    """Dtype and shape of an array, in the manner of `TensorSpec`."""
    return f"{dtype_name(array.dtype) or array.dtype}[{', '.join(map(str, array.shape))}]"


def fits(array: np.ndarray, spec: TensorSpec, num_rows: int) -> bool:
    """Whether an array is what a spec promises for `num_rows`."""
    return array.shape == spec.concrete_shape(num_rows) and dtype_name(array.dtype) == spec.dtype
