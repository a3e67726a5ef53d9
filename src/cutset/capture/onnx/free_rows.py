"""An ONNX model with a free number of rows, proven by trial where the file fixes it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper

from cutset.capture.onnx.inference import ELEMENT_TYPES
from cutset.capture.onnx.onnx_file import OnnxModule, names_of, stored_tensor
from cutset.capture.onnx.value_shapes import random_rows
from cutset.differences import magnitude_of, max_abs_difference
from cutset.dtypes import FLOATING, Arrays, dtype_name
from cutset.errors import CaptureError
from cutset.tensors import BATCH, TensorSpec

TRIED_ROWS = (2, 3, 5)
"""How many times the file's own number of rows is tried."""

_FAILED_NODE = re.compile(r"Name:'([^']+)'")
_SAID = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
_RELATIVE_TOLERANCE = 1e-4
_DTYPES = {number: dtype for dtype, number in ELEMENT_TYPES.items()}
_HOW_TO_FIX = "python -m onnxruntime.tools.make_dynamic_shape_fixed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FreedRows:
    """An ONNX model whose number of rows is free, as far as it can be.

    Attributes:
        module: the model.
        inputs: specs of its inputs.
        micro_batch_only: the only number of rows that it works for, or None for any.
        notes: what was changed, or found, in sentences.
    """

    module: OnnxModule
    inputs: tuple[TensorSpec, ...]
    micro_batch_only: int | None
    notes: tuple[str, ...]


def free_rows(module: OnnxModule, micro_batch_only: int | None = None) -> FreedRows:
    """The model with a free number of rows, or for one alone.

    Where the file fixes the number of rows, it is made free, and the answers for several numbers of
    rows must be those that the file as it is gives row by row. A Reshape that holds the file's
    number of rows as a literal is made free as well, under the same proof. A file that cannot be
    freed, since it does not run with other numbers, is taken for its own number alone.

    Args:
        module: the model; every node has a name.
        micro_batch_only: the only number of rows that is wanted, or None.

    Raises:
        CaptureError: an input has no rows or a length beside them that is not known, rows would see
            each other, or the model promises a free number of rows and does not keep it.
    """
    specs, fixed = _input_specs(module)
    free = module.with_proto(_with_symbolic_rows(module))
    if len(fixed) > 1:
        raise CaptureError(
            f"{module.name}: the file fixes different numbers of rows for its inputs "
            f"({', '.join(map(str, sorted(fixed)))}); export it with a dynamic first dimension"
        )
    num_rows = next(iter(fixed), 1)
    if micro_batch_only is not None:
        if fixed and num_rows != micro_batch_only:
            raise CaptureError(
                f"{module.name}: the file is made for {_rows(num_rows)} at a time and cannot be "
                f"captured for {micro_batch_only}; use --micro-batch-only {num_rows}"
            )
        return FreedRows(module=free, inputs=specs, micro_batch_only=micro_batch_only, notes=())
    made_for = (
        f"the file is made for {_rows(num_rows)} at a time"
        if fixed
        else "the file claims a free number of rows"
    )
    tried = ", ".join(str(factor * num_rows) for factor in TRIED_ROWS)
    fault = _fault(module, free, specs, num_rows, compared=bool(fixed))
    if fault is None:
        note = f"{made_for}; with {tried} rows it gives the same answers, so it was made free"
        notes = (note,) if fixed else ()
        return FreedRows(module=free, inputs=specs, micro_batch_only=None, notes=notes)
    freed, names = _without_literals(free, num_rows)
    if names and _fault(module, freed, specs, num_rows, compared=True) is None:
        held = f"node {', '.join(map(repr, names))} holds {num_rows} in its Reshape"
        note = (
            f"{made_for}, but {held}; that was made free: with {tried} rows the answers are those "
            f"for {num_rows} at a time"
        )
        return FreedRows(module=freed, inputs=specs, micro_batch_only=None, notes=(note,))
    if fault.has_no_rows:
        # No literal is to blame; what a result is instead is told where results are looked at.
        return FreedRows(module=free, inputs=specs, micro_batch_only=None, notes=())
    way_out = f"capture it as it is, for that number alone: --micro-batch-only {num_rows}"
    if fault.differs:
        raise CaptureError(
            f"{module.name}: {made_for}, and with another number rows would see each other: "
            f"{fault.words}. Where that is meant, {way_out}",
            operation=fault.operator or None,
        )
    if not fixed:
        raise CaptureError(
            f"{module.name}: {made_for}, but {fault.words}. Export it with a shape that takes the "
            f"rows from the input (-1 or 0 in Reshape), or {way_out}",
            operation=fault.operator or None,
        )
    note = (
        f"{made_for} and does not work for another number ({fault.words}), so it was captured for "
        f"that alone: micro-batches have exactly {_rows(num_rows)}"
    )
    return FreedRows(module=free, inputs=specs, micro_batch_only=num_rows, notes=(note,))


