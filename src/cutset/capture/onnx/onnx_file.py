"""An ONNX file as a model: read as data, checked, and run whole in ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from cutset.capture.onnx.inference import make_session, run_session
from cutset.capture.onnx.walk import external_place, external_tensors, graphs_of, operator_fault
from cutset.data.arrays import Array, to_array
from cutset.data.torch_border import is_tensor, tensor_over
from cutset.dtypes import Arrays
from cutset.errors import ModelError
from cutset.host import num_usable_cores

MAX_INLINE_BYTES = 1 << 25
"""Stored tensors of an ONNX model that together are larger lie in a file beside it: readers map
that into memory, where what lies inside is read, parsed and copied. (Protobuf reads no message of
2 GiB at all.)"""


class OnnxModule:
    """An ONNX model that is run whole: takes its inputs one by one, returns a tuple of its outputs.

    Attributes:
        proto: the model, its external tensors left in their files, its local functions inlined.
        folder: where its external tensors lie.
        name: what it is called in messages.
        num_threads: with how many threads it computes.
    """

    def __init__(self, proto: Any, folder: Path, name: str) -> None:
        self.proto = proto
        self.folder = folder
        self.name = name
        self.num_threads = num_usable_cores()
        self._sessions: dict[int, Any] = {}

    @property
    def inputs(self) -> tuple[Any, ...]:
        """What the caller gives: the graph's inputs that are not stored in the file."""
        stored = {tensor.name for tensor in self.proto.graph.initializer}
        return tuple(value for value in self.proto.graph.input if value.name not in stored)

    def with_proto(self, proto: Any) -> OnnxModule:
        """Another model out of the same file."""
        return OnnxModule(proto, self.folder, self.name)

    def session_of(self, proto: Any, *, is_optimised: bool = True) -> Any:
        """A session of ONNX Runtime for a model made of this one."""
        content = proto.SerializeToString()
        return make_session(content, self.num_threads, folder=self.folder, optimised=is_optimised)

    def run(self, inputs: Arrays) -> Arrays:
        """Runs the whole model."""
        session = self._sessions.get(self.num_threads)
        if session is None:
            session = self._sessions[self.num_threads] = self.session_of(self.proto)
        return run_session(session, dict(zip(names_of(self.inputs), inputs, strict=True)))

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """The same for a caller, who gives and gets arrays, or tensors."""
        results = self.run(tuple(map(to_array, inputs)))
        return tuple(map(tensor_over, results)) if any(map(is_tensor, inputs)) else results


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


def save_model(model: Any, path: Path) -> None:
    """Writes an ONNX model, with large tensors in a file beside it if it needs one.

    Raises:
        OSError: the file cannot be written.
    """
    is_large = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MAX_INLINE_BYTES
    onnx.save(
        model,
        path,
        save_as_external_data=is_large,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
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
