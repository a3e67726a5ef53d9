"""Works out the shapes of all values of an ONNX model for any number of rows, by running it.

A shape inferred on paper stops at operators that it does not know and at lengths that are computed.
A run knows them all. The model is run with several numbers of rows, on other numbers each time:
a length that is always the same is fixed, one that grows in step with the rows belongs to them, and
any other (it depends on the values) no contract can describe.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from cutset.capture.captured import shape_with_rows
from cutset.capture.onnx.inference import TENSOR_TYPES, run_session
from cutset.capture.onnx.onnx_file import OnnxModule
from cutset.capture.onnx.walk import STANDARD_DOMAINS
from cutset.dtypes import FLOATING, NUMPY_DTYPES, Arrays
from cutset.errors import CaptureError
from cutset.tensors import BATCH, Dim, TensorSpec

ROW_COUNTS = (1, 3)
_SUFFIX = ":shape"


def random_rows(specs: Sequence[TensorSpec], num_rows: int, seed: int) -> Arrays:
    """Random inputs, the same for the same seed.

    Standard normal where floating; 0 and 1 where whole, since they may be indices of anything; all
    values of bytes, which are images.
    """
    generator = np.random.default_rng(seed)
    arrays = []
    for spec in specs:
        shape, dtype = spec.concrete_shape(num_rows), NUMPY_DTYPES[spec.dtype]
        if spec.dtype in FLOATING:
            arrays.append(generator.standard_normal(shape).astype(dtype))
        else:
            high = 256 if spec.dtype == "uint8" else 2
            arrays.append(generator.integers(0, high, shape).astype(dtype))
    return tuple(arrays)


def observe_specs(
    module: OnnxModule, inputs: Sequence[TensorSpec], only: int | None = None
) -> dict[str, TensorSpec]:
    """The spec of every value that the graph's nodes make, where one can be given.

    Args:
        module: the model, with a free number of rows.
        inputs: specs of its inputs.
        only: the only number of rows that the model is run with, or None.

    Raises:
        CaptureError: ONNX Runtime cannot run the model with one of the numbers of rows.
    """
    dtypes = _dtypes(module)
    probe = onnx.ModelProto()
    probe.CopyFrom(module.proto)
    del probe.graph.output[:]
    names = tuple(dtypes)
    for name in names:
        probe.graph.node.add(op_type="Shape", input=[name], output=[name + _SUFFIX])
        probe.graph.output.append(
            onnx.helper.make_tensor_value_info(name + _SUFFIX, onnx.TensorProto.INT64, [None])
        )
    if not any(opset.domain in STANDARD_DOMAINS for opset in probe.opset_import):
        probe.opset_import.add(domain="", version=onnx.defs.onnx_opset_version())
    session = module.session_of(probe, is_optimised=False)
    seen: list[list[tuple[int, ...]]] = []
    for num_rows in ROW_COUNTS if only is None else (only,):
        rows = random_rows(inputs, num_rows, seed=num_rows)
        try:
            feed = {spec.name: array for spec, array in zip(inputs, rows, strict=True)}
            shapes = run_session(session, feed)
        except Exception as error:
            raise _not_run(module, num_rows, error) from error
        seen.append([tuple(int(length) for length in shape) for shape in shapes])
    specs = {}
    for index, name in enumerate(names):
        lengths = [shapes[index] for shapes in seen]
        shape = _shape(lengths) if only is None else shape_with_rows(lengths[0], only)
        if shape is not None:
            specs[name] = TensorSpec(name=name, shape=shape, dtype=dtypes[name])
    return specs


def _dtypes(module: OnnxModule) -> dict[str, str]:
    """The dtype of every value that is a tensor Cutset can send, as ONNX Runtime infers it.

    Raises:
        CaptureError: ONNX Runtime refuses the model.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(module.proto)
    del probe.graph.output[:]
    names = [name for node in probe.graph.node for name in node.output if name]
    for name in names:
        probe.graph.output.add(name=name)
    try:
        session = module.session_of(probe, is_optimised=False)
    except Exception as error:
        raise CaptureError(
            f"{module.name}: ONNX Runtime cannot load it: {_first_line(error)}"
        ) from error
    return {
        value.name: TENSOR_TYPES[value.type]
        for value in session.get_outputs()
        if value.type in TENSOR_TYPES
    }


def _shape(seen: Sequence[tuple[int, ...]]) -> tuple[Dim, ...] | None:
    """One shape for any number of rows, from those at `ROW_COUNTS`; None where there is none."""
    if len({len(shape) for shape in seen}) != 1:
        return None
    dims: list[Dim] = []
    for lengths in zip(*seen, strict=True):
        if len(set(lengths)) == 1:
            dims.append(lengths[0])
        elif lengths[0] and all(
            length == rows * lengths[0] for rows, length in zip(ROW_COUNTS, lengths, strict=True)
        ):
            dims.append(BATCH if lengths[0] == 1 else f"{BATCH}*{lengths[0]}")
        else:
            return None
    return tuple(dims)


def _not_run(module: OnnxModule, num_rows: int, error: Exception) -> CaptureError:
    rows = "row" if num_rows == 1 else "rows"
    return CaptureError(
        f"{module.name}: ONNX Runtime cannot run it with {num_rows} {rows} of random numbers: "
        f"{_first_line(error)}"
    )


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)[:400]


def shapes_with_one_row(
    module: OnnxModule, specs: Mapping[str, TensorSpec]
) -> dict[str, tuple[int, ...]]:
    """Concrete shapes of all known values and stored tensors, with one row."""
    shapes = {name: spec.concrete_shape(1) for name, spec in specs.items()}
    graph: Any = module.proto.graph
    return shapes | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
