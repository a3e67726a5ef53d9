"""What a backend is: a way to compute stages, in one class.

A backend makes a function from arrays to arrays of what a stage's folder holds. Those that read the
ONNX model derive from `ModelBackend`, those that run the torch program from `ProgramBackend`. The
same call makes a program of a stage and of a piece whose cost is measured, so whoever can run
stages can be planned with. `cutset.backends.selection` lists what there is.
"""

from __future__ import annotations

import abc
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from cutset.bundles.open import load_onnx_model
from cutset.capture.captured import Captured
from cutset.dtypes import Arrays
from cutset.graph.ir import boundary_specs, made_between
from cutset.tensors import BATCH, DTYPE_BYTES, TensorSpec

if TYPE_CHECKING:
    import torch

    from cutset.bundles.manifest import StageEntry
    from cutset.bundles.open import Bundle

Computation: TypeAlias = Callable[[Arrays], Arrays]
"""Computes a stage's outputs, in the order of its contract.

The caller has checked rank, shape and dtype of the inputs, which may have any strides. The outputs
may share memory with the inputs (a stage may pass an array on), never with an earlier call's
outputs: another thread may still be sending those.
"""

Specs: TypeAlias = tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class StageProgram:
    """One loaded stage.

    Attributes:
        backend: name of the backend that computes it.
        compute: what computes it.
    """

    backend: str
    compute: Computation

    def __call__(self, inputs: Arrays) -> Arrays:
        """Computes the stage's outputs; see `Computation`."""
        return self.compute(inputs)


class Backend(abc.ABC):
    """A way to compute stages; derive from `ModelBackend` or `ProgramBackend`.

    Importing its module must not import the library that computes: all that are known are asked
    what they need, and only the chosen one is loaded.

    Attributes:
        name: how plans, profiles and ``--backend`` call it: a letter, then letters, digits, ``-``,
            ``_`` and ``.``.
        needs: Python modules without which it does not work, each with what to install for it, in
            the words of ``pip install``.
        is_quick: whether a stage is loaded within a few seconds. Then it may be tried unasked, and
            every piece of a model is measured with it; otherwise the whole model is, and the pieces
            are taken to cost the same shares of it as in the reference backend.
        variant: which of `variants` this one is; ``""`` for the backend itself.
    """

    name: ClassVar[str]
    needs: ClassVar[Mapping[str, str]] = {}
    is_quick: ClassVar[bool] = True

    def __init__(self, variant: str = "") -> None:
        self.variant = variant

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """Ways to compute that this machine has besides the usual one, by their short names.

        ``NAME:VARIANT`` is a backend of its own for plans and profiles.
        """
        return ()

    @classmethod
    def short_name(cls, variant: str) -> str:
        """A variant by the name that `variants` has, however it is called; ``""`` for the usual."""
        return variant

    @property
    def full_name(self) -> str:
        """``NAME``, or ``NAME:VARIANT``."""
        return f"{self.name}:{self.variant}" if self.variant else self.name

    def missing(self) -> str:
        """What this machine lacks for it, in words with a hint; ``""`` if nothing."""
        for module, package in self.needs.items():
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed; pip install {package}"
        return ""

    def version(self) -> str:
        """The version of what computes: of the first module in `needs`."""
        module = next(iter(self.needs), type(self).__module__.partition(".")[0])
        try:
            return importlib.metadata.version(module)
        except importlib.metadata.PackageNotFoundError:
            return str(getattr(importlib.import_module(module), "__version__", "unknown"))

    @abc.abstractmethod
    def why_not(self, entry: StageEntry) -> str:
        """Why it cannot compute a stage here, in words with a hint; ``""`` if it can."""

    @abc.abstractmethod
    def load(
        self, bundle: Bundle, stage: int, *, num_threads: int, micro_batch: int
    ) -> Computation:
        """Loads one stage.

        Args:
            bundle: opened and checked, at least for this stage.
            stage: index of the stage.
            num_threads: threads to compute with.
            micro_batch: rows of the largest micro-batch.

        Raises:
            BundleError: the stage's file is missing, changed or unsafe.
            EngineError: it cannot be loaded here; says why and what to do.
        """

    @abc.abstractmethod
    def why_no_pieces(self, captured: Captured, ends: Specs) -> str:
        """Why it cannot compute the pieces of a model, in words; ``""`` if it can.

        Args:
            captured: the model.
            ends: tensors at which pieces are to begin and end.
        """

    @abc.abstractmethod
    def load_piece(
        self, captured: Captured, start: int, stop: int, *, num_threads: int
    ) -> Computation:
        """Loads a piece of a model whose cost is measured, of which no bundle is needed.

        Args:
            captured: the model.
            start: index of the first operation.
            stop: index after the last operation.
            num_threads: threads to compute with.

        Raises:
            EngineError: it cannot be loaded; says why and what to do.
        """

    @abc.abstractmethod
    def start(self) -> None:
        """Computes one small convolution, so that this process holds what every stage needs."""


