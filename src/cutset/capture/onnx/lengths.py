"""Cuts a piece out of an ONNX model, with the lengths that it reads off tensors it does not get.

A model that expands a token to the rows of its input reads them off the input, wherever in the
model that happens. A piece further back does not get the input; it has other tensors with as many
rows, so there the lengths are worked out from the first of these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from onnx import NodeProto, TensorProto, helper

from cutset.errors import EngineError
from cutset.graph.ir import Graph
from cutset.tensors import Dim, TensorSpec, dim_factor


def extract_piece(
    extractor: Any, graph: Graph, inputs: Sequence[TensorSpec], output_names: Sequence[str]
) -> Any:
    """The part of an ONNX model between a piece's inputs and outputs, as a model of its own.

    Args:
        extractor: an ``onnx.utils.Extractor`` of the whole model.
        graph: the captured model, whose tensors go by their names.
        inputs: what the piece takes.
        output_names: what it makes.

    Raises:
        EngineError: the piece reads more than lengths off a tensor that it does not get.
    """
    names = [spec.name for spec in inputs]
    lengths = _lengths_from_elsewhere(extractor.graph, names)
    for node in lengths:  # the exporter does not describe every value, the extractor wants it
        value = helper.make_tensor_value_info(node.output[0], TensorProto.INT64, None)
        extractor.value_infos.setdefault(value.name, value)
    unknown = {*names, *output_names} - extractor.value_infos.keys()
    if unknown:
        raise EngineError(f"the ONNX form has no tensor {', '.join(sorted(unknown)[:3])}")
    model = extractor.extract_model(
        [*names, *(node.output[0] for node in lengths)], list(output_names)
    )
    used = {name for node in model.graph.node for name in node.input}
    wanted = [node for node in lengths if node.output[0] in used]
    missing = used - _given(model.graph)
    if missing:
        raise EngineError(
            f"the piece reads {', '.join(sorted(missing)[:3])}, which it does not get"
        )
    kept = [value for value in model.graph.input if value.name in names]
    made = [new for node in wanted for new in _length_nodes(node, graph, inputs)]
    nodes = [*made, *model.graph.node]
    del model.graph.input[:], model.graph.node[:]
    model.graph.input.extend(kept)
    model.graph.node.extend(nodes)
    return model


def _lengths_from_elsewhere(graph: Any, names: Sequence[str]) -> list[NodeProto]:
    """The nodes that read lengths off what stands on the model's inputs and not on the piece's."""
    elsewhere = {value.name for value in graph.input} - set(names)
    found = []
    for node in graph.node:
        if elsewhere.isdisjoint(node.input):
            continue
        if node.op_type == "Shape":
            found.append(node)
        else:
            elsewhere |= set(node.output) - set(names)
    return found


def _given(graph: Any) -> set[str]:
    made = {name for node in graph.node for name in node.output}
    stored = {tensor.name for tensor in graph.initializer}
    return made | stored | {value.name for value in graph.input} | {""}


def _length_nodes(
    node: NodeProto, graph: Graph, inputs: Sequence[TensorSpec]
) -> Iterator[NodeProto]:
    """Nodes that make what a Shape node would, from the first input that grows with the rows."""
    try:
        shape = graph.spec_of(node.input[0]).shape
    except KeyError as error:
        raise EngineError(f"the piece reads lengths of {node.input[0]}, which nobody knows") from (
            error
        )
    attributes = {each.name: each.i for each in node.attribute}
    wanted = shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
    name = node.output[0]
    if any(not isinstance(dim, int) for dim in wanted):
        spec, dim = _rows_of(inputs)
        factor = dim_factor(spec.shape[dim]) or 1
        yield helper.make_node("Shape", [spec.name], [f"{name}_length"], start=dim, end=dim + 1)
        yield _constant(f"{name}_factor", factor)
        yield helper.make_node("Div", [f"{name}_length", f"{name}_factor"], [f"{name}_rows"])
    parts = []
    for index, length in enumerate(wanted):
        part = f"{name}_dim_{index}"
        parts.append(part)
        if isinstance(length, int):
            yield _constant(part, length)
        else:
            yield _constant(f"{part}_factor", dim_factor(length) or 1)
            yield helper.make_node("Mul", [f"{name}_rows", f"{part}_factor"], [part])
    yield helper.make_node("Concat", parts, [name], axis=0)


def _rows_of(inputs: Sequence[TensorSpec]) -> tuple[TensorSpec, int]:
    for spec in inputs:
        for dim, length in enumerate(spec.shape):
            if not isinstance(length, int):
                return spec, dim
    raise EngineError("the piece needs the number of rows, and gets no tensor that tells it")


def _constant(name: str, value: int | Dim) -> NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=[value])
