"""From an ONNX model to a graph and its pieces: what `cutset.capture.torch_export` is for torch."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx

from cutset.capture.captured import MODEL_NAME, Captured, PieceFiles, PieceRun
from cutset.capture.onnx.extraction import build_onnx_piece
from cutset.capture.onnx.free_rows import free_rows
from cutset.capture.onnx.inference import run_session
from cutset.capture.onnx.onnx_file import OnnxModule, names_of, save_model
from cutset.capture.onnx.operations import (
    PASSED_ON,
    OnnxOperations,
    list_parameters,
    read_operations,
)
from cutset.capture.onnx.operator_flops import count_onnx_flops
from cutset.capture.onnx.scopes import with_modules
from cutset.capture.onnx.value_shapes import observe_specs, random_rows, shapes_with_one_row
from cutset.capture.onnx.walk import graphs_of, reads_of
from cutset.dtypes import Arrays
from cutset.errors import CaptureError
from cutset.graph.ir import Graph, Operation, made_between
from cutset.tensors import BATCH, TensorSpec

EXAMPLE_ROWS = 2
_RANDOM = frozenset(
    {
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CapturedOnnx(Captured):
    """A captured ONNX model; `Captured` has the words for what it does.

    Attributes:
        reading: which node computes which operation.
        specs: of every value whose shape is known for any number of rows.
        notes: what was changed to capture it, in sentences.
    """

    reading: OnnxOperations
    specs: Mapping[str, TensorSpec]
    notes: tuple[str, ...]

    is_what_runs = True
    no_programs = "a model from an ONNX file has no torch program"

    @property
    def made_with(self) -> dict[str, str]:
        """The version of ONNX Runtime."""
        return {"onnxruntime": importlib.metadata.version("onnxruntime")}

    @contextlib.contextmanager
    def computing(
        self,
        num_threads: int,
        settings: Mapping[str, str] | None = None,  # noqa: ARG002  # torch has no part in it
    ) -> Iterator[None]:
        """Within the context it computes with so many threads."""
        before, self.module.num_threads = self.module.num_threads, num_threads
        try:
            yield
        finally:
            self.module.num_threads = before

    def run_whole(self, inputs: Arrays) -> Arrays:
        """The results of the whole model."""
        results: Arrays = self.module.run(inputs)
        return results

    def piece_run(self, start: int, stop: int, watch: Sequence[TensorSpec] = ()) -> PieceRun:
        """The operations from index `start` up to `stop`, ready to run."""
        proto = build_onnx_piece(self, start, stop, watch=watch)
        session = self.module.session_of(proto)
        taken = names_of(proto.graph.input)
        made = [name.removesuffix(PASSED_ON) for name in names_of(proto.graph.output)]

        def run(inputs: Arrays) -> dict[str, Any]:
            results = run_session(session, dict(zip(taken, inputs, strict=True)))
            return dict(zip(made, results, strict=True))

        return run

    def piece_model(self, start: int, stop: int, *, is_complete: bool) -> tuple[Any, Path | None]:
        """The nodes and stored tensors of a piece."""
        model = build_onnx_piece(self, start, stop, load=is_complete)
        made = {spec.name for spec in made_between(self.graph, start, stop)}
        for output in [value for value in model.graph.output if value.name not in made]:
            model.graph.output.remove(output)
        return model, None if is_complete else self.module.folder

    def stage_writer(
        self,
        inputs: Arrays,  # noqa: ARG002
        boundaries: Sequence[TensorSpec],  # noqa: ARG002
    ) -> CapturedOnnx:
        """Its own: a stage is cut out of the file, whatever the plan."""
        return self

    def write(self, start: int, stop: int, folder: Path) -> PieceFiles:
        """Writes a stage's nodes and stored tensors."""
        model = build_onnx_piece(self, start, stop, load=True)
        save_model(model, folder / MODEL_NAME)
        stored = tuple(parameter.name for parameter in list_parameters(model.graph))
        return PieceFiles(weight_names=stored, model=MODEL_NAME)