class ModelBackend(Backend):
    """A backend that reads a stage's ONNX model; it implements `load_model`.

    Attributes:
        dtypes: names of the dtypes that its inputs and outputs may have.
        reads_folder: whether `load_model` can find external tensors of a model given as content
            in `folder`. Otherwise such a model always holds its tensors itself.
    """

    dtypes: ClassVar[frozenset[str]] = frozenset(DTYPE_BYTES)
    reads_folder: ClassVar[bool] = False

    @abc.abstractmethod
    def load_model(
        self,
        model: Path | bytes,
        inputs: Specs,
        outputs: Specs,
        *,
        num_threads: int,
        folder: Path | None = None,
    ) -> Computation:
        """Loads an ONNX model: of a stage, or of a piece whose cost is measured.

        Args:
            model: a checked file, or the content of a model that this process made.
            inputs: contract of the inputs, in the model's order.
            outputs: contract of the outputs, in the model's order.
            num_threads: threads to compute with.
            folder: where external tensors of a model given as content lie, see `reads_folder`.

        Raises:
            EngineError: it cannot be loaded; says why and what to do.
        """

    def why_not(self, entry: StageEntry) -> str:
        """Why it cannot compute the stage here; ``""`` if it can."""
        otherwise = "; use --backend torch" if entry.program is not None else ""
        if entry.model is None:
            return f"the bundle has no ONNX model for it ({entry.model_missing}){otherwise}"
        unknown = {spec.dtype for spec in (*entry.inputs, *entry.outputs)} - self.dtypes
        if unknown:
            return f"it has no tensors of dtype {', '.join(sorted(unknown))}{otherwise}"
        return self.missing()

    def load(
        self,
        bundle: Bundle,
        stage: int,
        *,
        num_threads: int,
        micro_batch: int,  # noqa: ARG002
    ) -> Computation:
        """Loads the stage's ``model.onnx``; see `Backend.load`."""
        entry = bundle.manifest.stages[stage]
        file = load_onnx_model(bundle, stage)
        return self.load_model(file, entry.inputs, entry.outputs, num_threads=num_threads)

    def why_no_pieces(self, captured: Captured, ends: Specs) -> str:
        """Why a model's pieces have no ONNX model."""
        return captured.no_models(ends)

    def load_piece(
        self, captured: Captured, start: int, stop: int, *, num_threads: int
    ) -> Computation:
        """Loads a piece's ONNX model; what the piece merely passes on costs nothing."""
        graph = captured.graph
        inputs, outputs = boundary_specs(graph, start), boundary_specs(graph, stop)
        made = made_between(graph, start, stop)
        model, folder = captured.piece_model(start, stop, is_complete=not self.reads_folder)
        taken = {value.name for value in model.graph.input}
        program = self.load_model(
            model.SerializeToString(),
            tuple(spec for spec in inputs if spec.name in taken),
            made,
            num_threads=num_threads,
            folder=folder,
        )

        def compute(arrays: Arrays) -> Arrays:
            named = {spec.name: array for spec, array in zip(inputs, arrays, strict=True)}
            results = program(tuple(named[name] for name in named if name in taken))
            named |= {spec.name: array for spec, array in zip(made, results, strict=True)}
            return tuple(named[spec.name] for spec in outputs)

        return compute

    def start(self) -> None:
        """Computes one small convolution."""
        given = TensorSpec(name="x", shape=(BATCH, 3, 8, 8), dtype="float32")
        made = TensorSpec(name="y", shape=(BATCH, 8, 6, 6), dtype="float32")
        compute = self.load_model(one_convolution(), (given,), (made,), num_threads=1)
        compute((np.zeros((1, 3, 8, 8), np.float32),))


