"""An ONNX model with a free number of rows, proven by trial where the file fixes it."""

from __future__ import annotations

from typing import Any

import onnx
import torch

from cutset.errors import CaptureError
from cutset.graph.onnx_model import OnnxModule
from cutset.graph.onnx_session import ELEMENT_TYPES
from cutset.graph.onnx_shapes import random_rows
from cutset.tensors import BATCH, TensorSpec

TRIED_ROWS = (2, 3, 5)
"""How many times the file's own number of rows is tried."""

_RELATIVE_TOLERANCE = 1e-4
_DTYPES = {number: dtype for dtype, number in ELEMENT_TYPES.items()}
_HOW_TO_FIX = "python -m onnxruntime.tools.make_dynamic_shape_fixed"


def free_rows(module: OnnxModule) -> tuple[OnnxModule, tuple[TensorSpec, ...], tuple[str, ...]]:
    """The model with a free number of rows, specs of its inputs, and notes.

    Where the file fixes the number of rows, it is made free, and the answers for several numbers of
    rows must be those that the file as it is gives row by row.

    Raises:
        CaptureError: an input has no rows or a length beside them that is not known, or the model
            works for the file's number of rows only.
    """
    specs, fixed = _input_specs(module)
    free = OnnxModule(_with_symbolic_rows(module), module.folder, module.name)
    if not fixed:
        return free, specs, ()
    if len(fixed) > 1:
        raise CaptureError(
            f"{module.name}: the file fixes different numbers of rows for its inputs "
            f"({', '.join(map(str, sorted(fixed)))}); export it with a dynamic first dimension"
        )
    (num_rows,) = fixed
    _try_rows(module, free, specs, num_rows)
    tried = ", ".join(str(factor * num_rows) for factor in TRIED_ROWS)
    note = (
        f"the file fixes {num_rows} row{'s' if num_rows > 1 else ''} at a time; with {tried} rows "
        "it gives the same answers, so the number of rows was made free"
    )
    return free, specs, (note,)


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


def _try_rows(
    fixed: OnnxModule, free: OnnxModule, specs: tuple[TensorSpec, ...], num_rows: int
) -> None:
    """Compares the freed model with the file as it is.

    Raises:
        CaptureError: it does not run with another number of rows, or its answers differ.
    """
    for factor in TRIED_ROWS:
        rows = random_rows(specs, factor * num_rows, seed=factor)
        wanted = [
            fixed(*(tensor[start : start + num_rows] for tensor in rows))
            for start in range(0, factor * num_rows, num_rows)
        ]
        try:
            got = free(*rows)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise _only_for(free, num_rows, reason[:400]) from error
        for name, result, parts in zip(
            (value.name for value in free.proto.graph.output),
            got,
            zip(*wanted, strict=True),
            strict=True,
        ):
            if not _equal(result, torch.cat(parts) if parts[0].dim() else torch.stack(parts)):
                raise _only_for(
                    free, num_rows, f"with {factor * num_rows} rows, {name!r} differs from theirs"
                )


def _equal(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    if actual.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    allowed = _RELATIVE_TOLERANCE * float(expected.abs().max()) if expected.numel() else 0.0
    return bool(torch.isclose(actual, expected, rtol=0.0, atol=allowed, equal_nan=True).all())


def _only_for(module: OnnxModule, num_rows: int, reason: str) -> CaptureError:
    return CaptureError(
        f"{module.name}: the file is made for {num_rows} row{'s' if num_rows > 1 else ''} at a "
        f"time and does not work for another number ({reason}). Export it with a dynamic first "
        "dimension: dynamic_shapes={INPUT: {0: 'batch'}} or dynamic_axes={INPUT: {0: 'batch'}}"
    )
