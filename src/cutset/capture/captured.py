"""What the rest of Cutset needs of a captured model, whatever it was captured from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from cutset.errors import CaptureError
from cutset.graph.ir import Graph
from cutset.tensors import BATCH, Dim, TensorSpec, dim_factor


class Captured(Protocol):
    """A captured model: `cutset.capture.lowering.CapturedModel` or `CapturedOnnx`."""

    @property
    def graph(self) -> Graph:
        """The model as plain data."""

    @property
    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Two rows or more of every input, in the order of the graph's inputs."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """How the caller knows the outputs."""

    @property
    def micro_batch_only(self) -> int | None:
        """The only number of rows that it was captured for, or None for any."""

    def call(self, model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
        """Calls the whole model with the graph's flat inputs."""


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


def boundary_specs(captured: Captured, position: int) -> tuple[TensorSpec, ...]:
    """What crosses a cut at `position`: made before it, used after it, each tensor once.

    At 0 these are the model's inputs, at the end its outputs.
    """
    graph = captured.graph
    if position == 0:
        return graph.inputs
    if position == len(graph.operations):
        return tuple(graph.spec_of(name) for name in dict.fromkeys(graph.outputs))
    made = dict.fromkeys(
        [spec.name for spec in graph.inputs] + [op.name for op in graph.operations[:position]]
    )
    needed = {name for op in graph.operations[position:] for name in op.inputs}
    needed |= set(graph.outputs)
    return tuple(graph.spec_of(name) for name in made if name in needed)


def with_rows(tensor: torch.Tensor, spec: TensorSpec, num_rows: int) -> torch.Tensor:
    """The tensor with its rows repeated, or cut off, to `num_rows`."""
    for dim, length in enumerate(spec.shape):
        factor = dim_factor(length)
        if factor is not None and tensor.shape[dim] != factor * num_rows:
            tensor = tensor.index_select(dim, torch.arange(factor * num_rows) % tensor.shape[dim])
    return tensor


def leaf_with_rows(leaf: Any, num_rows: int) -> Any:
    """An argument with so many rows, its own repeated where it has fewer."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return with_rows(leaf, TensorSpec(name="", shape=(BATCH,), dtype="bool"), num_rows)
