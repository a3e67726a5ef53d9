"""Backends for measuring: they run any piece of a captured model, no bundle needed."""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from cutset.backends.onnx import OnnxProgram, make_session
from cutset.costs.profile import PieceBackend, PieceRunner, eager_piece
from cutset.errors import EngineError
from cutset.graph.capture import export_piece
from cutset.graph.cuts import CutPoints
from cutset.graph.lowering import CapturedModel
from cutset.graph.pieces import boundary_specs, build_piece
from cutset.shards.onnx_export import export_onnx

logger = logging.getLogger(__name__)


def piece_backends(
    captured: CapturedModel, cuts: CutPoints, *, num_threads: int
) -> Mapping[str, PieceBackend]:
    """Every backend that is installed and can run the whole model, by name.

    Args:
        captured: the captured model.
        cuts: its judged positions; pieces begin and end at candidates.
        num_threads: threads that compute.
    """
    backends: dict[str, PieceBackend] = {"torch": eager_piece}
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

    def __call__(self, captured: CapturedModel, start: int, stop: int) -> PieceRunner:
        """A runner for the operations from index `start` up to `stop`."""
        inputs, outputs = boundary_specs(captured, start), boundary_specs(captured, stop)
        passed = {spec.name for spec in inputs} & {spec.name for spec in outputs}
        made = tuple(spec for spec in outputs if spec.name not in passed)
        model = self._extractor.extract_model(
            [spec.name for spec in inputs], [spec.name for spec in made]
        )
        session = make_session(model.SerializeToString(), self._num_threads)
        taken = {node.name for node in session.get_inputs()}
        program = OnnxProgram(session, tuple(s for s in inputs if s.name in taken), made)

        specs = inputs

        def run(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            named = {s.name: t for s, t in zip(specs, inputs, strict=True)}
            results = program(tuple(named[name] for name in named if name in taken))
            named |= {s.name: t for s, t in zip(made, results, strict=True)}
            return tuple(named[spec.name] for spec in outputs)

        return run
