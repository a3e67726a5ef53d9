"""What the rest of Cutset needs of a captured model, whatever it was captured from.

Values are arrays. Only backends, which load pieces, look into what these are made of.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np

from cutset.capture.source_lines import place_in_words
from cutset.data.arrays import to_array
from cutset.dtypes import Arrays, strided_copy
from cutset.errors import CaptureError, EngineError
from cutset.graph.ir import Graph
from cutset.tensors import BATCH, Dim, TensorSpec, dim_factor

MODEL_NAME = "model.onnx"
"""The file with a stage's ONNX model, in the stage's folder."""

ONE_NUMBER = "capture it for one number alone: --micro-batch-only N (micro_batch_only=N)"
WAY_OUT = f"Make the forward the same for every number of rows, or {ONE_NUMBER}"

PieceRun: TypeAlias = "Callable[[Arrays], dict[str, np.ndarray]]"
"""Computes a piece: takes its inputs, gives what is wanted of it, by name."""


class WholeModel(abc.ABC):
    """A model that is run whole, as it is: what its pieces are compared with."""

    @abc.abstractmethod
    def computing(
        self, num_threads: int, settings: Mapping[str, str] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Within the context it computes with so many threads.

        Args:
            num_threads: 1 or more.
            settings: those of torch that a bundle has recorded; this process's where None.
        """

    @abc.abstractmethod
    def run_whole(self, inputs: Arrays) -> Arrays:
        """Its results, flat; the inputs are not changed.

        Args:
            inputs: in the order of the graph's inputs.
        """


class StageWriter(Protocol):
    """Writes the stages of one captured model, one after the other."""

    def write(self, start: int, stop: int, folder: Path) -> PieceFiles:
        """Writes a stage's programs into a folder, which exists.

        Raises:
            OSError: a file cannot be written.
            CaptureError: the stage cannot be exported.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class PieceFiles:
    """What was written of a piece.

    Attributes:
        weight_names: parameters, buffers and constants that it holds, by their original names.
        program: name of the file with its torch program, or None.
        model: name of the file with its ONNX model, or None.
        model_missing: why there is no ONNX model, or ``""``.
    """

    weight_names: tuple[str, ...]
    program: str | None = None
    model: str | None = None
    model_missing: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parting:
    """Where two ways part.

    Attributes:
        what: in words.
        source: ``"model.py:12"``, or None.
        module_path: of the module, or None.
        advice: what to do there.
        decides: whether the first row was seen to become another one by it.
    """

    what: str
    source: str | None = None
    module_path: str | None = None
    advice: str = WAY_OUT
    decides: bool = True

    def error(self, finding: str) -> CaptureError:
        """The refusal; `finding` says what was seen of it from outside."""
        place = place_in_words(self.module_path, self.source, None)
        words = finding if finding == self.what else f"{self.what} ({finding})"
        if self.decides:
            text = (
                f"the model computes a row otherwise by how many there are{place}: {words}, so "
                "that cutting a batch into micro-batches would change the answers"
            )
        else:
            text = (
                f"the model goes another way by how many rows there are{place}: {words}. A capture "
                "holds one way, though what comes out was the same"
            )
        return CaptureError(
            f"{text}. {self.advice}",
            module_path=self.module_path,
            source=self.source,
        )


def in_words(number: int) -> str:
    """``"1 row"``, ``"2 rows"``."""
    return f"{number} {'row' if number == 1 else 'rows'}"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Captured(WholeModel):
    """A captured model: the plain graph, and what is needed to build its pieces.

    Attributes:
        graph: the model as plain data.
        module: the model itself, as the caller knows it.
        example_inputs: two rows or more of each input, in the order of the graph's inputs, or the
            only number of them.
        output_names: how the caller knows the outputs.
        micro_batch_only: the only number of rows that it was captured for, or None for any.
        is_what_runs: whether `run_whole` runs what was captured, so that both need no comparing.
        no_programs: why its pieces have no torch program, in words; ``""`` where they have one.
    """

    graph: Graph
    module: Any
    example_inputs: tuple[Any, ...]
    output_names: tuple[str, ...]
    micro_batch_only: int | None = None

    is_what_runs: ClassVar[bool]
    no_programs: ClassVar[str]

    @property
    def settings(self) -> dict[str, str] | None:
        """Settings of torch under which it computes here; None where torch has no part in it."""
        return None

    @property
    @abc.abstractmethod
    def made_with(self) -> dict[str, str]:
        """Versions of the packages that make its programs, by name."""

    def rows(self, num_rows: int) -> Arrays:
        """So many rows of each input: the example's, repeated or cut off."""
        pairs = zip(self.example_inputs, self.graph.inputs, strict=True)
        return tuple(with_rows(to_array(value), spec, num_rows) for value, spec in pairs)

    def untouched(self) -> contextlib.AbstractContextManager[None]:
        """After the context the model is what it was before."""
        return contextlib.nullcontext()

    def kept(self) -> dict[str, object]:
        """What could change from one call to the next, by dotted path."""
        return {}

    def find_parting(
        self,
        rows_of: Callable[[int], Arrays],  # noqa: ARG002
        several: int,  # noqa: ARG002
        other: int,  # noqa: ARG002
    ) -> Parting | None:
        """Where its way with `other` rows leaves that with `several`, if that can be seen."""
        return None

    @abc.abstractmethod
    def piece_run(self, start: int, stop: int, watch: Sequence[TensorSpec] = ()) -> PieceRun:
        """The operations from index `start` up to `stop`, ready to run.

        Args:
            start: index of the first operation.
            stop: index after the last operation; beyond `start`.
            watch: tensors made inside that are wanted as well.
        """

    def piece_module(self, start: int, stop: int) -> Any:
        """A piece as a module of torch.

        Raises:
            EngineError: there is none; see `no_programs`.
        """
        raise EngineError(f"operations {start} to {stop}: {self.no_programs}")

    def no_models(self, ends: Sequence[TensorSpec]) -> str:  # noqa: ARG002
        """Why its pieces have no ONNX model, in words; ``""`` where they have one.

        Args:
            ends: tensors at which pieces are to begin and end.
        """
        return ""

    @abc.abstractmethod
    def piece_model(self, start: int, stop: int, *, is_complete: bool) -> tuple[Any, Path | None]:
        """A piece as an ``onnx.ModelProto`` whose ends go by the names of the graph's tensors.

        Args:
            start: index of the first operation.
            stop: index after the last operation.
            is_complete: whether it must hold its weights itself.

        Returns:
            The model, which makes what the piece does not merely pass on; and the folder where its
            external weights lie, None where it has none.

        Raises:
            EngineError: ONNX cannot express it; says why.
        """

    @abc.abstractmethod
    def stage_writer(self, inputs: Arrays, boundaries: Sequence[TensorSpec]) -> StageWriter:
        """What writes the stages of a plan.

        Args:
            inputs: rows to write them with.
            boundaries: what crosses the plan's cuts.
        """


