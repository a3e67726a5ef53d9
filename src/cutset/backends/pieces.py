"""Backends for measuring: they run any piece of a captured model, no bundle needed."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cutset.backends.onnx import OnnxProgram
from cutset.costs.profile import PieceBackend, PieceRunner, eager_pieces
from cutset.errors import EngineError
from cutset.graph.capture import export_piece
from cutset.graph.captured import Captured, boundary_specs
from cutset.graph.cuts import CutPoints
from cutset.graph.lowering import CapturedModel
from cutset.graph.onnx_capture import CapturedOnnx
from cutset.graph.onnx_pieces import build_onnx_piece
from cutset.graph.onnx_session import make_session
from cutset.graph.pieces import build_piece
from cutset.shards.onnx_export import export_onnx
from cutset.tensors import TensorSpec

logger = logging.getLogger(__name__)


def piece_backends(
    captured: Captured, cuts: CutPoints, *, num_threads: int
) -> Mapping[str, PieceBackend]:
    """Every backend that is installed and can run the whole model, by name.

    Args:
        captured: the captured model.
        cuts: its judged positions; pieces begin and end at candidates.
        num_threads: threads that compute.
    """
    if isinstance(captured, CapturedOnnx):
        return {"onnxruntime": onnx_file_pieces(captured, num_threads=num_threads)}
    assert isinstance(captured, CapturedModel)
    backends: dict[str, PieceBackend] = {"torch": eager_pieces(captured)}
    if importlib.util.find_spec("onnxruntime") is not None:
        try:
            backends["onnxruntime"] = OnnxPieces(captured, cuts, num_threads=num_threads)
        except EngineError as error:
            logger.warning("onnxruntime is not measured: %s", error)
    return backends


class OnnxPieces:
    """Runs pieces in ONNX Runtime, each cut out of one ONNX model of the whole."""

    def __init__(self, captured: CapturedModel, cuts: CutPoints, *, num_threads: int) -> None:
        """Exports the whole model.

        Raises:
            EngineError: ONNX cannot express it; says why.
        """
        import onnx

        self._captured = captured
        self._num_threads = num_threads
        watched = {s.name: s for point in cuts.points for s in point.tensors}
        watched = {n: s for n, s in watched.items() if s not in captured.graph.inputs}
        stop = len(captured.graph.operations)
        piece = build_piece(captured, 0, stop, watch=tuple(watched.values()))
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            exported = export_piece(piece, captured.example_inputs)
            path = Path(folder) / "whole.onnx"
            missing = export_onnx(
                exported,
                path,
                input_names=[spec.name for spec in piece.input_specs],
                output_names=[spec.name for spec in piece.output_specs],
            )
            if missing:
                raise EngineError(f"the model has no ONNX form: {missing}")
            self._extractor = onnx.utils.Extractor(onnx.load(path))

    def __call__(self, start: int, stop: int) -> PieceRunner:
        """A runner for the operations from index `start` up to `stop`."""
        inputs, made = _taken_and_made(self._captured, start, stop)
        model = self._extractor.extract_model(
            [spec.name for spec in inputs], [spec.name for spec in made]
        )
        session = make_session(model.SerializeToString(), self._num_threads)
        return _runner(self._captured, start, stop, session)


def onnx_file_pieces(captured: CapturedOnnx, *, num_threads: int) -> PieceBackend:
    """Runs pieces of an ONNX file's model in ONNX Runtime."""

    def runner(start: int, stop: int) -> PieceRunner:
        _, made = _taken_and_made(captured, start, stop)
        model = build_onnx_piece(captured, start, stop)
        kept = {spec.name for spec in made}
        # What is only passed on costs nothing; the runner does that.
        for output in [value for value in model.graph.output if value.name not in kept]:
            model.graph.output.remove(output)
        content = model.SerializeToString()
        session = make_session(content, num_threads, folder=captured.module.folder)
        return _runner(captured, start, stop, session)

    return runner


def _taken_and_made(
    captured: Captured, start: int, stop: int
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What a piece takes, and what of its outputs it does not merely pass on."""
    inputs, outputs = boundary_specs(captured, start), boundary_specs(captured, stop)
    passed = {spec.name for spec in inputs}
    return inputs, tuple(spec for spec in outputs if spec.name not in passed)


def _runner(captured: Captured, start: int, stop: int, session: Any) -> PieceRunner:
    """Runs a session whose inputs and outputs go by the names of the graph's tensors."""
    specs, made = _taken_and_made(captured, start, stop)
    outputs = boundary_specs(captured, stop)
    taken = {node.name for node in session.get_inputs()}
    program = OnnxProgram(session, tuple(s for s in specs if s.name in taken), made)

    def run(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        named = {s.name: t for s, t in zip(specs, inputs, strict=True)}
        results = program(tuple(named[name] for name in named if name in taken))
        named |= {s.name: t for s, t in zip(made, results, strict=True)}
        return tuple(named[spec.name] for spec in outputs)

    return run
