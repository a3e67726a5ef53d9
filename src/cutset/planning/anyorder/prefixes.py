"""Whether the prefixes of the execution order are all the cuts that a model allows.

Plans for models cut the execution order, since a shard is a run of operations. In a graph with
branches other orders would allow other cuts. Where none of them crosses few enough tensors, the
best plan over prefixes is the best over all downsets, and may be called so.
"""

from __future__ import annotations

from cutset.costs.cost_model import CostModel
from cutset.graph.ir import Graph
from cutset.planning.anyorder.downsets import MAX_DOWNSETS, list_downsets


def prefixes_are_all_cuts(
    graph: Graph, costs: CostModel, max_tensors: int, *, limit: int = MAX_DOWNSETS
) -> bool:
    """Whether every downset of the pieces with few enough live tensors is a prefix.

    Args:
        graph: the captured model.
        costs: its pieces; they are not divided.
        max_tensors: how many tensors may cross a cut.
        limit: the most downsets to look at; where there are more, the answer is no.
    """
    piece_of: dict[str, int] = {}
    for piece in range(costs.num_pieces):
        for operation in graph.operations[costs.positions[piece] : costs.positions[piece + 1]]:
            piece_of[operation.name] = piece
    before: list[set[int]] = [set() for _ in range(costs.num_pieces)]
    readers: dict[str, int] = {spec.name: 0 for spec in graph.inputs}
    for operation in graph.operations:
        piece = piece_of[operation.name]
        for name in operation.inputs:
            readers[name] = readers.get(name, 0) | 1 << piece
            if name in piece_of and piece_of[name] != piece:
                before[piece].add(piece_of[name])
    downsets = list_downsets(before, limit)
    if downsets is None:
        return False
    full = (1 << costs.num_pieces) - 1
    outputs = set(graph.outputs)
    made = {
        name: (1 << piece_of[name] if name in piece_of else 0, mask, name in outputs)
        for name, mask in {**dict.fromkeys(outputs, 0), **readers}.items()
    }
    for downset in downsets:
        if downset in (0, full) or downset & (downset + 1) == 0:  # a prefix has its ones at the end
            continue
        alive = sum(
            source & downset == source and (is_output or bool(mask & ~downset))
            for source, mask, is_output in made.values()
        )
        if alive <= max_tensors:
            return False
    return True
