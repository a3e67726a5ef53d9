"""Builds a piece of a captured ONNX model as an ONNX model of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx

from cutset.capture.onnx.inference import ELEMENT_TYPES
from cutset.capture.onnx.onnx_file import stored_tensor
from cutset.capture.onnx.operations import PASSED_ON, is_length
from cutset.capture.onnx.walk import reads_of
from cutset.graph.ir import boundary_specs
from cutset.tensors import TensorSpec, dim_factor

if TYPE_CHECKING:
    from cutset.capture.onnx.onnx_graph import CapturedOnnx

_MODEL_FIELDS = ("ir_version", "producer_name", "producer_version", "domain", "model_version")


def build_onnx_piece(
    captured: CapturedOnnx,
    start: int,
    stop: int,
    *,
    watch: Sequence[TensorSpec] = (),
    load: bool = False,
) -> Any:
    """Builds the operations from index `start` up to `stop` as an ``onnx.ModelProto``.

    Its nodes, stored tensors, operator versions and metadata are the model's own. Values that
    stand on stored tensors or on the number of rows alone are worked out inside the piece.

    Args:
        captured: the captured model.
        start: index of the first operation.
        stop: index after the last operation; beyond `start`.
        watch: tensors made inside that the piece returns as well, after its own outputs.
        load: whether tensors in other files are read into the piece.
    """
    inputs = boundary_specs(captured.graph, start)
    outputs = {spec.name: spec for spec in (*boundary_specs(captured.graph, stop), *watch)}
    builder = _PieceBuilder(captured, inputs, start, stop, load=load)
    for spec in outputs.values():
        builder.need(spec.name)
    return builder.finish(tuple(outputs.values()))


class _PieceBuilder:
    """Collects nodes and stored tensors of the model, with what they stand on."""

    def __init__(
        self,
        captured: CapturedOnnx,
        inputs: Sequence[TensorSpec],
        start: int,
        stop: int,
        *,
        load: bool,
    ) -> None:
        self._captured = captured
        self._load = load
        self._inputs = tuple(inputs)
        proto = captured.module.proto
        self._proto = proto
        self._order = {node.name: index for index, node in enumerate(proto.graph.node)}
        self._makers = {name: node for node in proto.graph.node for name in node.output}
        self._stored = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._sparse = {sparse.values.name: sparse for sparse in proto.graph.sparse_initializer}
        self._given = {spec.name for spec in inputs}
        operations = captured.graph.operations[start:stop]
        mine = [captured.reading.nodes[operation.name] for operation in operations]
        self._here = {name for node in mine for name in node.output} | self._given
        self._nodes: dict[str, Any] = {}
        self._lengths: dict[str, list[Any]] = {}
        self._tensors: set[str] = set()
        for node in mine:
            self._add(node)

    def need(self, name: str) -> None:
        """Adds what makes a value, unless it is given."""
        if name in self._given:
            return
        if name in self._stored or name in self._sparse:
            self._tensors.add(name)
        elif name in self._makers:
            self._add(self._makers[name])

    def _add(self, node: Any) -> None:
        """Adds a node, and what it stands on where that is missing."""
        # An explicit stack: a chain of numbers or weights may be long.
        stack = [node]
        while stack:
            current = stack.pop()
            if current.name in self._nodes or current.name in self._lengths:
                continue
            if self._is_foreign_length(current):
                self._lengths[current.name] = self._length_nodes(current)
                continue
            self._nodes[current.name] = current
            for name in reads_of(current):
                if name in self._given:
                    continue
                if name in self._stored or name in self._sparse:
                    self._tensors.add(name)
                elif name in self._makers:
                    stack.append(self._makers[name])

    def _is_foreign_length(self, node: Any) -> bool:
        """Whether the node reads lengths off a tensor that another piece makes."""
        if not is_length(node, self._captured.specs):
            return False
        source = node.input[0]
        stands_on_rows = source not in self._captured.reading.makers
        return source not in self._here and source not in self._stored and stands_on_rows

    def _length_nodes(self, node: Any) -> list[Any]:
        """Nodes that give the same lengths, worked out from the first input."""
        result = node.output[0]
        shape = self._captured.specs[node.input[0]].shape
        if node.op_type == "Shape":
            bounds = {a.name: a.i for a in node.attribute}
            shape = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
        first = self._inputs[0]
        place = next(i for i, dim in enumerate(first.shape) if not isinstance(dim, int))
        made = _Numbers(prefix=f"{result}:")
        rows = made.call("Gather", made.call("Shape", first.name), made.constant([place]))
        per_row = dim_factor(first.shape[place]) or 1
        if per_row != 1:
            rows = made.call("Div", rows, made.constant([per_row]))
        parts = []
        for dim in shape:
            factor = dim_factor(dim)
            if factor is None:
                parts.append(made.constant([int(dim)]))
            elif factor == 1:
                parts.append(rows)
            else:
                parts.append(made.call("Mul", rows, made.constant([factor])))
        whole = made.call("Concat", *parts, axis=0) if parts else made.constant([])
        if node.op_type == "Size":
            whole = made.call("ReduceProd", whole, keepdims=0)
        made.nodes.append(onnx.helper.make_node("Identity", [whole], [result]))
        return made.nodes

    def finish(self, outputs: Sequence[TensorSpec]) -> Any:
        """The finished model."""
        model = onnx.ModelProto()
        for field in _MODEL_FIELDS:
            setattr(model, field, getattr(self._proto, field))
        model.opset_import.extend(self._proto.opset_import)
        model.metadata_props.extend(self._proto.metadata_props)
        graph = model.graph
        graph.name = self._proto.graph.name or "graph"
        graph.input.extend(_value(spec, spec.name) for spec in self._inputs)
        for nodes in self._lengths.values():
            graph.node.extend(nodes)
        for node in sorted(self._nodes.values(), key=lambda node: self._order[node.name]):
            graph.node.append(node)
            # Scopes and traces of the exporter; they name the author's files.
            graph.node[-1].ClearField("metadata_props")
            graph.node[-1].ClearField("doc_string")
        for spec in outputs:
            name = spec.name
            if name in self._given:
                name += PASSED_ON
                graph.node.add(op_type="Identity", input=[spec.name], output=[name], name=name)
            graph.output.append(_value(spec, name))
        for tensor in self._proto.graph.initializer:
            if tensor.name in self._tensors:
                graph.initializer.append(self._stored_tensor(tensor))
        for name, sparse in self._sparse.items():
            if name in self._tensors:
                graph.sparse_initializer.append(sparse)
        return model

    def _stored_tensor(self, tensor: Any) -> Any:
        return stored_tensor(tensor, self._captured.module.folder) if self._load else tensor


class _Numbers:
    """Makes nodes that compute with whole numbers, in the order in which they run."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[Any] = []
        self._prefix = prefix

    def _name(self) -> str:
        return f"{self._prefix}{len(self.nodes)}"

    def constant(self, values: Sequence[int]) -> str:
        """A list of numbers; returns its name."""
        name = self._name()
        tensor = onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(values)], values)
        self.nodes.append(onnx.helper.make_node("Constant", [], [name], name=name, value=tensor))
        return name

    def call(self, operator: str, *inputs: str, **attributes: int) -> str:
        """The result of an operator; returns its name."""
        name = self._name()
        node = onnx.helper.make_node(operator, list(inputs), [name], name=name, **attributes)
        self.nodes.append(node)
        return name


def _value(spec: TensorSpec, name: str) -> Any:
    """A graph's input or output with the shape of a spec."""
    return onnx.helper.make_tensor_value_info(name, ELEMENT_TYPES[spec.dtype], spec.shape)
