"""Units: the parts of an architecture that are never divided, found from structure alone.

A module is a unit when it forks and joins: take the boundaries between the calls of its
children; where more than one activation that the module itself still needs is alive at *every*
one of them, there is no clean place inside (a skip connection, parallel branches). What it only
hands on from child to child beside them (`side_inputs`) does not count. One such
instance makes its whole class a unit: an inverted residual of stride 2 has no skip, and is still
one block. The outermost unit wins. Nothing here looks at what a module or a class is called,
apart from the three plain containers, which only hold their children.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate, pairwise

import msgspec

from cutset.errors import PlanError
from cutset.graph.calls import PLAIN_CONTAINERS, CallRegion, call_label, call_regions, child_of
from cutset.graph.ir import Graph, Operation
from cutset.graph.side_inputs import side_inputs_of


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
    needed = needed_inside(operations, region)
    return all(needed[boundary - region.start] > 1 for boundary in boundaries)


def needed_inside(operations: Sequence[Operation], region: CallRegion) -> tuple[int, ...]:
    """How many values a module call itself still needs before each of its operations.

    A value counts where it is made before (outside of the module: before all) and the module reads
    it there or later; its side inputs do not count.

    Args:
        operations: the graph's.
        region: the call.
    """
    sides = side_inputs_of(operations, region)
    made = {operations[i].name: i for i in range(region.start, region.stop)}
    last_use = {name: i for i in range(region.start, region.stop) for name in operations[i].inputs}
    changes = [0] * (region.stop - region.start + 1)
    for name, use in last_use.items():
        if name not in sides:
            changes[made.get(name, region.start - 1) + 1 - region.start] += 1
            changes[use + 1 - region.start] -= 1
    return tuple(accumulate(changes[:-1]))


def _child_boundaries(operations: Sequence[Operation], region: CallRegion) -> tuple[int, ...]:
    """Positions right after each call of a child but the last, looking through containers."""
    ends: dict[tuple[str, int], int] = {}
    for index in range(region.start, region.stop):
        child = child_of(operations[index], region)
        if child is not None:
            ends[child.path, child.call] = index + 1
    ordered = sorted(ends.values())
    return tuple(end for end, _ in pairwise(ordered))
