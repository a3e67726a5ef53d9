"""Writes the programs of stages: one kind for what torch captured, one for ONNX files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch

from cutset.bundles.manifest import StageEntry
from cutset.bundles.reading.torch.operators import is_allowed
from cutset.capture.captured import Captured, boundary_specs
from cutset.capture.lowering import CapturedModel
from cutset.capture.onnx.extraction import build_onnx_piece
from cutset.capture.onnx.inference import ELEMENT_TYPES, make_session, run_session
from cutset.capture.onnx.onnx_graph import CapturedOnnx
from cutset.capture.onnx.operations import list_parameters
from cutset.capture.onnx_export import export_onnx, save_model
from cutset.capture.pieces import Piece, build_piece
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.capture.torch_export import export_piece
from cutset.capture.whole_onnx import whole_onnx
from cutset.costs.cost_model import live_bytes
from cutset.differences import max_abs_difference, tolerance_of
from cutset.errors import BundleError, EngineError
from cutset.planning.plan import StagePlan
from cutset.tensors import TensorSpec

logger = logging.getLogger(__name__)

_Tensors: TypeAlias = tuple[torch.Tensor, ...]


class StageWriter(Protocol):
    """Writes the stages of one captured model."""

    def write(self, stage: StagePlan, folder: Path) -> StageEntry:
        """Writes a stage into its folder ``stage-K`` below `folder`, which exists."""


class TorchStageWriter:
    """Writes a torch program, and an ONNX model where ONNX can express it."""

    def __init__(
        self,
        captured: CapturedModel,
        inputs: Sequence[torch.Tensor],
        boundaries: Sequence[TensorSpec],
    ) -> None:
        self._captured = captured
        self._boundaries = tuple(boundaries)
        specs = captured.graph.inputs
        self._tensors = {s.name: t for s, t in zip(specs, inputs, strict=True)}

    def write(self, stage: StagePlan, folder: Path) -> StageEntry:
        """Computes the stage's outputs from those of the stages before, and writes it."""
        piece = build_piece(self._captured, stage.start, stage.stop)
        inputs = tuple(self._tensors[spec.name] for spec in piece.input_specs)
        with torch.no_grad():
            outputs = piece(*inputs)
        self._tensors |= {s.name: t for s, t in zip(piece.output_specs, outputs, strict=True)}
        is_free = self._captured.micro_batch_only is None
        exported = export_piece(piece, inputs, is_free=is_free)
        program, model = f"stage-{stage.index}/program.pt2", f"stage-{stage.index}/model.onnx"
        # Example inputs would be stored pickled; the reference tensors serve instead.
        exported.example_inputs = None
        # Contracts are checked by the runtime; guards would be code.
        exported._guards_code = []
        _write_program(exported, folder / program)
        missing = _dtype_obstacle((*piece.input_specs, *piece.output_specs))
        if not missing and not self._cut_out(piece, folder / model, inputs, outputs):
            missing = export_onnx(
                exported,
                folder / model,
                input_names=[spec.name for spec in piece.input_specs],
                output_names=[spec.name for spec in piece.output_specs],
            )
            missing = missing or _kept_if_equal(folder / model, inputs, outputs)
        return _entry(
            self._captured,
            stage,
            parameters=piece.weight_names,
            program=program,
            model=None if missing else model,
            model_missing=missing,
        )

    def _cut_out(self, piece: Piece, path: Path, inputs: _Tensors, outputs: _Tensors) -> bool:
        """Writes the stage's part of the whole model's ONNX form; False where that cannot be.

        A stage by itself may do where the whole does not: another one has what ONNX lacks, or the
        exporter has merged what both compute.
        """
        try:
            whole = whole_onnx(self._captured, self._boundaries)
            model = whole.stage(piece.input_specs, piece.output_specs)
        except EngineError as error:
            logger.info("%s is exported by itself: %s", path.parent.name, error)
            return False
        save_model(model, path)
        missing = _kept_if_equal(path, inputs, outputs)
        if missing:
            logger.info("%s is exported by itself: %s", path.parent.name, missing)
        return not missing


class OnnxStageWriter:
    """Cuts ONNX models out of the one that was captured."""

    def __init__(self, captured: CapturedOnnx) -> None:
        self._captured = captured

    def write(self, stage: StagePlan, folder: Path) -> StageEntry:
        """Writes the stage's nodes and stored tensors."""
        model = build_onnx_piece(self._captured, stage.start, stage.stop, load=True)
        path = f"stage-{stage.index}/model.onnx"
        save_model(model, folder / path)
        return _entry(
            self._captured,
            stage,
            parameters=tuple(parameter.name for parameter in list_parameters(model.graph)),
            program=None,
            model=path,
            model_missing="",
        )


