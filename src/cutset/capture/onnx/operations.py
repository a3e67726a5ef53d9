"""Reads the operations out of an ONNX graph: what computes tensors from the inputs, what does not.

The rule is that of `cutset.graph.ir`. A node is no operation when it stands on stored tensors
alone, or on lengths (``Shape`` of a tensor whose shape is known): whoever needs its value works it
out again. An ``If``, ``Loop`` or ``Scan`` is one operation, and reads what its bodies read from
outside. A node of which several results are used returns them through ``getitem`` operations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import onnx

from cutset.capture.onnx.walk import STANDARD_DOMAINS, reads_of
from cutset.graph.ir import Operation, Parameter

PASSED_ON = "_out"
"""What is added to the name of an output that is also an input; names in ONNX are unique."""

_LENGTHS = frozenset({"Shape", "Size"})
_HALF_BYTE_TYPES = frozenset({"INT4", "UINT4", "FLOAT4E2M1"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnnxOperations:
    """The operations of an ONNX graph.

    Attributes:
        operations: in the graph's order; without shapes, multiply-adds and modules.
        nodes: by an operation's name, the node that computes it.
        results: by an operation's name, the values that it returns, in order.
        makers: by the name of a value that is no operation's result, the node that makes it.
    """

    operations: tuple[Operation, ...]
    nodes: Mapping[str, Any]
    results: Mapping[str, tuple[str, ...]]
    makers: Mapping[str, Any]


def target_of(node: Any) -> str:
    """What a node calls, in the manner of `Operation.target`: ``"onnx.Conv"``."""
    domain = "onnx" if node.domain in STANDARD_DOMAINS else node.domain.replace(".", "_")
    return f"{domain}.{node.op_type}"


def is_length(node: Any, known: Collection[str]) -> bool:
    """Whether a node reads lengths off a tensor whose shape is known."""
    return node.op_type in _LENGTHS and node.domain in STANDARD_DOMAINS and node.input[0] in known


def read_operations(
    graph: Any, inputs: Iterable[str], outputs: Collection[str], known: Collection[str]
) -> OnnxOperations:
    """Reads the operations of a graph whose nodes are in the order of execution.

    Args:
        graph: an ``onnx.GraphProto``.
        inputs: names of the values that are given.
        outputs: names of the values that are wanted.
        known: names of values whose shape is known for any number of rows.
    """
    parameters = {parameter.name for parameter in list_parameters(graph)}
    reads: dict[str, tuple[str, ...]] = {name: (name,) for name in parameters}
    sources: dict[str, tuple[str, ...]] = {name: (name,) for name in inputs}
    used = {name for node in graph.node for name in reads_of(node)} | set(outputs)
    operations: list[Operation] = []
    nodes: dict[str, Any] = {}
    results: dict[str, tuple[str, ...]] = {}
    makers: dict[str, Any] = {}
    for node in graph.node:
        taken = reads_of(node)
        needed = tuple(dict.fromkeys(p for name in taken for p in reads.get(name, ())))
        given = tuple(dict.fromkeys(s for name in taken for s in sources.get(name, ())))
        made = tuple(name for name in node.output if name in used)
        is_dead = not made
        if is_dead or is_length(node, known) or (not given and not set(made) & set(outputs)):
            stored = () if is_length(node, known) else needed
            for name in made:
                makers[name] = node
                reads[name] = reads.get(name, stored)
            continue
        several = len(made) > 1
        name = node.name if several else made[0]
        for new in _operations(name, target_of(node), given, needed, made if several else ()):
            operations.append(new)
            nodes[new.name] = node
            sources[new.name] = (new.name,)
        results[name] = made
    return OnnxOperations(operations=tuple(operations), nodes=nodes, results=results, makers=makers)


def _operations(
    name: str,
    target: str,
    inputs: tuple[str, ...],
    parameters: tuple[str, ...],
    picks: tuple[str, ...],
) -> list[Operation]:
    """One operation, and one for each result that is picked out of it."""
    whole = Operation(
        name=name,
        target=target,
        inputs=inputs,
        outputs=(),
        parameters=parameters,
        modules=(),
        flops=0,
    )
    return [
        whole,
        *(
            Operation(
                name=pick,
                target="getitem",
                inputs=(name,),
                outputs=(),
                parameters=(),
                modules=(),
                flops=0,
            )
            for pick in picks
        ),
    ]


def list_parameters(graph: Any) -> tuple[Parameter, ...]:
    """The stored tensors of a graph: initialisers, and tensors of ``Constant`` nodes.

    Whole numbers of a ``Constant`` are not among them: they are lengths and axes. What the bodies
    of an ``If`` or ``Loop`` store belongs to that operation.
    """
    found = [(tensor.name, tensor, False) for tensor in graph.initializer]
    found += [(sparse.values.name, sparse.values, False) for sparse in graph.sparse_initializer]
    found += [
        (node.output[0], tensor, True)
        for node in graph.node
        if node.op_type == "Constant" and node.domain in STANDARD_DOMAINS
        for tensor in _constant_tensors(node)
        if tensor.data_type != onnx.TensorProto.INT64
    ]
    return tuple(
        Parameter(
            name=name,
            kind="constant" if is_constant or _is_whole(tensor) else "parameter",
            num_elements=num_elements_of(tensor),
            num_bytes=_num_bytes(tensor),
        )
        for name, tensor, is_constant in found
    )


def _constant_tensors(node: Any) -> list[Any]:
    tensors = [a.t for a in node.attribute if a.name == "value"]
    return tensors + [a.sparse_tensor.values for a in node.attribute if a.name == "sparse_value"]


def _is_whole(tensor: Any) -> bool:
    """Whether the tensor holds lengths or switches rather than weights."""
    return tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL)


def num_elements_of(tensor: Any) -> int:
    """How many numbers a stored tensor holds."""
    count = 1
    for length in tensor.dims:
        count *= length
    return count


def _num_bytes(tensor: Any) -> int:
    count = num_elements_of(tensor)
    if onnx.TensorProto.DataType.Name(tensor.data_type) in _HALF_BYTE_TYPES:
        return (count + 1) // 2
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(text) for text in tensor.string_data)
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