class ProgramBackend(Backend):
    """A backend that runs a stage's torch program; it implements `load` and `load_module`."""

    needs: ClassVar[Mapping[str, str]] = {"torch": "'cutset[torch]'"}

    @abc.abstractmethod
    def load_module(
        self,
        module: Callable[..., tuple[torch.Tensor, ...]],
        examples: tuple[torch.Tensor, ...],
    ) -> Computation:
        """Makes a program of a piece whose cost is measured.

        Args:
            module: takes tensors one by one, gives a tuple.
            examples: inputs of the shapes and dtypes that it is measured with.

        Raises:
            EngineError: it cannot be loaded; says why and what to do.
        """

    def why_not(self, entry: StageEntry) -> str:
        """Why it cannot compute the stage here; ``""`` if it can."""
        if entry.program is None:
            return (
                "the bundle holds no torch program, since the model was an ONNX file; "
                "use --backend onnxruntime"
            )
        return self.missing()

    def why_no_pieces(self, captured: Captured, ends: Specs) -> str:  # noqa: ARG002
        """Why a model's pieces have no torch program."""
        return captured.no_programs

    def load_piece(
        self,
        captured: Captured,
        start: int,
        stop: int,
        *,
        num_threads: int,  # noqa: ARG002  # those of the process
    ) -> Computation:
        """Makes a program of a piece for each number of rows that comes."""
        from cutset.capture.torch_arrays import as_tensor

        module = captured.piece_module(start, stop)
        loaded: dict[tuple[tuple[int, ...], ...], Computation] = {}

        def compute(inputs: Arrays) -> Arrays:
            shapes = tuple(array.shape for array in inputs)
            if shapes not in loaded:
                loaded[shapes] = self.load_module(module, tuple(map(as_tensor, inputs)))
            return loaded[shapes](inputs)

        return compute

    def start(self) -> None:
        """Computes one small convolution."""
        import torch

        with torch.inference_mode():
            torch.conv2d(torch.zeros(1, 3, 8, 8), torch.zeros(8, 3, 3, 3))


def rows_of(arrays: Arrays, specs: Specs) -> int:
    """How many rows `arrays` hold, read from the first length that grows with the rows.

    Returns:
        The number of rows; 1 where no length grows with them.
    """
    for array, spec in zip(arrays, specs, strict=True):
        for length, dim in zip(array.shape, spec.shape, strict=True):
            if isinstance(dim, str):
                return int(length) // int(dim.partition("*")[2] or 1)
    return 1


def one_convolution() -> bytes:
    """An ONNX model of one small convolution, with zeros for weights; input ``x``, output ``y``."""
    import onnx  # an import that processes of the other backends do without

    weights = onnx.numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "weights")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "weights"], ["y"])],
        "one convolution",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8, 6, 6])],
        [weights],
    )
    opset = onnx.helper.make_opsetid("", 17)
    model: Any = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    content: bytes = model.SerializeToString()
    return content
