"""manifest.json, the contract of a bundle: its specification, reading and writing."""

from __future__ import annotations

import msgspec

from cutset.graph.ir import Graph
from cutset.images import Preprocessing
from cutset.planning.plan import Plan
from cutset.tensors import TensorSpec

BUNDLE_FORMAT = "cutset-bundle/1"


class FileEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of the bundle: relative POSIX path, size in bytes, sha256 in lower-case hex."""

    path: str
    num_bytes: int
    sha256: str


class StageEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage of the bundle.

    Attributes:
        index: its place in the pipeline, from 0.
        operations: names of its operations in the graph, in execution order.
        units: paths of the units that it holds.
        parameters: original names of the parameters, buffers and constants that it holds.
        inputs: the tensors that it takes, in the order of its program's arguments.
        outputs: the tensors that it returns, in the order of its program's results.
        program: path of the torch program (``stage-0/program.pt2``).
        model: path of the ONNX model (``stage-0/model.onnx``), or None where ONNX cannot
            express the stage; then `model_missing` says why.
        model_missing: why there is no ONNX model, or "".
        weight_bytes: bytes of what `parameters` names.
        peak_activation_bytes: most bytes of activations alive at once, for one row.
        flops: multiply-adds for one row.
    """

    index: int
    operations: tuple[str, ...]
    units: tuple[str, ...]
    parameters: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    program: str
    model: str | None
    model_missing: str
    weight_bytes: int
    peak_activation_bytes: int
    flops: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole contract.

    Attributes:
        format: ``"cutset-bundle/1"``.
        created_by: versions of what wrote the bundle, e.g. ``{"cutset": "0.1.0", "torch": ...}``.
        model: the model's name as it was given, e.g. ``"torchvision:resnet50"``.
        weights: where the weights came from, in words.
        keep: classes that the caller made units.
        divide: classes that the caller allowed to be cut between their children.
        max_tensors: how many tensors were allowed to cross a cut.
        graph: the whole captured model; `verify` judges the cuts by it.
        stages: in pipeline order.
        outputs: the model's outputs, in order, by their tensors' names.
        output_names: how the caller knows the outputs: keys of a dict, or ``"0"``, ``"1"``, ...
        shared_parameters: parameters that several stages hold.
        unused_parameters: parameters that no stage uses (auxiliary heads that only train).
        plan: the plan that made the stages.
        preprocessing: how images become rows, or None.
        labels: names of the classes, by index of the output's last dimension, or None.
        reference: path of the reference tensors.
        num_threads: threads with which the reference tensors were computed.
        files: every other file of the bundle; nothing else may be in the folder.
    """

    format: str
    created_by: dict[str, str]
    model: str
    weights: str
    keep: tuple[str, ...]
    divide: tuple[str, ...]
    max_tensors: int
    graph: Graph
    stages: tuple[StageEntry, ...]
    outputs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]
    shared_parameters: tuple[str, ...]
    unused_parameters: tuple[str, ...]
    plan: Plan
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    reference: str
    num_threads: int
    files: tuple[FileEntry, ...]
