"""What the rest of Cutset needs of a captured model, whatever it was captured from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from cutset.graph.ir import Graph
from cutset.tensors import TensorSpec


class Captured(Protocol):
    """A captured model: `cutset.graph.lowering.CapturedModel` or `CapturedOnnx`."""

    @property
    def graph(self) -> Graph:
        """The model as plain data."""

    @property
    def example_inputs(self) -> tuple[torch.Tensor, ...]:
        """Two rows or more of every input, in the order of the graph's inputs."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """How the caller knows the outputs."""

    def call(self, model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> Any:
        """Calls the whole model with the graph's flat inputs."""


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
