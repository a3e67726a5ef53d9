"""Backends for measuring: they run any piece of a captured model, no bundle needed."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from cutset.backends.base import Computation, ModelBackend, ProgramBackend, Specs
from cutset.backends.selection import REFERENCE_BACKEND, get_backend, usable_backends
from cutset.bundles.proof.results import BACKENDS as VERIFIED
from cutset.capture.captured import Captured, boundary_specs
from cutset.capture.lowering import CapturedModel
from cutset.capture.onnx.extraction import build_onnx_piece
from cutset.capture.onnx.onnx_graph import CapturedOnnx
from cutset.capture.pieces import build_piece
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.capture.whole_onnx import whole_onnx
from cutset.errors import EngineError
from cutset.graph.cuts import CutPoints
from cutset.measure.profiling import PieceBackend, PieceRunner, Tensors, eager_pieces

logger = logging.getLogger(__name__)


def piece_backends(
    captured: Captured, cuts: CutPoints, *, num_threads: int, also: Collection[str] = ()
) -> Mapping[str, PieceBackend]:
    """Every backend that lacks nothing here and can run the whole model, by its full name.

    Args:
        captured: the captured model.
        cuts: its judged positions; pieces begin and end at candidates.
        num_threads: threads that compute.
        also: names of backends that take longer than a few seconds to load and are wanted all the
            same; with any name in it that is not possible here, nothing is measured.

    Raises:
        EngineError: one of `also` is not possible here; says why.
    """
    for name in also:
        backend = get_backend(name)
        reason = backend.missing()
        if isinstance(backend, ProgramBackend) and isinstance(captured, CapturedOnnx):
            reason = f"a model from an ONNX file has no torch program for {name}"
        if reason:
            raise EngineError(reason)
    chosen = [each for each in usable_backends() if each.is_quick or each.full_name in also]
    programs = [each for each in chosen if isinstance(each, ProgramBackend)]
    models = [each for each in chosen if isinstance(each, ModelBackend)]
    if isinstance(captured, CapturedOnnx):
        found = {
            each.full_name: onnx_file_pieces(captured, each, num_threads=num_threads)
            for each in models
        }
        return _that_agree(captured, found)
    assert isinstance(captured, CapturedModel)
    found = {each.full_name: program_pieces(captured, each) for each in programs}
    try:
        onnx = OnnxPieces(captured, cuts)
        found |= {each.full_name: onnx.through(each, num_threads=num_threads) for each in models}
    except EngineError as error:
        names = " and ".join(each.full_name for each in models)
        logger.warning("%s: not measured: %s", names, error)
    return _that_agree(captured, found)


def program_pieces(captured: CapturedModel, backend: ProgramBackend) -> PieceBackend:
    """Runs pieces as a backend runs a stage's torch program.

    Of one that does not load quickly the whole model alone; its pieces run in eager torch. To load
    every piece would take minutes, and `profile_costs` scales the pieces' seconds so that they add
    up to the whole model's: a piece is taken to cost the same share of the whole as an eager one.
    """
    eager = eager_pieces(captured)
    num_operations = len(captured.graph.operations)
    if backend.full_name == REFERENCE_BACKEND:
        return eager  # that is what it is, without the way through arrays

    def runner(start: int, stop: int) -> PieceRunner:
        if not backend.is_quick and (start, stop) != (0, num_operations):
            return eager(start, stop)
        module = build_piece(captured, start, stop)
        loaded: dict[tuple[torch.Size, ...], Computation] = {}

        def run(inputs: Tensors) -> Tensors:
            shapes = tuple(tensor.shape for tensor in inputs)
            if shapes not in loaded:
                loaded[shapes] = backend.load_module(module, inputs)
            return tuple(map(as_tensor, loaded[shapes](tuple(map(as_array, inputs)))))

        return run

    return runner


class OnnxPieces:
    """Pieces as ONNX models, each cut out of one of the whole."""

    def __init__(self, captured: CapturedModel, cuts: CutPoints) -> None:
        """Exports the whole model.

        Raises:
            EngineError: ONNX cannot express it; says why.
        """
        self._captured = captured
        watched = dict.fromkeys(s for point in cuts.points for s in point.tensors)
        self._whole = whole_onnx(captured, tuple(watched))

    def through(self, backend: ModelBackend, *, num_threads: int) -> PieceBackend:
        """Runs the pieces in a backend."""

        def runner(start: int, stop: int) -> PieceRunner:
            inputs, made = _taken_and_made(self._captured, start, stop)
            model = self._whole.piece(inputs, [spec.name for spec in made])
            return _runner(self._captured, start, stop, model, backend, num_threads)

        return runner


def onnx_file_pieces(
    captured: CapturedOnnx, backend: ModelBackend, *, num_threads: int
) -> PieceBackend:
    """Runs pieces of an ONNX file's model in a backend."""
    folder = captured.module.folder if backend.reads_folder else None

    def runner(start: int, stop: int) -> PieceRunner:
        _, made = _taken_and_made(captured, start, stop)
        model = build_onnx_piece(captured, start, stop, load=not backend.reads_folder)
        kept = {spec.name for spec in made}
        # What is only passed on costs nothing; the runner does that.
        for output in [value for value in model.graph.output if value.name not in kept]:
            model.graph.output.remove(output)
        return _runner(captured, start, stop, model, backend, num_threads, folder)

    return runner