def check_computes(graph: Graph) -> None:
    """Refuses a model of which there is nothing to split.

    Raises:
        CaptureError: it returns no tensor, or no operation lies between its inputs and results.
    """
    if not graph.outputs:
        raise CaptureError(
            "there is nothing to split: the model returns no tensor. Return from its forward what "
            "the pipeline is to answer"
        )
    if not graph.operations:
        given = {spec.name for spec in graph.inputs}
        what = "inputs" if given.issuperset(graph.outputs) else "inputs and weights"
        raise CaptureError(
            f"there is nothing to split: the model computes nothing, what it returns are its {what}"
        )


def shape_with_rows(lengths: Sequence[Dim], num_rows: int) -> tuple[Dim, ...]:
    """A shape that was seen with one number of rows alone, as Cutset writes it.

    The rows are taken to lie in the first dimension of just that length; where there is none, in
    the first whose length is a multiple of it. For this number of rows the shape is right either
    way.
    """
    fitting = [dim for dim, length in enumerate(lengths) if length == num_rows]
    fitting += [
        dim
        for dim, length in enumerate(lengths)
        if isinstance(length, int) and length and length % num_rows == 0
    ]
    shape = list(lengths)
    if fitting:
        factor = int(shape[fitting[0]]) // num_rows
        shape[fitting[0]] = BATCH if factor == 1 else f"{BATCH}*{factor}"
    return tuple(shape)


def with_rows(array: np.ndarray, spec: TensorSpec, num_rows: int) -> np.ndarray:
    """The array with its rows repeated, or cut off, to `num_rows`."""
    for dim, length in enumerate(spec.shape):
        factor = dim_factor(length)
        if factor is not None and array.shape[dim] != factor * num_rows:
            rows = array.take(np.arange(factor * num_rows) % array.shape[dim], axis=dim)
            array = strided_copy(rows, rows.strides)
    return array
