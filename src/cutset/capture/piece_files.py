"""The files of a stage of a model that torch captured: a torch program, and an ONNX model."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch

from cutset.capture.captured import MODEL_NAME, PieceFiles
from cutset.capture.onnx.inference import ELEMENT_TYPES, make_session, run_session
from cutset.capture.onnx.onnx_file import save_model
from cutset.capture.onnx_export import export_onnx
from cutset.capture.pieces import Piece, build_piece, export_piece
from cutset.capture.torch_arrays import as_array
from cutset.capture.whole_onnx import whole_onnx
from cutset.differences import max_abs_difference, tolerance_of
from cutset.errors import EngineError
from cutset.printable import first_line
from cutset.tensors import TensorSpec

if TYPE_CHECKING:
    from cutset.capture.captured_model import CapturedModel

logger = logging.getLogger(__name__)

PROGRAM_NAME = "program.pt2"

_Tensors: TypeAlias = tuple[torch.Tensor, ...]


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

    def write(self, start: int, stop: int, folder: Path) -> PieceFiles:
        """Computes the stage's outputs from those of the stages before, and writes it."""
        piece = build_piece(self._captured, start, stop)
        inputs = tuple(self._tensors[spec.name] for spec in piece.input_specs)
        with torch.no_grad():
            outputs = piece(*inputs)
        self._tensors |= {s.name: t for s, t in zip(piece.output_specs, outputs, strict=True)}
        is_free = self._captured.micro_batch_only is None
        exported = export_piece(piece, inputs, is_free=is_free)
        # Example inputs would be stored pickled; the reference tensors serve instead.
        exported.example_inputs = None
        # Contracts are checked by the runtime; guards would be code.
        exported._guards_code = []
        _write_program(exported, folder / PROGRAM_NAME)
        missing = _dtype_obstacle((*piece.input_specs, *piece.output_specs))
        if not missing and not self._cut_out(piece, folder / MODEL_NAME, inputs, outputs):
            missing = export_onnx(
                exported,
                folder / MODEL_NAME,
                input_names=[spec.name for spec in piece.input_specs],
                output_names=[spec.name for spec in piece.output_specs],
            )
            missing = missing or _kept_if_equal(folder / MODEL_NAME, inputs, outputs)
        return PieceFiles(
            weight_names=piece.weight_names,
            program=PROGRAM_NAME,
            model=None if missing else MODEL_NAME,
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
        reason = first_line(error).replace(str(path), path.name)
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


class _PatientFile(io.RawIOBase):
    """A file for torch's archive writer, whose destructor ends the process where it meets an error.

    So it is told of none; the first is kept.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)  # to the beginning, when all is written

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)


def _write_program(exported: torch.export.ExportedProgram, path: Path) -> None:
    with path.open("wb") as file:
        patient = _PatientFile(file)
        torch.export.save(exported, cast(IO[bytes], patient))
    if patient.error is not None:
        raise patient.error
