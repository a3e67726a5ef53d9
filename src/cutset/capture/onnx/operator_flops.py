"""Counts multiply-adds of ONNX operations from shapes, by the definitions of the operators.

Source: https://onnx.ai/onnx/operators/ and ONNX Runtime's ContribOperators.md. As for torch, only
what multiplies matrices counts: convolutions, matrix products, recurrent layers, attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, TypeAlias

import onnx

Shape: TypeAlias = tuple[int, ...]

# Where the matrices stand among the inputs of each operator.
_CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "FusedConv": 1, "NhwcConv": 1}
_PRODUCTS = {
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearMatMul": (0, 3),
    "FusedMatMul": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
}
_GEMMS = {"Gemm": (0, 1), "FusedGemm": (0, 1), "QGemm": (0, 3)}
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def count_onnx_flops(node: Any, shapes: Mapping[str, Shape]) -> int:
    """Multiply-adds of one node; 0 for operators that multiply no matrices.

    Args:
        node: an ``onnx.NodeProto``.
        shapes: of the values that are known, with one row.
    """
    kind = node.op_type
    inputs = [shapes.get(name) for name in node.input]
    result = shapes.get(node.output[0])
    if kind in _CONVOLUTIONS:
        kernel = _at(inputs, _CONVOLUTIONS[kind])
        return prod(result) * prod(kernel[1:]) if result is not None and kernel else 0
    if kind == "ConvTranspose":
        given, kernel = _at(inputs, 0), _at(inputs, 1)
        return prod(given) * prod(kernel[1:]) if given and kernel else 0
    if kind in _PRODUCTS:
        left = _at(inputs, _PRODUCTS[kind][0])
        inner = left[-2 if _attribute(node, "transA", 0) and len(left) > 1 else -1] if left else 0
        return prod(result) * inner if result is not None else 0
    if kind in _GEMMS:
        left = _at(inputs, _GEMMS[kind][0])
        inner = left[0 if _attribute(node, "transA", 0) else 1] if len(left) == 2 else 0
        return prod(result) * inner if result is not None else 0
    if kind == "Einsum":
        return _einsum(str(_attribute(node, "equation", b"").decode()), inputs)
    if kind in _GATES:
        return _recurrent(_GATES[kind], inputs)
    if kind == "Attention":
        return _attention(inputs)
    return 0


def _at(inputs: Sequence[Shape | None], index: int) -> Shape:
    """The shape of an input, or () where it is missing or unknown."""
    return (inputs[index] or ()) if index < len(inputs) else ()


def _attribute(node: Any, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            return onnx.helper.get_attribute_value(attribute)
    return default


def _einsum(equation: str, inputs: Sequence[Shape | None]) -> int:
    """The product of all index lengths; 0 with an ellipsis, whose lengths have no names."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) < 2 or len(terms) != len(inputs) or "." in equation:
        return 0
    lengths: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=True):
        if shape is None or len(shape) != len(term):
            return 0
        lengths.update(zip(term, shape, strict=True))
    return prod(lengths.values())


def _recurrent(num_gates: int, inputs: Sequence[Shape | None]) -> int:
    """Input [steps, rows, features], weights [directions, gates * hidden, features]."""
    given, weights = _at(inputs, 0), _at(inputs, 1)
    if len(given) != 3 or len(weights) != 3:
        return 0
    directions, gates = weights[0], weights[1]
    hidden = gates // num_gates
    return prod(given[:2]) * directions * gates * (given[2] + hidden)


def _attention(inputs: Sequence[Shape | None]) -> int:
    """Queries [rows, heads, length, width] by keys, and the weights by the values."""
    queries, keys, values = _at(inputs, 0), _at(inputs, 1), _at(inputs, 2)
    if not (len(queries) == len(keys) == len(values) == 4):
        return 0
    return prod(queries[:3]) * keys[2] * (queries[3] + values[3])
