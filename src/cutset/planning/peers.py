"""How other programs would cut the same model: their rules, on the same pieces, for comparison.

None of them looks at seconds or at links. They choose among the pieces between candidate cut
points, so that what they choose can be run, and is judged by the same costs.

Sources: DeepSpeed's pipeline module (``partition_method`` "uniform" and "parameters"); the
documentation and behaviour of accelerate's ``device_map="auto"`` (``get_balanced_memory`` and
``infer_auto_device_map``, told not to split units).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec

from cutset.costs.cost_model import CostModel
from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph


class PeerChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a peer would cut.

    Attributes:
        name: what the rule is called.
        rule: the rule in words.
        stops: for each device the boundary at which its pieces end, never falling; a device whose
            stop is that of the one before gets nothing.
    """

    name: str
    rule: str
    stops: tuple[int, ...]


def peer_choices(
    graph: Graph, cuts: CutPoints, costs: CostModel, num_devices: int
) -> tuple[PeerChoice, ...]:
    """What three common rules make of a model on `num_devices` devices in a fixed order.

    Args:
        graph: the captured model.
        cuts: its positions, judged.
        costs: the model's pieces; of these only the weights are looked at.
        num_devices: from 1 to the number of pieces.

    Raises:
        ValueError: there are fewer pieces than devices, or no device.
    """
    if not 1 <= num_devices <= costs.num_pieces:
        raise ValueError(f"{num_devices} devices for {costs.num_pieces} pieces")
    sizes = [costs.weight_bytes(i, i + 1) for i in range(costs.num_pieces)]
    all_bytes = sum(parameter.num_bytes for parameter in graph.parameters)
    share = all_bytes // num_devices + fill_margin(graph, cuts)
    return (
        PeerChoice(
            name="even by layers",
            rule="as many parts for each device, whatever they cost",
            stops=even_by_count(len(sizes), num_devices),
        ),
        PeerChoice(
            name="even by parameters",
            rule="the largest share of the weights as small as can be",
            stops=even_by_size(sizes, num_devices),
        ),
        PeerChoice(
            name="accelerate's greedy",
            rule="each device is filled with weights up to its share and a margin, in order; the "
            "first keeps room for the largest part",
            stops=fill_in_order(_with_unused(graph, costs), num_devices, share_bytes=share),
        ),
    )


def even_by_count(num_pieces: int, num_devices: int) -> tuple[int, ...]:
    """Runs of pieces whose numbers differ by one at most, the longer ones first."""
    short, extra = divmod(num_pieces, num_devices)
    lengths = [short + (k < extra) for k in range(num_devices)]
    return tuple(itertools.accumulate(lengths))


def even_by_size(sizes: Sequence[int], num_devices: int) -> tuple[int, ...]:
    """The runs, none empty, whose largest total is least; the earliest cuts among equals.

    Dynamic programming over (devices used, pieces placed): k * n^2 steps.
    """
    totals = [0, *itertools.accumulate(sizes)]
    num_pieces = len(sizes)
    # For one device, the first i pieces; each value is (largest total, where the runs end).
    best: dict[int, tuple[int, tuple[int, ...]]] = {
        i: (totals[i], (i,)) for i in range(1, num_pieces + 1)
    }
    for used in range(2, num_devices + 1):
        best = {
            i: min(
                (max(best[j][0], totals[i] - totals[j]), (*best[j][1], i))
                for j in range(used - 1, i)
            )
            for i in range(used, num_pieces + 1)
        }
    return best[num_pieces][1]


def fill_margin(graph: Graph, cuts: CutPoints) -> int:
    """Bytes that a device may hold beyond its share, as ``get_balanced_memory`` reckons them.

    1.25 times the larger of two: the mean of the modules that own weights, and the largest among
    the first units of each class.
    """
    owners: dict[str, int] = {}
    for parameter in graph.parameters:
        owner = parameter.name.rpartition(".")[0]
        owners[owner] = owners.get(owner, 0) + parameter.num_bytes
    mean = sum(owners.values()) // max(len(owners), 1)
    firsts = {unit.class_name: unit.path for unit in reversed(cuts.units)}
    largest = max(
        (
            sum(size for owner, size in owners.items() if f"{owner}.".startswith(f"{path}."))
            for path in firsts.values()
        ),
        default=0,
    )
    return int(1.25 * max(largest, mean))


def _with_unused(graph: Graph, costs: CostModel) -> list[int]:
    """Bytes of each piece with the weights that nothing reads (auxiliary heads).

    accelerate places those too; here they go with the piece that comes next in the model's order.
    """
    reader: dict[str, int] = {}
    for piece in range(costs.num_pieces):
        for operation in graph.operations[costs.positions[piece] : costs.positions[piece + 1]]:
            for name in operation.parameters:
                reader.setdefault(name, piece)
    sizes = [0] * costs.num_pieces
    waiting = 0
    last = 0
    for parameter in graph.parameters:
        waiting += parameter.num_bytes
        if parameter.name in reader:
            last = reader[parameter.name]
            sizes[last] += waiting
            waiting = 0
    sizes[last] += waiting
    return sizes


def fill_in_order(sizes: Sequence[int], num_devices: int, *, share_bytes: int) -> tuple[int, ...]:
    """Fills one device after the other, as accelerate's ``device_map="auto"`` does.

    Every device but the last takes `share_bytes` at most. The first also keeps room for the largest
    piece that comes after; so it may get nothing. The last one takes what is left.
    """
    stops: list[int] = []
    piece = 0
    for device in range(num_devices - 1):
        held = 0
        while piece < len(sizes):
            reserve = max(sizes[piece + 1 :], default=0) if device == 0 else 0
            if held + sizes[piece] > share_bytes - reserve:
                break
            held += sizes[piece]
            piece += 1
        stops.append(piece)
    return (*stops, len(sizes))
