"""Which operations belong to which call of which module."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cutset.graph.ir import ModuleCall, Operation

SEQUENTIAL = "torch.nn.modules.container.Sequential"
"""The container that calls its children one after the other."""

PLAIN_CONTAINERS = frozenset(
    {
        SEQUENTIAL,
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.container.ModuleDict",
    }
)
"""Classes that do nothing but hold children. Exactly these: a subclass has a meaning of its own."""


class CallRegion(msgspec.Struct, frozen=True, kw_only=True):
    """The operations of one call of one module, its children's included.

    Attributes:
        call: which call of which module.
        depth: how many modules enclose it; 0 for the root.
        start: index of its first operation.
        stop: index after its last operation.
    """

    call: ModuleCall
    depth: int
    start: int
    stop: int


def call_label(call: ModuleCall) -> str:
    """The module's path, with ``#2``, ``#3`` ... for its second, third call."""
    return call.path if call.call == 0 else f"{call.path}#{call.call + 1}"


def call_regions(operations: Sequence[Operation]) -> tuple[CallRegion, ...]:
    """Every module call of the graph with the operations it spans, in order of first operation."""
    spans: dict[tuple[str, int], list[int]] = {}
    found: dict[tuple[str, int], tuple[ModuleCall, int]] = {}
    for index, operation in enumerate(operations):
        for depth, call in enumerate(operation.modules):
            key = (call.path, call.call)
            spans.setdefault(key, [index, index])[1] = index
            found.setdefault(key, (call, depth))
    return tuple(
        CallRegion(call=call, depth=depth, start=spans[key][0], stop=spans[key][1] + 1)
        for key, (call, depth) in found.items()
    )


def child_of(operation: Operation, region: CallRegion) -> ModuleCall | None:
    """The child of a module call inside which an operation of it happens, through containers.

    Args:
        operation: one of the region's operations.
        region: the module call.

    Returns:
        None where the module itself does it, or a plain container among its children.
    """
    for call in operation.modules[region.depth + 1 :]:
        if call.class_name not in PLAIN_CONTAINERS:
            return call
    return None
