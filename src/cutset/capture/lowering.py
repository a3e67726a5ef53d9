"""From an exported program to the plain graph: operations, shapes, weights, module calls."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from cutset.capture.captured import shape_with_rows
from cutset.capture.captured_model import CapturedModel
from cutset.capture.diagnosis import rows_symbols
from cutset.capture.flops import count_flops
from cutset.capture.source_lines import source_line
from cutset.errors import CaptureError
from cutset.graph.ir import Graph, ModuleCall, Operation, Parameter
from cutset.tensors import BATCH, DTYPE_BYTES, Dim, TensorSpec


def dim_of(length: int | torch.SymInt, batch_symbols: Collection[Any]) -> Dim | None:
    """A length as Cutset writes it, or None where it does not grow in step with the rows.

    Args:
        length: of a dimension of a captured tensor.
        batch_symbols: what stands for the number of rows; each input may have its own symbol.
    """
    if isinstance(length, int):
        return length
    expression = length.node.expr
    if expression.is_Integer:
        return int(expression)
    if not expression.free_symbols <= set(batch_symbols):
        return None
    at = {
        rows: expression.xreplace(dict.fromkeys(batch_symbols, sympy.Integer(rows)))
        for rows in (1, 2, 3, 5)
    }
    if any(value != rows * at[1] for rows, value in at.items()):
        return None
    return BATCH if at[1] == 1 else f"{BATCH}*{at[1]}"


def lower_program(
    model: torch.nn.Module,
    exported: ExportedProgram,
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
    *,
    micro_batch_only: int | None = None,
) -> CapturedModel:
    """Reads the plain graph out of an exported program without in-place operations.

    Args:
        model: the module.
        exported: its program.
        arguments: what it was exported with.
        micro_batch_only: the number of rows that the program is fixed to, or None for any.

    Raises:
        CaptureError: the model keeps state, or a result has no row per sample.
    """
    return _Lowering(model, exported, arguments, micro_batch_only).run()


class _Lowering:
    """Reads the plain graph out of an exported program."""

    def __init__(
        self,
        model: torch.nn.Module,
        exported: ExportedProgram,
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        micro_batch_only: int | None,
    ) -> None:
        self._only = micro_batch_only
        self._model = model
        self._exported = exported
        leaves, spec = pytree.tree_flatten(arguments)
        self._arguments = (tuple(leaves), spec)
        assert exported.call_spec.out_spec is not None
        self._result_spec = exported.call_spec.out_spec
        self._program = exported.graph_module.graph
        self._program.eliminate_dead_code()
        self._parameters = _list_parameters(model, exported)
        self._weights = _weight_tensors(exported, self._parameters)
        self._outputs = self._output_nodes()
        # For every node: which parameters it reads, and the operations that its value stands on.
        self._reads: dict[Node, tuple[str, ...]] = {}
        self._sources: dict[Node, tuple[str, ...]] = {}

    def run(self) -> CapturedModel:
        """The captured model.

        Raises:
            CaptureError: the model keeps state, or a result has no row per sample.
        """
        inputs = [
            node
            for node in self._program.nodes
            if node.op == "placeholder" and node.name not in self._weights
        ]
        first = next((n for n in inputs if isinstance(n.meta.get("val"), torch.Tensor)), None)
        is_fixed = first is not None and isinstance(first.meta["val"].shape[0], int)
        if first is None or (is_fixed and self._only is None):
            raise CaptureError(
                "the number of rows became fixed when the model was captured: an operation in it "
                "works for the example's number only"
            )
        self._batch = rows_symbols(self._exported) if self._only is None else frozenset()
        inputs = [node for node in inputs if node.users or node is first]
        flops = count_flops(self._program, self._weights)
        operations: list[Operation] = []
        for node in self._program.nodes:
            if node in inputs:
                self._sources[node], self._reads[node] = (node.name,), ()
            elif node.op == "placeholder":
                name = self._weights[node.name][0] if node.name in self._weights else ""
                self._sources[node], self._reads[node] = (), (name,) if name else ()
            elif node.op in ("call_function", "get_attr"):
                operation = self._operation(node, flops.get(node.name, 0))
                if operation is not None:
                    operations.append(operation)
        graph = Graph(
            model_class=_class_name(self._model),
            inputs=tuple(self._input_spec(node) for node in inputs),
            operations=tuple(operations),
            outputs=tuple(node.name for node in self._outputs),
            parameters=self._parameters,
        )
        self._check_outputs(graph)
        return CapturedModel(
            graph=graph,
            module=self._model,
            program=self._program,
            weights=self._weights,
            example_inputs=tuple(self._arguments[0][i] for i in self._leaves_of(inputs)),
            output_names=self._output_names(),
            arguments=self._arguments,
            leaf_of_input=self._leaves_of(inputs),
            result_spec=self._result_spec,
            leaf_of_output=self._leaves_of_outputs(),
            micro_batch_only=self._only,
        )

    def _leaves_of(self, inputs: Sequence[Node]) -> tuple[int, ...]:
        """Where each input stands among the leaves of the arguments."""
        names = [
            spec.arg.name
            for spec in self._exported.graph_signature.input_specs
            if spec.kind is InputKind.USER_INPUT
        ]
        return tuple(names.index(node.name) for node in inputs)

    def _operation(self, node: Node, flops: int) -> Operation | None:
        """The node as an operation, or None for numbers, checks and what stands on weights."""
        arguments = node.all_input_nodes
        reads = tuple(dict.fromkeys(name for arg in arguments for name in self._reads[arg]))
        sources = tuple(dict.fromkeys(name for arg in arguments for name in self._sources[arg]))
        value = node.meta.get("val")
        if node.target is torch.ops.aten.sym_size.int:
            # A length is no data: the receiving stage reads it off what it receives.
            self._sources[node], self._reads[node] = (), ()
            return None
        if not sources and node not in self._outputs:
            self._sources[node], self._reads[node] = (), reads
            return None
        if value is None or isinstance(value, (torch.SymBool, bool)):
            # A check; it computes nothing.
            self._sources[node], self._reads[node] = (), ()
            return None
        self._sources[node], self._reads[node] = (node.name,), ()
        return Operation(
            name=node.name,
            target="getitem" if node.target is operator.getitem else str(node.target),
            inputs=sources,
            outputs=self._specs(node.name, value),
            parameters=reads,
            modules=_module_calls(node, self._model),
            flops=flops,
            source=source_line(node),
        )

    def _input_spec(self, node: Node) -> TensorSpec:
        specs = self._specs(node.name, node.meta["val"])
        if len(specs) != 1 or not specs[0].shape or specs[0].shape[0] != BATCH:
            raise CaptureError(f"input {node.name!r} has no row per sample in its first dimension")
        return specs[0]

    def _specs(self, name: str, value: Any) -> tuple[TensorSpec, ...]:
        """Specs of a value; none where it is no tensor, or one that no spec can describe."""
        tensors = value if isinstance(value, (tuple, list)) else (value,)
        specs: list[TensorSpec] = []
        for index, tensor in enumerate(tensors):
            if not isinstance(tensor, torch.Tensor):
                return ()
            dims = [dim_of(length, self._batch) for length in tensor.shape]
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in DTYPE_BYTES:
                return ()
            known = tuple(dim for dim in dims if dim is not None)
            if len(known) != len(dims):
                return ()
            if self._only is not None:
                known = shape_with_rows(known, self._only)
            label = f"{name}.{index}" if isinstance(value, (tuple, list)) else name
            specs.append(TensorSpec(name=label, shape=known, dtype=dtype))
        return tuple(specs)

    def _output_nodes(self) -> tuple[Node, ...]:
        (results,) = self._program.output_node().args
        nodes: list[Node] = []
        for node, spec in zip(
            results,
            self._exported.graph_signature.output_specs,
            strict=True,
        ):
            if spec.kind is OutputKind.BUFFER_MUTATION:
                raise CaptureError(
                    f"the model changes its buffer {spec.target!r} in forward, in evaluation mode "
                    "as well, so that an answer depends on the calls before it; the stages of a "
                    "pipeline keep no state. Leave the buffer as it is, or hand its value in as an "
                    "input and out as a result",
                    module_path=(spec.target or "").rpartition(".")[0] or None,
                )
            if spec.kind is OutputKind.USER_OUTPUT and node is not None:
                if not isinstance(node, Node):
                    raise CaptureError(
                        f"the model returns {node!r} among its results, which is no tensor; "
                        "return tensors (or None) alone"
                    )
                nodes.append(node)
        return tuple(nodes)

    def _leaves_of_outputs(self) -> tuple[int, ...]:
        """Where each output stands among the leaves of the model's results."""
        (results,) = self._program.output_node().args
        specs = self._exported.graph_signature.output_specs
        users = [
            result
            for result, given in zip(results, specs, strict=True)
            if given.kind is OutputKind.USER_OUTPUT
        ]
        return tuple(i for i, result in enumerate(users) if result is not None)

    def _output_names(self) -> tuple[str, ...]:
        spec = self._result_spec
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        named = {
            leaf: ".".join(_key_name(key) for key in path) or "0"
            for path, leaf in pytree.tree_flatten_with_path(tree)[0]
        }
        return tuple(named[leaf] for leaf in self._leaves_of_outputs())

    def _check_outputs(self, graph: Graph) -> None:
        for name in graph.outputs:
            try:
                spec = graph.spec_of(name)
            except KeyError:
                spec = None
            if spec is None or not spec.shape or spec.shape[0] != BATCH:
                raise CaptureError(
                    f"result {name!r} ({spec or 'no describable tensor'}) has no row per sample "
                    "in its first dimension, so batches cannot be cut into micro-batches"
                )


