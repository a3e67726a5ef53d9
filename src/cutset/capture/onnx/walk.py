"""Walks ONNX models as data: their graphs, tensors and reads, and the operators that may be run.

An ONNX model is data, with three ways out: tensors in other files (``external_data``), operators
from libraries that would have to be loaded (custom domains), and operators that load something
themselves (``EPContext`` opens a vendor's binary, ``PythonOp`` calls Python). Sources:
https://onnx.ai/onnx/repo-docs/ExternalData.html and ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator domains that every ONNX Runtime brings along."""

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})
"""The two names of ONNX's own operator set."""

_LOADING_OPERATORS = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "ATen", "TorchEmbedding"})
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})


def graphs_of(graph: Any) -> Iterator[Any]:
    """The graph and those inside its ``If``, ``Loop`` and ``Scan``.

    The recursion ends: protobuf does not parse messages that lie over 100 levels deep.
    """
    yield graph
    for node in graph.node:
        for body in bodies_of(node):
            yield from graphs_of(body)


def bodies_of(node: Any) -> Iterator[Any]:
    """The graphs that a node carries itself: branches of an ``If``, the body of a ``Loop``."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads_of(node: Any) -> tuple[str, ...]:
    """Names of the values that a node reads, its bodies' reads from outside included, each once."""
    names = [name for name in node.input if name]
    for body in bodies_of(node):
        names += _outer_reads(body)
    return tuple(dict.fromkeys(names))


def _outer_reads(graph: Any) -> list[str]:
    """What a body reads from the graphs around it."""
    own = {value.name for value in graph.input}
    own |= {tensor.name for tensor in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    own |= {name for node in graph.node for name in node.output}
    reads = [name for node in graph.node for name in reads_of(node)]
    reads += [value.name for value in graph.output]
    return [name for name in reads if name not in own]


def tensors_of(graph: Any) -> Iterator[Any]:
    """Every tensor that a graph stores, not counting those inside its nodes' bodies."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse_tensors = list(attribute.sparse_tensors)
            if attribute.HasField("sparse_tensor"):
                sparse_tensors.append(attribute.sparse_tensor)
            for sparse in sparse_tensors:
                yield from (sparse.values, sparse.indices)


def external_tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model that lies in another file."""
    for graph in graphs_of(model.graph):
        for tensor in tensors_of(graph):
            if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
                yield tensor


def external_place(tensor: Any) -> tuple[str, int, int]:
    """Where an external tensor lies: location, offset and length in bytes (0: all that follows).

    Raises:
        ValueError: an entry is unknown, or is no number where one is due; says which.
    """
    values = {entry.key: entry.value for entry in tensor.external_data}
    if unknown := values.keys() - _EXTERNAL_KEYS:
        raise ValueError(f"has the external data key {min(unknown)!r}")
    start, length = values.get("offset", "0"), values.get("length", "0")
    if not (start.isdecimal() and length.isdecimal()):
        raise ValueError(f"has offset {start!r} and length {length!r}")
    return values.get("location", ""), int(start), int(length)


def operator_fault(model: Any) -> tuple[str, str] | None:
    """The first thing in a model that would have to be loaded from elsewhere.

    Returns:
        What it is and what is wrong with it, in words; None if there is none.
    """
    for opset in model.opset_import:
        if opset.domain not in DOMAINS:
            return f"operator domain {opset.domain!r}", "is none of ONNX's own"
    if len(model.functions) or len(model.training_info):
        return "the model", "has local functions or training code"
    for graph in graphs_of(model.graph):
        for node in graph.node:
            entry = f"node {node.name!r} ({node.op_type})"
            if node.domain not in DOMAINS:
                return entry, f"is of the operator domain {node.domain!r}"
            if node.op_type in _LOADING_OPERATORS:
                return entry, "would load code or files"
    return None
