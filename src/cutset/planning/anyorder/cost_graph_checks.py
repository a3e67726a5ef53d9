"""What may be wrong with a cost graph, with the path of the value in its file."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutset.planning.anyorder.cost_graph import CostGraph, CostNode, CostTensor

COST_GRAPH_FORMAT = "cutset-cost-graph/1"

MAX_SECONDS = 1e18
"""Sums of more would say nothing; what may not run somewhere has null there."""

MAX_BYTES = 2**53
"""Up to here a float64 holds every whole number of bytes."""


def first_problem(graph: CostGraph) -> str:
    """The first rule that a cost graph breaks, in words, or ``""``."""
    return _of_parts(graph) or _of_whole(graph)


def _of_parts(graph: CostGraph) -> str:
    if graph.format != COST_GRAPH_FORMAT:
        return f"expected format {COST_GRAPH_FORMAT!r}, got {graph.format!r}"
    if graph.transfers not in ("neighbour", "host"):
        return f"$.transfers: expected 'neighbour' or 'host', got {graph.transfers!r}"
    if not graph.nodes:
        return "$.nodes: a cost graph needs at least one node"
    names: set[str] = set()
    for k, node in enumerate(graph.nodes):
        problem = _of_node(node, names)
        if problem:
            return f"$.nodes[{k}]{problem}"
        names.add(node.name)
    for k, tensor in enumerate(graph.tensors):
        problem = _of_tensor(tensor, names)
        if problem:
            return f"$.tensors[{k}]{problem}"
    return ""


def _of_whole(graph: CostGraph) -> str:
    for key, total in (
        ("nodes", sum(node.weight_bytes for node in graph.nodes)),
        ("tensors", sum(tensor.num_bytes for tensor in graph.tensors)),
    ):
        if total > MAX_BYTES:
            return f"$.{key}: {total:,} bytes in all, the most is 2**53"
    cycle = _cycle(graph)
    if cycle:
        return (
            f"$.tensors: {' -> '.join(map(repr, cycle))} is a cycle; a node cannot need "
            "what is made from its own result"
        )
    return ""


def _of_node(node: CostNode, names: set[str]) -> str:
    if not node.name:
        return ".name: a node needs a name"
    if node.name in names:
        return f".name: {node.name!r} is the name of another node too"
    for device, seconds in node.seconds.items():
        if seconds is None or seconds == math.inf:
            continue
        if not 0 <= seconds < math.inf:
            return (
                f": seconds and bytes must be 0 or more and finite, got {seconds} for {device!r}; "
                "null says that a node may not run there"
            )
        if seconds > MAX_SECONDS:
            return (
                f": {seconds:g} s on {device!r} is too large, the most is {MAX_SECONDS:g}; null "
                "says that a node may not run there"
            )
    if node.weight_bytes < 0:
        return f": seconds and bytes must be 0 or more and finite, got {node.weight_bytes} bytes"
    if all(seconds is None or seconds == math.inf for seconds in node.seconds.values()):
        return f".seconds: {node.name!r} has seconds for no device"
    return ""


def _of_tensor(tensor: CostTensor, names: set[str]) -> str:
    for name in (tensor.source, *tensor.targets):
        if name not in names:
            return f": {name!r} is no node"
    if tensor.num_bytes < 0:
        return f".num_bytes: must be 0 or more, got {tensor.num_bytes}"
    if not tensor.targets:
        return f".targets: nobody reads what {tensor.source!r} gives; leave the tensor out"
    if tensor.source in tensor.targets:
        return f".targets: {tensor.source!r} would read its own result"
    for name in tensor.targets:
        if tensor.targets.count(name) > 1:
            return f".targets: {name!r} is there {tensor.targets.count(name)} times"
    return ""


def _cycle(graph: CostGraph) -> list[str]:
    """A way from a node back to itself, its ends equal; empty if there is none."""
    following: dict[str, list[str]] = {node.name: [] for node in graph.nodes}
    for tensor in graph.tensors:
        following[tensor.source] += tensor.targets
    done: set[str] = set()
    for root in following:
        path, on_path = [root], {root}
        waiting = [iter(following[root])]
        while waiting and root not in done:
            node = next(waiting[-1], None)
            if node is None:
                waiting.pop()
                last = path.pop()
                on_path.discard(last)
                done.add(last)
            elif node in on_path:
                return [*path[path.index(node) :], node]
            elif node not in done:
                path.append(node)
                on_path.add(node)
                waiting.append(iter(following[node]))
    return []


def first_repeated_key(data: bytes) -> str | None:
    """A key that an object of a JSON document has twice, or None; of two values one would go.

    Raises:
        ValueError: not JSON.
        RecursionError: nested too deeply.
    """
    repeated: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        keys = [key for key, _ in pairs]
        if len(set(keys)) < len(keys):
            repeated.append(next(key for key in keys if keys.count(key) > 1))

    json.loads(data, object_pairs_hook=look)
    return repeated[0] if repeated else None
