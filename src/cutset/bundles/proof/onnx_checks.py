"""Stages that are ONNX models alone: run in ONNX Runtime, and compared with the manifest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from cutset.bundles.manifest import Manifest, StageEntry
from cutset.bundles.open import Bundle, read_stage_model
from cutset.capture.onnx.inference import make_session, run_session
from cutset.capture.onnx.operations import PASSED_ON, list_parameters, read_operations
from cutset.graph.ir import Graph, Operation


class OnnxStage:
    """A stage's ONNX model, ready to run.

    Attributes:
        model: the checked ``onnx.ModelProto``.
    """

    def __init__(self, bundle: Bundle, index: int) -> None:
        """Reads and checks the model; it is given to ONNX Runtime when it is first run.

        Raises:
            UnsafeBundle: it could load code or files.
            BundleError: the stage has no ONNX model, does not exist or was not opened.
        """
        file, self.model = read_stage_model(bundle, index)
        self._file = str(file)
        self._num_threads = bundle.manifest.num_threads
        self._session: Any = None

    def __call__(self, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """The stage's outputs for `inputs`.

        Raises:
            RuntimeError: ONNX Runtime cannot load or run it.
        """
        try:
            if self._session is None:
                self._session = make_session(self._file, self._num_threads)
            names = [node.name for node in self._session.get_inputs()]
            return run_session(self._session, dict(zip(names, inputs, strict=True)))
        except Exception as error:
            # onnxruntime's errors derive from Exception.
            raise RuntimeError(str(error)) from error


def onnx_faults(manifest: Manifest, stages: Mapping[int, OnnxStage]) -> tuple[str, ...]:
    """Where a stage's nodes and stored tensors are not those that the manifest lists."""
    known = {spec.name for spec in manifest.graph.inputs}
    known |= {op.name for op in manifest.graph.operations if len(op.outputs) == 1}
    faults: list[str] = []
    for index, stage in stages.items():
        entry = manifest.stages[index]
        faults += _operation_faults(manifest.graph, entry, stage.model, known)
        faults += _stored_faults(manifest, entry, stage.model)
    return tuple(faults)


def _operation_faults(
    graph: Graph, entry: StageEntry, model: Any, known: Collection[str]
) -> list[str]:
    """The first difference between a model's nodes and the operations of its stage."""
    given = [spec.name for spec in entry.inputs]
    wanted = [s.name + PASSED_ON if s.name in given else s.name for s in entry.outputs]
    found_inputs = [value.name for value in model.graph.input]
    found_outputs = [value.name for value in model.graph.output]
    if found_inputs != given or found_outputs != wanted:
        fault = f"{entry.model} takes {found_inputs} and returns {found_outputs}, its stage "
        return [f"{fault}{given} and {wanted}"]
    passed = {name for name in wanted if name.removesuffix(PASSED_ON) in given}
    reading = read_operations(model.graph, given, wanted, known)
    found = [op for op in reading.operations if op.name not in passed]
    names = set(entry.operations)
    expected = [operation for operation in graph.operations if operation.name in names]
    for mine, theirs in zip(found, expected, strict=False):
        if _essence(mine) != _essence(theirs):
            return [f"{entry.model} computes {_words(mine)}, where the graph has {_words(theirs)}"]
    if len(found) != len(expected):
        return [f"{entry.model} has {len(found)} operations, its stage lists {len(expected)}"]
    return []


def _essence(operation: Operation) -> tuple[object, ...]:
    return (
        operation.name,
        operation.target,
        frozenset(operation.inputs),
        frozenset(operation.parameters),
    )


def _words(operation: Operation) -> str:
    takes = sorted((*operation.inputs, *operation.parameters))
    return f"{operation.name!r} as {operation.target} of {takes}"


def _stored_faults(manifest: Manifest, entry: StageEntry, model: Any) -> list[str]:
    """Stored tensors of a model against its stage's and the graph's lists."""
    sizes = {parameter.name: parameter for parameter in manifest.graph.parameters}
    found = {parameter.name: parameter for parameter in list_parameters(model.graph)}
    held = set(entry.parameters)
    faults = [f"{entry.model} lacks {name!r}" for name in sorted(held - found.keys())]
    faults += [
        f"{entry.model} holds {name!r}, which its stage does not list"
        for name in sorted(found.keys() - held)
    ]
    faults += [
        f"{entry.model}: {name!r} has {found[name].num_elements} elements in "
        f"{found[name].num_bytes} bytes, the graph says {sizes[name].num_elements} in "
        f"{sizes[name].num_bytes}"
        for name in sorted(held & found.keys())
        if found[name] != sizes[name]
    ]
    total = sum(sizes[name].num_bytes for name in held)
    if total != entry.weight_bytes:
        faults.append(f"stage {entry.index} claims {entry.weight_bytes} weight bytes, has {total}")
    return faults