def _rows(number: int) -> str:
    return f"{number} row{'' if number == 1 else 's'}"


def _input_specs(module: OnnxModule) -> tuple[tuple[TensorSpec, ...], set[int]]:
    """Specs with free rows, and the numbers of rows that the file fixes."""
    specs: list[TensorSpec] = []
    fixed: set[int] = set()
    if not module.inputs:
        raise CaptureError(f"{module.name}: the model has no inputs")
    for value in module.inputs:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or tensor.elem_type not in _DTYPES:
            raise CaptureError(
                f"{module.name}: input {value.name!r} is no tensor of numbers; expected one of "
                f"{', '.join(ELEMENT_TYPES)}"
            )
        dims = list(tensor.shape.dim)
        if not dims:
            raise CaptureError(
                f"{module.name}: input {value.name!r} has no shape, or is a single number; every "
                "input needs a shape whose first dimension is the rows. Export the model again, or "
                "make the value a constant"
            )
        free = [index for index, dim in enumerate(dims) if index and not dim.HasField("dim_value")]
        if free:
            named = ", ".join(f"{index} ({dims[index].dim_param or 'unnamed'})" for index in free)
            raise CaptureError(
                f"{module.name}: input {value.name!r} is of any length in dimension {named}; only "
                "the rows, dimension 0, may be free, since every piece promises its shapes. Fix "
                f"the others: {_HOW_TO_FIX} --input_name {value.name} --input_shape ..."
            )
        if dims[0].HasField("dim_value"):
            fixed.add(dims[0].dim_value)
        shape = (BATCH, *(dim.dim_value for dim in dims[1:]))
        specs.append(TensorSpec(name=value.name, shape=shape, dtype=_DTYPES[tensor.elem_type]))
    return tuple(specs), fixed


def _with_symbolic_rows(module: OnnxModule) -> Any:
    """A copy that promises nothing of the number of rows."""
    proto = onnx.ModelProto()
    proto.CopyFrom(module.proto)
    given = {value.name for value in module.inputs}
    for value in proto.graph.input:
        if value.name in given:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    # Shapes between are worked out again; those in the file may hold its own number of rows.
    del proto.graph.value_info[:]
    for value in proto.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return proto


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fault:
    """Why a model does not work for a number of rows.

    Attributes:
        words: what happens.
        operator: of the node that fails, or ``""``.
        differs: whether it runs, and gives other answers.
        has_no_rows: whether it runs, and a result has not as many rows as it was given.
    """

    words: str
    operator: str = ""
    differs: bool = False
    has_no_rows: bool = False


def _first_lengths(module: OnnxModule, results: Arrays) -> Iterator[int]:
    """The first lengths of results that are no weights."""
    stored = {tensor.name for tensor in module.proto.graph.initializer}
    for value, result in zip(module.proto.graph.output, results, strict=True):
        if value.name not in stored and result.ndim:
            yield result.shape[0]