def capture_onnx(module: OnnxModule, *, micro_batch_only: int | None = None) -> CapturedOnnx:
    """Captures an ONNX model with a dynamic number of rows, or for one alone.

    Args:
        module: the model.
        micro_batch_only: the only number of rows that micro-batches will have; None for any number,
            unless the file works for its own number only.

    Raises:
        CaptureError: the model is random, a shape of an input is not known, it works for one
            number of rows only, ONNX Runtime cannot run it, or a result has no row per sample.
    """
    _refuse_randomness(module)
    tidy = module.with_proto(_tidied(module.proto))
    rows = free_rows(tidy, micro_batch_only)
    free, inputs, only = rows.module, rows.inputs, rows.micro_batch_only
    specs = {spec.name: spec for spec in inputs} | observe_specs(free, inputs, only)
    proto = free.proto
    outputs = names_of(proto.graph.output)
    reading = read_operations(proto.graph, names_of(free.inputs), outputs, specs)
    shapes = shapes_with_one_row(free, specs)
    operations = tuple(
        _with_shapes(operation, reading, specs, shapes) for operation in reading.operations
    )
    graph = Graph(
        model_class=f"onnx.{proto.graph.name or 'Graph'}",
        inputs=inputs,
        operations=with_modules(operations, reading.nodes),
        outputs=outputs,
        parameters=list_parameters(proto.graph),
    )
    _check_outputs(graph, module)
    return CapturedOnnx(
        graph=graph,
        module=free,
        reading=reading,
        specs=specs,
        example_inputs=random_rows(inputs, only or EXAMPLE_ROWS, seed=0),
        output_names=outputs,
        notes=rows.notes,
        micro_batch_only=only,
    )


def _refuse_randomness(module: OnnxModule) -> None:
    for graph in graphs_of(module.proto.graph):
        for node in graph.node:
            if node.op_type in _RANDOM:
                raise CaptureError(
                    f"{module.name}: node {node.name!r} ({node.op_type}) is random; pieces that "
                    "draw anew can never be proven equal. Export the model in evaluation mode",
                    operation=node.op_type,
                )


def _tidied(proto: Any) -> Any:
    """A copy without nodes that nothing reads, every node under a name of its own."""
    tidy = onnx.ModelProto()
    tidy.CopyFrom(proto)
    needed = set(names_of(tidy.graph.output))
    kept = []
    for node in reversed(tidy.graph.node):
        if needed.intersection(node.output):
            needed.update(reads_of(node))
            kept.append(node)
    nodes = [_copy_of(node) for node in reversed(kept)]
    taken = {name for node in nodes for name in node.output} | set(names_of(tidy.graph.input))
    for index, node in enumerate(nodes):
        name = node.name or f"{node.op_type}_{index}"
        while name in taken:
            name = f"{name}_{index}"
        taken.add(name)
        node.name = name
    del tidy.graph.node[:]
    tidy.graph.node.extend(nodes)
    return tidy


def _copy_of(node: Any) -> Any:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _with_shapes(
    operation: Operation,
    reading: OnnxOperations,
    specs: Mapping[str, TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
) -> Operation:
    """The operation with the specs of its results, where all are known, and its multiply-adds."""
    if operation.target == "getitem":
        found = [specs[operation.name]] if operation.name in specs else []
        return msgspec.structs.replace(operation, outputs=tuple(found))
    names = reading.results[operation.name]
    known = [specs[name] for name in names if name in specs]
    if len(known) != len(names):
        known = []
    if len(known) > 1:
        known = [
            msgspec.structs.replace(spec, name=f"{operation.name}.{index}")
            for index, spec in enumerate(known)
        ]
    return msgspec.structs.replace(
        operation,
        outputs=tuple(known),
        flops=count_onnx_flops(reading.nodes[operation.name], shapes),
    )


def _check_outputs(graph: Graph, module: OnnxModule) -> None:
    stored = {tensor.name for tensor in module.proto.graph.initializer}
    for name in graph.outputs:
        if name in stored:
            raise CaptureError(
                f"{module.name}: result {name!r} is a weight, which is the same for every row; a "
                "pipeline gives one result for each row. Take it out of the model's outputs "
                "(onnx.utils.extract_model with the other outputs), and read it from the file"
            )
        try:
            spec = graph.spec_of(name)
        except KeyError:
            spec = None
        if spec is None or not spec.shape or spec.shape[0] != BATCH:
            raise CaptureError(
                f"result {name!r} ({spec or 'no tensor of a known shape'}) has no row per sample "
                "in its first dimension, so batches cannot be cut into micro-batches. Results that "
                "depend on the values (boxes after suppression) belong behind the model: export it "
                "without that part"
            )
