"""Builds a piece of a captured model as a module of its own, and exports it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.export import Dim as ExportDim
from torch.export import ExportedProgram
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node

from cutset.capture.diagnosis import export_error
from cutset.capture.layout import lay_out, layout_of
from cutset.errors import CaptureError
from cutset.graph.ir import boundary_specs
from cutset.tensors import TensorSpec, dim_factor

if TYPE_CHECKING:
    from cutset.capture.captured_model import CapturedModel


class Piece(GraphModule):
    """Operations ``start`` to ``stop`` of a captured model; takes and returns flat tensors.

    Attributes:
        input_specs: what it takes, in order.
        output_specs: what it returns, in order, always as a tuple.
        weight_names: original names of the parameters, buffers and constants that it holds,
            in the model's order.
    """

    input_specs: tuple[TensorSpec, ...]
    output_specs: tuple[TensorSpec, ...]
    weight_names: tuple[str, ...]


def build_piece(
    captured: CapturedModel,
    start: int,
    stop: int,
    *,
    watch: Sequence[TensorSpec] = (),
) -> Piece:
    """Builds the operations from index `start` up to `stop` as a module.

    Its weights are the captured model's own tensors, under their original names. Values that
    depend on weights or on the number of rows alone are worked out inside the piece.

    Args:
        captured: the captured model.
        start: index of the first operation.
        stop: index after the last operation; beyond `start`.
        watch: tensors made inside that the piece returns as well, after its own outputs.
    """
    inputs = boundary_specs(captured.graph, start)
    outputs = {spec.name: spec for spec in (*boundary_specs(captured.graph, stop), *watch)}
    builder = _PieceBuilder(captured, inputs)
    for operation in captured.graph.operations[start:stop]:
        builder.copy(builder.node_named(operation.name))
    return builder.finish(tuple(outputs.values()))


def export_piece(
    piece: Piece, inputs: Sequence[torch.Tensor], *, is_free: bool = True
) -> ExportedProgram:
    """Exports a piece of a captured model.

    Args:
        piece: what `cutset.capture.pieces.build_piece` made.
        inputs: tensors with two rows or more; dimensions that grow with the rows are recognised
            by the piece's ``input_specs``.
        is_free: whether the number of rows is to be free; otherwise it is that of the inputs.

    Raises:
        CaptureError: the piece cannot be exported with a free number of rows.
    """
    specs = piece.input_specs
    shapes = tuple(
        {i: ExportDim.AUTO for i, dim in enumerate(spec.shape) if is_free and isinstance(dim, str)}
        for spec in specs
    )
    try:
        with torch.no_grad():
            exported = torch.export.export(
                piece, tuple(inputs), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:
        raise export_error(piece, error) from error
    for name, spec in zip(exported.graph_signature.user_inputs, specs, strict=True):
        value = next(node for node in exported.graph.nodes if node.name == name).meta["val"]
        for length, dim in zip(value.shape, spec.shape, strict=True):
            if is_free and isinstance(length, int) and not isinstance(dim, int):
                raise CaptureError(
                    f"{spec.name}: the number of rows became fixed at {length} when the piece "
                    "was exported; an operation in it works for this number only"
                )
    # Conditions on lengths that only a whole program's own call would check; a pipeline's
    # contracts say more, and those of several inputs can be of any complexity.
    exported._guards_code = []
    return exported


class _PieceBuilder:
    """Copies nodes of the captured program into a new graph, with what they stand on."""

    def __init__(self, captured: CapturedModel, inputs: Sequence[TensorSpec]) -> None:
        self._captured = captured
        self._inputs = tuple(inputs)
        self._nodes = {node.name: node for node in captured.program.nodes}
        self._root = torch.nn.Module()
        self._graph = FxGraph()
        self._weight_names: set[str] = set()
        placeholders = [self._graph.placeholder(spec.name) for spec in inputs]
        self._copies: dict[Node, Node] = {
            self._nodes[spec.name]: self._laid_out(placeholder, self._nodes[spec.name])
            for spec, placeholder in zip(inputs, placeholders, strict=True)
        }

    def _laid_out(self, placeholder: Node, made: Node) -> Node:
        """What arrives, with the gaps that the whole model has between its numbers.

        Its order of dimensions is kept as it arrives: a link keeps it, and the whole model may
        have another with one row than with several.
        """
        value = made.meta["val"]
        layout = layout_of(value)
        if layout is None or not layout.has_gaps:
            return placeholder
        return lay_out(self._graph, placeholder, layout, tuple(value.shape))

    def node_named(self, name: str) -> Node:
        """The captured program's node that makes `name`."""
        node: Node = self._nodes[name]
        return node

    def copy(self, node: Node) -> Node:
        """The node's copy in the piece; what it reads is copied first where it is missing."""
        # An explicit stack: a chain of numbers or weights may be long.
        stack = [node]
        while stack:
            current = stack[-1]
            if current in self._copies:
                stack.pop()
                continue
            missing = [
                argument
                for argument in current.all_input_nodes
                if argument not in self._copies and not self._is_length(current)
            ]
            if missing:
                stack.extend(missing)
                continue
            self._copies[current] = self._copy_one(current)
            stack.pop()
        return self._copies[node]

    def _is_length(self, node: Node) -> bool:
        """Whether the node reads a length off a tensor that the piece need not have."""
        return node.target is torch.ops.aten.sym_size.int

    def _copy_one(self, node: Node) -> Node:
        if node.op == "placeholder":
            return self._weight(node)
        if self._is_length(node) and node.args[0] not in self._copies:
            return self._length(node)
        copy = self._graph.node_copy(node, self._copies.__getitem__)
        # Traces name files of the author's machine; they have no place in a bundle.
        copy.meta.pop("stack_trace", None)
        return copy

    def _weight(self, node: Node) -> Node:
        name, tensor = self._captured.weights[node.name]
        *parents, leaf = name.split(".")
        module = self._root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, torch.nn.Module())
            module = getattr(module, parent)
        if isinstance(tensor, torch.nn.Parameter):
            module.register_parameter(leaf, tensor)
        else:
            module.register_buffer(leaf, tensor)
        self._weight_names.add(name)
        return self._graph.get_attr(name)

    def _length(self, node: Node) -> Node:
        """A length that grows with the rows, worked out from the first input that does too."""
        source, index = node.args
        assert isinstance(source, Node)
        assert isinstance(index, int)
        first, position = self._input_with_rows()
        per_row = dim_factor(first.shape[position]) or 1
        spec = self._captured.graph.spec_of(source.name)
        wanted = dim_factor(spec.shape[index]) or 1
        length = self._graph.call_function(
            torch.ops.aten.sym_size.int, (self._copies[self._nodes[first.name]], position)
        )
        if per_row != 1:
            length = self._graph.call_function(operator.floordiv, (length, per_row))
        if wanted != 1:
            length = self._graph.call_function(operator.mul, (length, wanted))
        return length

    def _input_with_rows(self) -> tuple[TensorSpec, int]:
        for spec in self._inputs:
            for position, dim in enumerate(spec.shape):
                if not isinstance(dim, int):
                    return spec, position
        raise CaptureError(
            "a piece needs the number of rows, and none of the tensors that it gets tells it "
            f"({', '.join(map(str, self._inputs))}); cut elsewhere"
        )

    def finish(self, outputs: Sequence[TensorSpec]) -> Piece:
        """The finished module."""
        self._graph.output(tuple(self._copies[self._nodes[spec.name]] for spec in outputs))
        piece = Piece(self._root, self._graph)
        piece.input_specs = self._inputs
        piece.output_specs = tuple(outputs)
        names = (parameter.name for parameter in self._captured.graph.parameters)
        piece.weight_names = tuple(name for name in names if name in self._weight_names)
        return piece.eval()