def _key_name(key: Any) -> str:
    """The dict key, index or attribute that a pytree key stands for."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)


def _class_name(module: torch.nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _list_parameters(model: torch.nn.Module, exported: ExportedProgram) -> tuple[Parameter, ...]:
    """All parameters and buffers of the model, then the constants that the capture lifted."""
    kinds: list[tuple[str, str, torch.Tensor]] = [
        *(("parameter", name, tensor) for name, tensor in model.named_parameters()),
        *(("buffer", name, tensor) for name, tensor in model.named_buffers()),
    ]
    known = {name for _, name, _ in kinds}
    kinds += [
        ("constant", name, tensor)
        for name, tensor in exported.constants.items()
        if isinstance(tensor, torch.Tensor)
        and name not in known
        and any(
            spec.target == name and spec.kind is InputKind.CONSTANT_TENSOR
            for spec in exported.graph_signature.input_specs
        )
    ]
    return tuple(
        Parameter(
            name=name,
            kind=kind,
            num_elements=tensor.numel(),
            num_bytes=tensor.numel() * tensor.element_size(),
        )
        for kind, name, tensor in kinds
    )


def _weight_tensors(
    exported: ExportedProgram, parameters: Sequence[Parameter]
) -> dict[str, tuple[str, torch.Tensor]]:
    """By placeholder name: the original name (the first one of tied weights) and the tensor."""
    known = {parameter.name for parameter in parameters}
    tensors: dict[str, tuple[str, torch.Tensor]] = {}
    first_name: dict[int, str] = {}
    all_tensors = {**exported.state_dict, **exported.constants}
    for name, tensor in all_tensors.items():
        if name in known:
            first_name.setdefault(id(tensor), name)
    for spec in exported.graph_signature.input_specs:
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            assert spec.target is not None
            tensor = all_tensors[spec.target]
            tensors[spec.arg.name] = (first_name.get(id(tensor), spec.target), tensor)
    return tensors


def _module_calls(node: Node, model: torch.nn.Module) -> tuple[ModuleCall, ...]:
    """The calls of modules inside which the node was traced, root first."""
    calls = []
    for key, (path, class_name) in (node.meta.get("nn_module_stack") or {}).items():
        _, _, number = key.partition("@")
        calls.append(
            ModuleCall(
                path=path,
                call=int(number) if number.isdecimal() else 0,
                class_name=class_name if isinstance(class_name, str) else str(class_name),
            )
        )
    return tuple(calls) or (ModuleCall(path="", call=0, class_name=_class_name(model)),)
