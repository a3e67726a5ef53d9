"""An ONNX file as a model: read as data, checked, and run whole in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from cutset.capture.onnx.inference import make_session, run_session
from cutset.capture.onnx.walk import external_place, external_tensors, graphs_of, operator_fault
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.errors import ModelError


class OnnxModule(torch.nn.Module):
    """An ONNX model as a module: takes its inputs one by one, returns a tuple of its outputs.

    It runs on as many threads as torch computes with at the time of the call.

    Attributes:
        proto: the model, its external tensors left in their files, its local functions inlined.
        folder: where its external tensors lie.
        name: what it is called in messages.
    """

    def __init__(self, proto: Any, folder: Path, name: str) -> None:
        super().__init__()
        self.proto = proto
        self.folder = folder
        self.name = name
        self._sessions: dict[int, Any] = {}

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What the caller gives: the graph's inputs that are not stored in the file."""
        stored = {tensor.name for tensor in self.proto.graph.initializer}
        return tuple(value for value in self.proto.graph.input if value.name not in stored)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Runs the whole model."""
        num_threads = torch.get_num_threads()
        if num_threads not in self._sessions:
            content = self.proto.SerializeToString()
            self._sessions[num_threads] = make_session(content, num_threads, folder=self.folder)
        names = [value.name for value in self.inputs]
        feed = dict(zip(names, map(as_array, inputs), strict=True))
        return tuple(map(as_tensor, run_session(self._sessions[num_threads], feed)))


def read_onnx_file(path: Path) -> OnnxModule:
    """Reads an ONNX file; nothing in it is run.

    Raises:
        ModelError: the file is missing or no ONNX model, needs operators that would have to be
            loaded, or refers to files outside its folder.
    """
    if not path.is_file():
        raise ModelError(f"file {path} does not exist")
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise ModelError(f"file {path} is no ONNX model: {error}") from error
    if not proto.graph.node or not proto.graph.output:
        raise ModelError(f"file {path} is no ONNX model: it computes nothing")
    proto = _with_standard_operators(proto, path)
    for tensor in external_tensors(proto):
        _check_external(tensor, path)
    return OnnxModule(proto, path.parent.resolve(), str(path))


def _with_standard_operators(proto: Any, path: Path) -> Any:
    """The model with its local functions inlined and imports that nothing uses removed."""
    if len(proto.functions):
        proto = onnx.inliner.inline_local_functions(proto)
    used = {node.domain for graph in graphs_of(proto.graph) for node in graph.node}
    kept = [opset for opset in proto.opset_import if opset.domain in used | {"", "ai.onnx"}]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    fault = operator_fault(proto)
    if fault is not None:
        entry, why = fault
        raise ModelError(
            f"file {path}: {entry} {why}; only operators that ONNX Runtime itself brings along can "
            "be run. Export the model with standard operators, or write the part as ONNX functions"
        )
    return proto


def _check_external(tensor: Any, path: Path) -> None:
    """Refuses a tensor outside the file's folder, through a link as well."""
    where = f"file {path}: tensor {tensor.name!r}"
    try:
        location, start, length = external_place(tensor)
    except ValueError as error:
        raise ModelError(f"{where} {error}") from error
    folder = path.parent.resolve()
    if not location or os.path.isabs(location) or "\\" in location:  # noqa: PTH117
        raise ModelError(
            f"{where} lies in {location!r}; expected a file below the model's own folder"
        )
    file = (folder / location).resolve()
    if not file.is_relative_to(folder):
        raise ModelError(
            f"{where} lies in {location!r}, outside the model's folder; move the file beside the "
            "model and save the model again"
        )
    if not file.is_file():
        raise ModelError(f"{where} lies in {location!r}, which does not exist; copy it as well")
    size = file.stat().st_size
    if start + length > size:
        raise ModelError(
            f"{where} takes bytes {start} to {start + length} of {location!r}, which has {size}; "
            "the file was copied in part, or belongs to another model"
        )


def stored_tensor(tensor: Any, folder: Path) -> Any:
    """A copy of a stored tensor with its data in it, read from its file where it lies in one."""
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    if copy.data_location == onnx.TensorProto.EXTERNAL:
        onnx.external_data_helper.load_external_data_for_tensor(copy, str(folder))
    return copy


def names_of(values: Sequence[Any]) -> tuple[str, ...]:
    """Names of graph inputs or outputs."""
    return tuple(value.name for value in values)
