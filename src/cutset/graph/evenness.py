"""How even the stages of a model can be, and whether more tensors across a cut would help."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

import msgspec

from cutset.graph.cuts import CutPoints, find_cut_points
from cutset.graph.ir import Graph

TRIED_TENSORS = (2, 3, 4, 6, 8, 12)
"""Numbers of tensors across a cut that are tried."""

WORTH = 0.95
"""Largest ratio of new to old slowest stage at which more tensors are worth naming."""


class Suggestion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a larger `max_tensors` would give.

    Attributes:
        max_tensors: the least number of those tried that helps as much.
        num_points: candidate cut points with it.
        slowest_now: multiply-adds of the slowest stage over those of an even one, as things are;
            the number of stages where the model cannot be cut at all.
        slowest_then: the same with `max_tensors`.
    """

    max_tensors: int
    num_points: int
    slowest_now: float
    slowest_then: float

    def __str__(self) -> str:
        gain = 1 - self.slowest_then / self.slowest_now
        return (
            f"max_tensors={self.max_tensors} would make the slowest stage {gain:.0%} smaller "
            f"({self.slowest_then:.2f} of an even one instead of {self.slowest_now:.2f})"
        )


def slowest_over_even(graph: Graph, cuts: CutPoints, num_stages: int) -> float:
    """Multiply-adds of the slowest of at most `num_stages` stages over those of an even one.

    The least such ratio that the cut points allow: 1 is perfect, `num_stages` no cut at all.
    The threshold is found by bisection over whole numbers; for each, stages are filled greedily.

    Raises:
        ValueError: `num_stages` is below 1.
    """
    if num_stages < 1:
        raise ValueError(f"num_stages is {num_stages}, expected 1 or more")
    if not graph.flops:
        return 1.0
    ends = [*(point.cumulative_flops for point in cuts.points), graph.flops]
    sizes = [end - start for start, end in pairwise([0, *ends])]
    low, high = max(*sizes, -(-graph.flops // num_stages)), graph.flops
    while low < high:
        middle = (low + high) // 2
        if _num_stages_within(sizes, middle) <= num_stages:
            high = middle
        else:
            low = middle + 1
    return low * num_stages / graph.flops


def _num_stages_within(sizes: Collection[int], most: int) -> int:
    """How many stages it takes when none may have more than `most` multiply-adds."""
    count, filled = 1, 0
    for size in sizes:
        if filled + size > most:
            count, filled = count + 1, 0
        filled += size
    return count


def suggest_max_tensors(
    graph: Graph,
    cuts: CutPoints,
    num_stages: int,
    *,
    keep: Collection[str] = (),
    divide: Collection[str] = (),
) -> Suggestion | None:
    """The number of tensors across a cut that would make stages more even, if one does.

    Args:
        graph: the captured model.
        cuts: its positions, judged with the present `max_tensors`.
        num_stages: how many stages are wanted.
        keep: as given to `find_cut_points`.
        divide: likewise.
    """
    now = slowest_over_even(graph, cuts, num_stages)
    found: Suggestion | None = None
    for max_tensors in TRIED_TENSORS:
        if max_tensors <= cuts.max_tensors:
            continue
        wider = find_cut_points(graph, keep=keep, divide=divide, max_tensors=max_tensors)
        then = slowest_over_even(graph, wider, num_stages)
        if then <= WORTH * (found.slowest_then if found else now):
            found = Suggestion(
                max_tensors=max_tensors,
                num_points=len(wider.points),
                slowest_now=now,
                slowest_then=then,
            )
    return found