def boundary_tensors(
    captured: Captured, boundaries: Sequence[TensorSpec], inputs: Sequence[torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of some boundaries, by name, as the captured model makes them when run whole.

    Args:
        captured: the captured model.
        boundaries: tensors that are made in it.
        inputs: in the order of the graph's inputs; they are not changed.
    """
    names = [spec.name for spec in boundaries]
    if not names:
        return {}
    stop = len(captured.graph.operations)
    if isinstance(captured, CapturedOnnx):
        proto = build_onnx_piece(captured, 0, stop, watch=boundaries)
        session = make_session(
            proto.SerializeToString(), torch.get_num_threads(), folder=captured.module.folder
        )
        feed = {s.name: as_array(t) for s, t in zip(captured.graph.inputs, inputs, strict=True)}
        arrays = run_session(session, feed, names)
        return {name: as_tensor(array) for name, array in zip(names, arrays, strict=True)}
    assert isinstance(captured, CapturedModel)
    piece = build_piece(captured, 0, stop, watch=boundaries)
    with torch.no_grad():
        results = piece(*(tensor.clone() for tensor in inputs))
    made = {s.name: t for s, t in zip(piece.output_specs, results, strict=True)}
    return {name: made[name] for name in names}


def _entry(
    captured: Captured,
    stage: StagePlan,
    *,
    parameters: tuple[str, ...],
    program: str | None,
    model: str | None,
    model_missing: str,
) -> StageEntry:
    graph = captured.graph
    operations = graph.operations[stage.start : stage.stop]
    sizes = {parameter.name: parameter.num_bytes for parameter in graph.parameters}
    return StageEntry(
        index=stage.index,
        operations=tuple(operation.name for operation in operations),
        units=stage.units,
        parameters=parameters,
        inputs=boundary_specs(captured, stage.start),
        outputs=boundary_specs(captured, stage.stop),
        program=program,
        model=model,
        model_missing=model_missing,
        weight_bytes=sum(sizes[name] for name in parameters),
        peak_activation_bytes=max(live_bytes(graph)[stage.start : stage.stop]),
        flops=sum(operation.flops for operation in operations),
    )


def check_operations(captured: CapturedModel) -> None:
    """Refuses a model that nobody could load: a bundle may name well-known operations only.

    Raises:
        BundleError: an operation is not on the list; says where it is.
    """
    for operation in captured.graph.operations:
        if operation.target != "getitem" and not is_allowed(f"torch.ops.{operation.target}"):
            where = f" in {operation.modules[-1].path}" if operation.modules[-1].path else ""
            line = f" ({operation.source})" if operation.source else ""
            raise BundleError(
                f"operation {operation.target}{where}{line} may not be part of a bundle: it is "
                "random, custom or unknown, and whoever loads the bundle would have to trust it. "
                "Replace it in the model's forward"
            )


def _dtype_obstacle(specs: Sequence[TensorSpec]) -> str:
    """Why a stage with these boundaries gets no ONNX model, or ``""``."""
    unknown = dict.fromkeys(spec.dtype for spec in specs if spec.dtype not in ELEMENT_TYPES)
    return f"ONNX Runtime has no tensors of dtype {', '.join(unknown)}" if unknown else ""


def _kept_if_equal(
    path: Path, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]
) -> str:
    """Runs an ONNX model, and removes it where ONNX Runtime cannot, or comes to other numbers.

    ONNX can express more than ONNX Runtime has kernels for (bfloat16 on processors), and a model
    that feeds its results back into itself (optical flow in twelve updates) magnifies last bits
    beyond what another backend may differ by.

    Returns:
        Why it was removed, or ``""``.
    """
    try:
        session = make_session(str(path), torch.get_num_threads())
        names = [argument.name for argument in session.get_inputs()]
        found = run_session(session, dict(zip(names, map(as_array, inputs), strict=True)))
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors derive from Exception
        # The folder's name is the author's business and has no place in a bundle.
        reason = _first_line(error).replace(str(path), path.name)
        missing = f"ONNX Runtime cannot run it: {reason}"
    else:
        missing = _difference_from(outputs, found)
    if missing:
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)
    return missing


def _difference_from(expected: Sequence[torch.Tensor], found: Sequence[np.ndarray]) -> str:
    """In words, where ONNX Runtime is off by more than it may be, or ``""``."""
    for ours, theirs in zip(map(as_array, expected), found, strict=True):
        off_by, allowed = max_abs_difference(theirs, ours), tolerance_of(ours)
        if off_by > allowed:
            return f"ONNX Runtime's results are off by {off_by:.3g}, allowed {allowed:.3g}"
    return ""


def _write_program(exported: torch.export.ExportedProgram, path: Path) -> None:
    try:
        torch.export.save(exported, path)
    except RuntimeError as error:
        # torch's archive writer reports a full disk this way.
        raise OSError(None, f"torch could not write {path.name} ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
