"""Side inputs: what a module hands to one child after the other while something else changes.

``for layer in self.layers: x = layer(x, mask)``: the mask is alive between any two layers, and yet
nothing forks there. A value is a side input of a module when

* the module itself does nothing with it but make other side inputs of it,
* at least two of its children read it, and
* each of these also reads something that no other child reads and that depends on more than the
  value does: the stream, which is replaced from child to child.

So the inputs of parallel branches are none (all branches read the same), nor is one that is added
to what was made of it (the module itself reads it), nor an earlier result that later children read
as well (what they read beside it was made from the same).
"""

from __future__ import annotations

from collections.abc import Sequence

from cutset.graph.calls import CallRegion, call_regions, child_of
from cutset.graph.ir import Graph, Operation

_Child = tuple[str, int]


def side_inputs(graph: Graph) -> frozenset[str]:
    """Names of the values that are side inputs of a module call, or only serve to make such."""
    found: set[str] = set()
    for region in call_regions(graph.operations):
        found |= side_inputs_of(graph.operations, region)
    readers: dict[str, list[str]] = {}
    for operation in graph.operations:
        for name in operation.inputs:
            readers.setdefault(name, []).append(operation.name)
    made = [*(spec.name for spec in graph.inputs), *(each.name for each in graph.operations)]
    for name in reversed(made):
        if name in readers and name not in graph.outputs and found.issuperset(readers[name]):
            found.add(name)
    return frozenset(found)


def side_inputs_of(operations: Sequence[Operation], region: CallRegion) -> frozenset[str]:
    """Names of the values that are side inputs of one module call.

    Args:
        operations: the graph's.
        region: the call.
    """
    inside = operations[region.start : region.stop]
    origins = _origins(inside)
    # What each child reads from outside of itself, and what the module itself reads for what.
    taken: dict[_Child, set[str]] = {}
    used: dict[str, list[str]] = {}
    made_by: dict[str, _Child | None] = {}
    for operation in inside:
        child = child_of(operation, region)
        key = None if child is None else (child.path, child.call)
        made_by[operation.name] = key
        for name in operation.inputs:
            if key is None:
                used.setdefault(name, []).append(operation.name)
            elif made_by.get(name) != key:
                taken.setdefault(key, set()).add(name)
    handed: dict[str, list[_Child]] = {}
    for key, names in taken.items():
        for name in names:
            handed.setdefault(name, []).append(key)
    found: set[str] = set()
    for name in reversed(origins):  # what is made of a value is judged before it
        makes = used.get(name, [])
        children = handed.get(name, [])
        if (
            found.issuperset(makes)
            and (len(children) > 1 or (makes and not children))
            and all(
                any(
                    len(handed[other]) == 1 and not origins[other] <= origins[name]
                    for other in taken[key]
                )
                for key in children
            )
        ):
            found.add(name)
    return frozenset(found)


def _origins(inside: Sequence[Operation]) -> dict[str, frozenset[str]]:
    """For each value read or made inside, the values made outside that it depends on."""
    made = {operation.name for operation in inside}
    origins = {
        name: frozenset((name,))
        for operation in inside
        for name in operation.inputs
        if name not in made
    }
    for operation in inside:
        origins[operation.name] = frozenset[str]().union(
            *map(origins.__getitem__, operation.inputs)
        )
    return origins
