"""What is checked in ``model.onnx`` before ONNX Runtime may see it.

An ONNX model is data, with three ways out: tensors in other files (``external_data``), operators
from libraries that would have to be loaded (custom domains), and operators that load something
themselves (``EPContext`` opens a vendor's binary, ``PythonOp`` calls Python). So external tensors
must lie in files that the manifest lists, operators must be of ONNX's own domains or of ONNX
Runtime's contributed one, and the loading ones are refused. Source:
https://onnx.ai/onnx/repo-docs/ExternalData.html and ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from cutset.errors import UnsafeBundle

DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator domains that every ONNX Runtime brings along."""

_LOADING_OPERATORS = frozenset({"EPContext", "PythonOp", "PythonOpGrad", "ATen", "TorchEmbedding"})


def check_onnx_model(file: Path, *, path: str, listed: frozenset[str], max_bytes: int) -> None:
    """Refuses a model that could load anything but the bundle's own files.

    Args:
        file: where the model is on disk.
        path: its path within the bundle.
        listed: paths of all files that the manifest lists.
        max_bytes: the size that the manifest promises; not a byte more is read.

    Raises:
        UnsafeBundle: see above; the message names the entry.
    """
    with file.open("rb") as source:
        data = source.read(max_bytes + 1)
    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError) as error:
        raise UnsafeBundle(f"{path}: not an ONNX model ({error})", path=path) from error
    for opset in model.opset_import:
        if opset.domain not in DOMAINS:
            raise _refusal(path, f"operator domain {opset.domain!r}", "is none of ONNX's own")
    if len(model.functions) or len(model.training_info):
        raise _refusal(path, "the model", "has local functions or training code")
    for graph in _graphs(model.graph):
        _check_graph(graph, file, path, listed)


def _refusal(path: str, entry: str, why: str) -> UnsafeBundle:
    return UnsafeBundle(f"{path}: {entry} {why}; the model was not loaded", path=path)


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and those inside its ``If``, ``Loop`` and ``Scan``.

    The recursion ends: protobuf does not parse messages that lie over 100 levels deep.
    """
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _graphs(inner)


def _check_graph(graph: Any, file: Path, path: str, listed: frozenset[str]) -> None:
    for node in graph.node:
        entry = f"node {node.name!r} ({node.op_type})"
        if node.domain not in DOMAINS:
            raise _refusal(path, entry, f"is of the operator domain {node.domain!r}")
        if node.op_type in _LOADING_OPERATORS:
            raise _refusal(path, entry, "would load code or files")
    for tensor in _tensors(graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data):
            _check_external(tensor, file, path, listed)


def _tensors(graph: Any) -> Iterator[Any]:
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


def _check_external(tensor: Any, file: Path, path: str, listed: frozenset[str]) -> None:
    values = {entry.key: entry.value for entry in tensor.external_data}
    entry, location = f"tensor {tensor.name!r}", values.get("location", "")
    if not location or "/" in location or "\\" in location or location in (".", ".."):
        raise _refusal(path, entry, f"lies outside the bundle, in {location!r}")
    if str(PurePosixPath(path).parent / location) not in listed:
        raise _refusal(path, entry, f"lies in {location!r}, which the manifest does not list")
    if unknown := values.keys() - {"location", "offset", "length", "checksum"}:
        raise _refusal(path, entry, f"has the external data key {min(unknown)!r}")
    start, length = values.get("offset", "0"), values.get("length", "0")
    if not (start.isdecimal() and length.isdecimal()):
        raise _refusal(path, entry, f"has offset {start!r} and length {length!r}")
    if int(start) + int(length) > (file.parent / location).stat().st_size:
        raise _refusal(path, entry, f"ends beyond {location!r}")
