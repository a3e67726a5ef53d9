"""A model that torch captured: its graph as plain data, and its pieces for whoever runs them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.fx import Graph as FxGraph
from torch.utils import _pytree as pytree

from cutset.capture.arguments import untouched
from cutset.capture.captured import Captured, Parting, PieceRun
from cutset.capture.number_of_rows import find_parting
from cutset.capture.piece_files import TorchStageWriter
from cutset.capture.pieces import Piece, build_piece
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.capture.torch_settings import computing_as, current_settings
from cutset.capture.whole_onnx import whole_onnx
from cutset.dtypes import Arrays
from cutset.errors import EngineError
from cutset.graph.ir import boundary_specs, made_between
from cutset.tensors import TensorSpec


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CapturedModel(Captured):
    """A captured model of torch; `Captured` has the words for what it does.

    Attributes:
        program: the functional torch.fx graph; its placeholders are the model's inputs and
            weights.
        weights: the tensors behind the weight placeholders, by placeholder name; values are the
            parameter's original name and the tensor.
        arguments: all leaves of the model's arguments, tensors or not, and how they are nested.
        leaf_of_input: where each input of the graph stands among the leaves.
        result_spec: how the model nests its results.
        leaf_of_output: where each output of the graph stands among the results' leaves.
    """

    program: FxGraph
    weights: Mapping[str, tuple[str, torch.Tensor]]
    arguments: tuple[tuple[Any, ...], pytree.TreeSpec]
    leaf_of_input: tuple[int, ...]
    result_spec: pytree.TreeSpec
    leaf_of_output: tuple[int, ...]

    is_what_runs = False
    no_programs = ""

    def call(self, model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
        """Calls the whole model with the graph's flat inputs, nested as its forward wants them.

        An argument that the graph does not read keeps its example's value.
        """
        leaves, spec = list(self.arguments[0]), self.arguments[1]
        num_rows = inputs[0].shape[0]
        leaves = [leaf_with_rows(leaf, num_rows) for leaf in leaves]
        for position, tensor in zip(self.leaf_of_input, inputs, strict=True):
            leaves[position] = tensor
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        with unfused():
            return model(*args, **kwargs)

    def nest(self, outputs: Sequence[torch.Tensor]) -> Any:
        """The graph's flat outputs, nested as the model returns them, with its Nones."""
        leaves: list[Any] = [None] * self.result_spec.num_leaves
        for position, tensor in zip(self.leaf_of_output, outputs, strict=True):
            leaves[position] = tensor
        return pytree.tree_unflatten(leaves, self.result_spec)

    @property
    def settings(self) -> dict[str, str]:
        """This process's settings of torch."""
        return current_settings()

    @property
    def made_with(self) -> dict[str, str]:
        """The version of torch."""
        return {"torch": str(torch.__version__)}

    def computing(
        self, num_threads: int, settings: Mapping[str, str] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Within the context torch computes so, in this process."""
        return computing_as(settings, num_threads)

    def run_whole(self, inputs: Arrays) -> Arrays:
        """The model's own results."""
        with torch.no_grad():
            # Copies, since a model may write to its inputs.
            results = self.call(self.module, tuple(as_tensor(array).clone() for array in inputs))
        leaves = pytree.tree_leaves(results)
        return tuple(as_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))

    def untouched(self) -> contextlib.AbstractContextManager[None]:
        """After the context the module has the attributes and the buffers that it had before."""
        return untouched(self.module)

    def kept(self) -> dict[str, object]:
        """What could change between two calls: plain attributes, and versions of tensors."""
        found: dict[str, object] = {}
        for path, module in self.module.named_modules():
            prefix = f"{path}." if path else ""
            for name, value in (*vars(module).items(), *module.named_buffers(recurse=False)):
                if isinstance(value, torch.Tensor):
                    version = 0 if value.is_inference() else value._version
                    found[prefix + name] = (id(value), version)
                elif isinstance(value, (int, float, str, type(None))):
                    found[prefix + name] = value
                elif isinstance(value, (tuple, list)):
                    found[prefix + name] = tuple(map(id, value))
        return found

    def find_parting(
        self, rows_of: Callable[[int], Arrays], several: int, other: int
    ) -> Parting | None:
        """The line of the model's code that decides by the number of rows, if one does."""
        # Made before: the lines that make them are none of the model's.
        rows = {count: tuple(map(as_tensor, rows_of(count))) for count in (several, other)}

        def run(num_rows: int) -> object:
            return self.call(self.module, rows[num_rows])

        return find_parting(self.module, run, several, other)

    def piece_run(self, start: int, stop: int, watch: Sequence[TensorSpec] = ()) -> PieceRun:
        """The operations from index `start` up to `stop`, ready to run."""
        piece = build_piece(self, start, stop, watch=watch)

        def run(inputs: Arrays) -> dict[str, Any]:
            with torch.no_grad():
                outputs = piece(*(as_tensor(array).clone() for array in inputs))
            return {s.name: as_array(t) for s, t in zip(piece.output_specs, outputs, strict=True)}

        return run

    def piece_module(self, start: int, stop: int) -> Piece:
        """A piece as a module of torch."""
        return build_piece(self, start, stop)

    def no_models(self, ends: Sequence[TensorSpec]) -> str:
        """Why its pieces have no ONNX model; tried at the first call, and again for other ends."""
        try:
            whole_onnx(self, ends)
        except EngineError as error:
            return str(error)
        return ""

    def piece_model(
        self,
        start: int,
        stop: int,
        *,
        is_complete: bool,  # noqa: ARG002  # there is nowhere else that its weights could be
    ) -> tuple[Any, Path | None]:
        """A piece, cut out of the one ONNX model of the whole."""
        given, made = boundary_specs(self.graph, start), made_between(self.graph, start, stop)
        whole = whole_onnx(self, (*given, *made))
        return whole.piece(given, [spec.name for spec in made]), None

    def stage_writer(self, inputs: Arrays, boundaries: Sequence[TensorSpec]) -> TorchStageWriter:
        """What writes torch programs, and ONNX models where ONNX can express them."""
        return TorchStageWriter(self, tuple(map(as_tensor, inputs)), boundaries)


def leaf_with_rows(leaf: Any, num_rows: int) -> Any:
    """An argument with so many rows, its own repeated where it has fewer."""
    if not isinstance(leaf, torch.Tensor) or leaf.shape[0] == num_rows:
        return leaf
    return leaf.index_select(0, torch.arange(num_rows) % leaf.shape[0])


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Runs attention and encoder layers operation by operation, as they are captured.

    In inference torch has a second, fused implementation of its transformer layers, whose last
    bits differ and which `torch.export` never sees.
    """
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)
