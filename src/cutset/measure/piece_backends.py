"""Backends for measuring: they run any piece of a captured model, no bundle needed."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from cutset.backends.base import StageProgram, missing_here
from cutset.backends.onnxruntime import OnnxProgram
from cutset.backends.openvino import OpenvinoProgram, compile_model
from cutset.backends.torch_compiled import compile_module
from cutset.bundles.write.whole_onnx import whole_onnx
from cutset.capture.captured import Captured, boundary_specs
from cutset.capture.lowering import CapturedModel
from cutset.capture.onnx.extraction import build_onnx_piece
from cutset.capture.onnx.inference import make_session
from cutset.capture.onnx.onnx_graph import CapturedOnnx
from cutset.capture.pieces import build_piece
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.errors import EngineError
from cutset.graph.cuts import CutPoints
from cutset.measure.profiling import PieceBackend, PieceRunner, Tensors, eager_pieces
from cutset.tensors import TensorSpec

logger = logging.getLogger(__name__)

Specs: TypeAlias = tuple[TensorSpec, ...]
MakeProgram: TypeAlias = Callable[[Any, Specs, Specs], StageProgram]
"""Makes a program of an ``onnx.ModelProto``, given the contracts of its inputs and outputs."""


def piece_backends(
    captured: Captured, cuts: CutPoints, *, num_threads: int, compiled: bool = False
) -> Mapping[str, PieceBackend]:
    """Every backend that is installed and can run the whole model, by name.

    Args:
        captured: the captured model.
        cuts: its judged positions; pieces begin and end at candidates.
        num_threads: threads that compute.
        compiled: also ``torch-compiled``, which takes half a minute or more.

    Raises:
        EngineError: `compiled` is asked for, and not possible here; says why.
    """
    openvino = functools.partial(_openvino_program, num_threads)
    if isinstance(captured, CapturedOnnx):
        if compiled:
            raise EngineError("a model from an ONNX file has no torch program to compile")
        backends = {"onnxruntime": onnx_file_pieces(captured, num_threads=num_threads)}
        if not missing_here("openvino"):
            backends["openvino"] = _file_pieces(captured, openvino, load=True)
        return _that_agree(captured, backends)
    assert isinstance(captured, CapturedModel)
    backends = {"torch": eager_pieces(captured)}
    if compiled:
        reason = missing_here("torch-compiled")
        if reason:
            raise EngineError(reason)
        backends["torch-compiled"] = compiled_pieces(captured)
    try:
        backends["onnxruntime"] = onnx = OnnxPieces(captured, cuts, num_threads=num_threads)
        if not missing_here("openvino"):
            backends["openvino"] = onnx.through(openvino)
    except EngineError as error:
        logger.warning("onnxruntime is not measured: %s", error)
    return _that_agree(captured, backends)


def _onnx_program(
    num_threads: int, folder: Path | None, model: Any, inputs: Specs, outputs: Specs
) -> StageProgram:
    session = make_session(model.SerializeToString(), num_threads, folder=folder)
    return OnnxProgram(session, inputs, outputs)


def _openvino_program(num_threads: int, model: Any, inputs: Specs, outputs: Specs) -> StageProgram:
    compiled = compile_model(model.SerializeToString(), num_threads)
    return OpenvinoProgram(compiled, inputs, outputs)


class OnnxPieces:
    """Runs pieces in ONNX Runtime, each cut out of one ONNX model of the whole."""

    def __init__(self, captured: CapturedModel, cuts: CutPoints, *, num_threads: int) -> None:
        """Exports the whole model.

        Raises:
            EngineError: ONNX cannot express it; says why.
        """
        self._captured = captured
        self._make = functools.partial(_onnx_program, num_threads, None)
        watched = dict.fromkeys(s for point in cuts.points for s in point.tensors)
        self._whole = whole_onnx(captured, tuple(watched))

    def __call__(self, start: int, stop: int) -> PieceRunner:
        """A runner for the operations from index `start` up to `stop`."""
        return self.through(self._make)(start, stop)

    def through(self, make: MakeProgram) -> PieceBackend:
        """The same pieces, run by the programs that `make` makes."""

        def runner(start: int, stop: int) -> PieceRunner:
            inputs, made = _taken_and_made(self._captured, start, stop)
            model = self._whole.piece(inputs, [spec.name for spec in made])
            return _runner(self._captured, start, stop, model, make)

        return runner


def onnx_file_pieces(captured: CapturedOnnx, *, num_threads: int) -> PieceBackend:
    """Runs pieces of an ONNX file's model in ONNX Runtime."""
    make = functools.partial(_onnx_program, num_threads, captured.module.folder)
    return _file_pieces(captured, make, load=False)


