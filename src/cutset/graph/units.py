"""Units: the parts of an architecture that are never divided, found from structure alone.

A module is a unit when it forks and joins: take the boundaries between the calls of its
children; where more than one activation that the module itself still needs is alive at *every*
one of them, there is no clean place inside (a skip connection, parallel branches). One such
instance makes its whole class a unit: an inverted residual of stride 2 has no skip, and is still
one block. The outermost unit wins. Nothing here looks at what a module or a class is called,
apart from the three plain containers, which only hold their children.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

import msgspec

from cutset.errors import PlanError
from cutset.graph.ir import Graph, ModuleCall, Operation

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


class Unit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the architecture that is never divided.

    Attributes:
        path: dotted path of the module, with ``#2``, ``#3`` ... for its second, third call.
        class_name: qualified name of its class.
        start: index of its first operation in the graph.
        stop: index after its last operation.
    """

    path: str
    class_name: str
    start: int
    stop: int


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


def class_matches(class_name: str, wanted: Collection[str]) -> bool:
    """Whether a qualified class name is among `wanted`, in full or by its last part."""
    return class_name in wanted or class_name.rpartition(".")[2] in wanted


def find_units(
    graph: Graph, *, keep: Collection[str] = (), divide: Collection[str] = ()
) -> tuple[Unit, ...]:
    """Finds the parts of a graph that are never divided.

    Args:
        graph: the captured model.
        keep: classes (qualified name, or its last part) whose every call is made a unit.
        divide: classes whose calls may be cut between their children.

    Returns:
        Units that do not overlap, in execution order.

    Raises:
        PlanError: `keep` or `divide` names a class that the model does not call, or both do.
    """
    regions = call_regions(graph.operations)
    _check_classes(regions, keep=keep, divide=divide)
    unit_classes = {
        region.call.class_name
        for region in regions
        if region.depth > 0
        and region.call.class_name not in PLAIN_CONTAINERS
        and _forks_and_joins(graph.operations, region)
    }
    units: list[Unit] = []
    for region in regions:
        name = region.call.class_name
        if class_matches(name, divide) or region.depth == 0:
            continue
        inside_a_unit = units and region.start < units[-1].stop
        if (name in unit_classes or class_matches(name, keep)) and not inside_a_unit:
            units.append(
                Unit(
                    path=call_label(region.call),
                    class_name=name,
                    start=region.start,
                    stop=region.stop,
                )
            )
    return tuple(units)


def _check_classes(
    regions: Iterable[CallRegion], *, keep: Collection[str], divide: Collection[str]
) -> None:
    known = sorted({region.call.class_name for region in regions})
    for option, classes in (("keep", keep), ("divide", divide)):
        for wanted in classes:
            if not any(class_matches(name, (wanted,)) for name in known):
                names = ", ".join(sorted({name.rpartition(".")[2] for name in known}))
                raise PlanError(f"{option}={wanted}: the model calls no such class; it has {names}")
    both = set(keep) & set(divide)
    if both:
        raise PlanError(f"{', '.join(sorted(both))}: asked both to keep and to divide")


def _forks_and_joins(operations: Sequence[Operation], region: CallRegion) -> bool:
    """Whether the module needs more than one live activation at every boundary of its children."""
    boundaries = _child_boundaries(operations, region)
    if not boundaries:
        return False
    made = {operations[i].name: i for i in range(region.start, region.stop)}
    last_use: dict[str, int] = {}
    for i in range(region.start, region.stop):
        for name in operations[i].inputs:
            last_use[name] = i
    # A value is alive at boundary b when it is made before b (outside the module: before all)
    # and the module reads it at b or later.
    return all(
        sum(made.get(name, -1) < boundary <= use for name, use in last_use.items()) > 1
        for boundary in boundaries
    )


def _child_boundaries(operations: Sequence[Operation], region: CallRegion) -> tuple[int, ...]:
    """Positions right after each call of a child but the last, looking through containers."""
    ends: dict[tuple[str, int], int] = {}
    for index in range(region.start, region.stop):
        for call in operations[index].modules[region.depth + 1 :]:
            if call.class_name not in PLAIN_CONTAINERS:
                ends[call.path, call.call] = index + 1
                break
    ordered = sorted(ends.values())
    return tuple(end for end, _ in pairwise(ordered))
