"""The order and the gaps in which a tensor lies in memory, and operations that restore them.

Kernels differ in the last bits by how a tensor lies. What crosses a boundary arrives in the order
of dimensions in which it was made (a permuted view, channels last), since links keep it. They send
no gaps: where the whole model has some between the numbers (one token of a sequence), the
receiving stage makes them anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch.fx import Graph as FxGraph
from torch.fx import Node


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryOrder:
    """How a tensor lies in memory.

    Attributes:
        order: its dimensions, from the slowest to the fastest.
        padded: per dimension in this order the length that it takes up with its gap behind it,
            or None where there is no gap. The first has none: a gap behind the whole is none.
        step: elements from one entry of the fastest dimension to the next.
    """

    order: tuple[int, ...]
    padded: tuple[int | None, ...]
    step: int

    @property
    def has_gaps(self) -> bool:
        """Whether something lies between the numbers that is not the tensor's own."""
        return self.step > 1 or any(taken is not None for taken in self.padded)


def layout_of(tensor: torch.Tensor) -> MemoryOrder | None:
    """The layout of a tensor, or None for packed row-major order.

    None as well where no padding describes it: elements that overlap (an expanded dimension), or
    gaps that are no multiple of what they separate or that grow with the number of rows.

    Args:
        tensor: real or fake; lengths that grow with the rows count as in the example.
    """
    shape = [_hint(length) for length in tensor.shape]
    strides = [_hint(stride) for stride in tensor.stride()]
    order = sorted(range(len(shape)), key=lambda dim: -strides[dim])
    if not order or 0 in strides or 0 in shape:
        return None
    padded: list[int | None] = [None] * len(order)
    for place in range(1, len(order)):
        dim, outer = order[place], order[place - 1]
        taken, rest = divmod(strides[outer], strides[dim])
        if taken == shape[dim] and not rest:
            continue
        if shape[outer] == 1 and (rest or taken < shape[dim]):
            # Where there is one entry only, its stride says nothing.
            continue
        if rest or taken < shape[dim] or not isinstance(tensor.shape[dim], int):
            return None
        padded[place] = taken
    layout = MemoryOrder(order=tuple(order), padded=tuple(padded), step=strides[order[-1]])
    return None if order == sorted(order) and not layout.has_gaps else layout


def lay_out(graph: FxGraph, packed: Node, layout: MemoryOrder, shape: tuple[Any, ...]) -> Node:
    """Adds operations to `graph` that give `packed` the wanted layout.

    Args:
        graph: nodes are added at its end.
        packed: a tensor in any layout.
        layout: what `layout_of` said of the same tensor in the whole model.
        shape: the tensor's lengths; those that are no int are never padded.
    """
    aten = torch.ops.aten

    def call(target: Any, *args: Any, **kwargs: Any) -> Node:
        return graph.call_function(target, args, kwargs)

    order = list(layout.order)
    result = call(aten.permute.default, packed, order) if order != sorted(order) else packed
    lengths = [shape[dim] for dim in order]
    gaps = [
        0 if taken is None else taken - lengths[place] for place, taken in enumerate(layout.padded)
    ]
    if layout.step > 1:
        result = call(aten.unsqueeze.default, result, -1)
        gaps.append(layout.step - 1)
    if any(gaps) or 1 in lengths:
        # A copy settles the strides of dimensions of length 1 as well, by which kernels are
        # chosen too; and padding would keep an order that looks like channels last.
        result = call(aten.clone.default, result, memory_format=torch.contiguous_format)
    else:
        # No copy where it lies right already: of a single row the stride between rows is then
        # kept as it came, which may be one that no copy would have.
        result = call(aten.contiguous.default, result)
    if any(gaps):
        # Pairs of (before, behind) from the last dimension backwards; the first is never padded.
        pairs = [number for gap in reversed(gaps[1:]) for number in (0, gap)]
        result = call(aten.constant_pad_nd.default, result, pairs)
    if layout.step > 1:
        result = call(aten.select.int, result, -1, 0)
    for place, taken in enumerate(layout.padded):
        if taken is not None:
            result = call(aten.slice.Tensor, result, place, 0, lengths[place])
    back = [order.index(dim) for dim in range(len(order))]
    return call(aten.permute.default, result, back) if order != sorted(order) else result


def _hint(length: int | torch.SymInt) -> int:
    """The length in the example where the length grows with the rows."""
    return length if isinstance(length, int) else int(cast(int, length.node.hint))