def _file_pieces(captured: CapturedOnnx, make: MakeProgram, *, load: bool) -> PieceBackend:
    def runner(start: int, stop: int) -> PieceRunner:
        _, made = _taken_and_made(captured, start, stop)
        model = build_onnx_piece(captured, start, stop, load=load)
        kept = {spec.name for spec in made}
        # What is only passed on costs nothing; the runner does that.
        for output in [value for value in model.graph.output if value.name not in kept]:
            model.graph.output.remove(output)
        return _runner(captured, start, stop, model, make)

    return runner


def compiled_pieces(captured: CapturedModel) -> PieceBackend:
    """The whole model compiled by inductor, its pieces in eager torch.

    To compile every piece would take minutes. `profile_costs` scales the pieces' seconds so that
    they add up to the whole model's, so a compiled piece is taken to cost the same share of the
    whole as an eager one.
    """
    eager = eager_pieces(captured)
    num_operations = len(captured.graph.operations)

    def runner(start: int, stop: int) -> PieceRunner:
        if (start, stop) != (0, num_operations):
            return eager(start, stop)
        module = build_piece(captured, start, stop)
        compiled: dict[tuple[torch.Size, ...], Callable[[Tensors], Tensors]] = {}

        def run(inputs: Tensors) -> Tensors:
            shapes = tuple(tensor.shape for tensor in inputs)
            if shapes not in compiled:
                compiled[shapes] = compile_module(module, inputs)
            return compiled[shapes](inputs)

        return run

    return runner


def _that_agree(
    captured: Captured, backends: Mapping[str, PieceBackend]
) -> dict[str, PieceBackend]:
    """Those whose numbers for the example are the first one's, within the stated tolerance.

    A bundle's verification proves torch's and ONNX Runtime's numbers, stage by stage; this is the
    only look at those of the other backends, so a plan names none that was not seen to agree.
    """
    from cutset.bundles.proof.torch.running_checks import max_abs_difference, tolerance_of

    reference, *_ = backends
    expected: tuple[torch.Tensor, ...] = ()
    kept: dict[str, PieceBackend] = {}
    for name, pieces in backends.items():
        if name not in (reference, "onnxruntime"):
            whole = (0, len(captured.graph.operations))
            with torch.inference_mode():
                expected = expected or backends[reference](*whole)(captured.example_inputs)
                try:
                    outputs = pieces(*whole)(captured.example_inputs)
                except Exception as error:  # noqa: BLE001 - a runtime's errors derive from it
                    logger.warning("%s is not measured: %s", name, error)
                    continue
            worst = max(
                max_abs_difference(a, b) - tolerance_of(b)
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
    captured: Captured, start: int, stop: int, model: Any, make: MakeProgram
) -> PieceRunner:
    """Runs an ONNX model whose inputs and outputs go by the names of the graph's tensors."""
    specs, made = _taken_and_made(captured, start, stop)
    outputs = boundary_specs(captured, stop)
    taken = {value.name for value in model.graph.input}
    program = make(model, tuple(s for s in specs if s.name in taken), made)

    def run(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        named = {s.name: t for s, t in zip(specs, inputs, strict=True)}
        results = program(tuple(as_array(named[name]) for name in named if name in taken))
        named |= {s.name: as_tensor(array) for s, array in zip(made, results, strict=True)}
        return tuple(named[spec.name] for spec in outputs)

    return run