def _fault(
    given: OnnxModule,
    free: OnnxModule,
    specs: tuple[TensorSpec, ...],
    num_rows: int,
    *,
    compared: bool,
) -> _Fault | None:
    """Runs the freed model with several numbers of rows.

    Args:
        given: the file as it is, which works for `num_rows`.
        free: the freed model.
        specs: of its inputs.
        num_rows: what `given` works for.
        compared: whether the answers must be those of `given`, so many rows at a time.
    """
    for factor in TRIED_ROWS if compared else (1, *TRIED_ROWS[:1]):
        count = factor * num_rows
        rows = random_rows(specs, count, seed=factor)
        try:
            got = free.run(rows)
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors derive from Exception
            return _failure(free, count, str(error))
        if not compared:
            if any(made != count for made in _first_lengths(free, got)):
                return _Fault(words="", has_no_rows=True)
            continue
        wanted = [
            given.run(tuple(array[start : start + num_rows] for array in rows))
            for start in range(0, count, num_rows)
        ]
        names = names_of(free.proto.graph.output)
        for name, result, parts in zip(names, got, zip(*wanted, strict=True), strict=True):
            if not _equal(result, np.concatenate(parts) if parts[0].ndim else np.stack(parts)):
                return _Fault(
                    words=f"with {count} rows {name!r} differs from {_rows(num_rows)} at a time",
                    differs=True,
                )
    return None


def _failure(module: OnnxModule, num_rows: int, text: str) -> _Fault:
    """What ONNX Runtime says, in words: the node, and the literal that it holds."""
    found = _FAILED_NODE.search(text)
    node = next((n for n in module.proto.graph.node if found and n.name == found[1]), None)
    if node is None:
        line = (text.strip().splitlines() or [""])[0]
        said = _SAID.sub("", line)[:200]
        return _Fault(words=f"ONNX Runtime cannot run it with {_rows(num_rows)}: {said}")
    shape = _reshape_literal(module, node)
    if shape is not None and shape[0] == 1:
        words = f"node {node.name!r} (Reshape to {list(shape)}) holds {shape[0]}"
        return _Fault(words=f"{words} and fails with {_rows(num_rows)}", operator="Reshape")
    what = f"Reshape to {list(shape)}" if shape is not None else node.op_type
    words = f"node {node.name!r} ({what}) fails with {_rows(num_rows)}"
    return _Fault(words=words, operator=node.op_type)


def _reshape_literal(module: OnnxModule, node: Any) -> tuple[int, ...] | None:
    """The shape that a Reshape holds as a constant, or None."""
    if node.op_type != "Reshape" or len(node.input) < 2:
        return None
    graph = module.proto.graph
    for tensor in graph.initializer:
        if tensor.name == node.input[1]:
            array = onnx.numpy_helper.to_array(stored_tensor(tensor, module.folder))
            return tuple(int(length) for length in array)
    for maker in graph.node:
        if node.input[1] in maker.output and maker.op_type == "Constant":
            value = onnx.helper.get_attribute_value(maker.attribute[0])
            if isinstance(value, onnx.TensorProto):
                return tuple(int(length) for length in onnx.numpy_helper.to_array(value))
            if maker.attribute[0].name == "value_ints":
                return tuple(value)
    return None


def _without_literals(module: OnnxModule, num_rows: int) -> tuple[OnnxModule, tuple[str, ...]]:
    """A copy in which no Reshape holds the number of rows, and the names of those that did."""
    proto = onnx.ModelProto()
    proto.CopyFrom(module.proto)
    changed: list[str] = []
    for node in proto.graph.node:
        shape = _reshape_literal(module, node)
        keeps_zero = any(a.name == "allowzero" and a.i for a in node.attribute)
        if not shape or shape[0] != num_rows or keeps_zero:
            continue
        # 0 is the input's own length there; where nothing else is worked out, -1 says less.
        lengths = [0 if -1 in shape[1:] else -1, *shape[1:]]
        name = f"{node.name}:free_rows"
        proto.graph.initializer.append(
            onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [len(lengths)], lengths)
        )
        node.input[1] = name
        changed.append(node.name)
    return module.with_proto(proto), tuple(changed)


def _equal(actual: np.ndarray, expected: np.ndarray) -> bool:
    is_floating = dtype_name(expected.dtype) in FLOATING
    allowed = _RELATIVE_TOLERANCE * magnitude_of(expected) if is_floating else 0.0
    return max_abs_difference(actual, expected) <= allowed