def _that_agree(
    captured: Captured, backends: Mapping[str, PieceBackend]
) -> dict[str, PieceBackend]:
    """Those whose numbers for the example are the first one's, within the stated tolerance.

    A bundle's verification proves torch's and ONNX Runtime's numbers, stage by stage; this is the
    only look at those of the other backends, so a plan names none that was not seen to agree.
    """
    from cutset.differences import max_abs_difference, tolerance_of

    reference, *_ = backends
    expected: tuple[torch.Tensor, ...] = ()
    kept: dict[str, PieceBackend] = {}
    for name, pieces in backends.items():
        if name != reference and name not in VERIFIED:
            whole = (0, len(captured.graph.operations))
            with torch.inference_mode():
                expected = expected or backends[reference](*whole)(captured.example_inputs)
                try:
                    outputs = pieces(*whole)(captured.example_inputs)
                except Exception as error:  # noqa: BLE001 - a runtime's errors derive from it
                    logger.warning("%s is not measured: %s", name, error)
                    continue
            worst = max(
                max_abs_difference(as_array(a), as_array(b)) - tolerance_of(as_array(b))
                for a, b in zip(outputs, expected, strict=True)
            )
            if not worst <= 0:
                logger.warning("%s is not measured: its numbers are %g too far off", name, worst)
                continue
        kept[name] = pieces
    return kept


def _taken_and_made(captured: Captured, start: int, stop: int) -> tuple[Specs, Specs]:
    """What a piece takes, and what of its outputs it does not merely pass on."""
    inputs, outputs = boundary_specs(captured, start), boundary_specs(captured, stop)
    passed = {spec.name for spec in inputs}
    return inputs, tuple(spec for spec in outputs if spec.name not in passed)


def _runner(
    captured: Captured,
    start: int,
    stop: int,
    model: Any,
    backend: ModelBackend,
    num_threads: int,
    folder: Path | None = None,
) -> PieceRunner:
    """Runs an ONNX model whose inputs and outputs go by the names of the graph's tensors."""
    specs, made = _taken_and_made(captured, start, stop)
    outputs = boundary_specs(captured, stop)
    taken = {value.name for value in model.graph.input}
    program = backend.load_model(
        model.SerializeToString(),
        tuple(spec for spec in specs if spec.name in taken),
        made,
        num_threads=num_threads,
        folder=folder,
    )

    def run(inputs: Tensors) -> Tensors:
        named = {s.name: t for s, t in zip(specs, inputs, strict=True)}
        results = program(tuple(as_array(named[name]) for name in named if name in taken))
        named |= {s.name: as_tensor(array) for s, array in zip(made, results, strict=True)}
        return tuple(named[spec.name] for spec in outputs)

    return run
