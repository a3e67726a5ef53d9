"""Where a model may be cut, and for every other place the reason why not."""

from __future__ import annotations

import msgspec

from cutset.graph.units import Unit
from cutset.tensors import TensorSpec


class CutPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A position between two operations, with what would cross a cut there.

    Attributes:
        position: how many of the graph's operations lie before it.
        after: the name people call it by: the unit that ends there, else the outermost module
            that ends there, else the operation.
        kind: ``"block"``, ``"pool"``, ``"activation"`` or ``"head"``.
        tensors: the activations made before it and used after it; each would be sent once.
        cumulative_flops: multiply-adds for one row of all operations before it.
        cumulative_parameters: trainable numbers that those operations read.
        reason: why the position is refused, or ``""`` for a candidate.
    """

    position: int
    after: str
    kind: str
    tensors: tuple[TensorSpec, ...]
    cumulative_flops: int
    cumulative_parameters: int
    reason: str = ""

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that cross a cut here for one row."""
        return sum(spec.bytes_per_sample for spec in self.tensors)


class CutPoints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All positions of a graph, judged.

    Attributes:
        units: the parts that are never divided, in execution order.
        points: candidates, by position.
        refused: all other positions, by position, each with its reason.
        max_tensors: how many tensors were allowed to cross a cut.
    """

    units: tuple[Unit, ...]
    points: tuple[CutPoint, ...]
    refused: tuple[CutPoint, ...]
    max_tensors: int
