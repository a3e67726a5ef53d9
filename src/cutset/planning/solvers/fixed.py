"""Exact plans where the order of devices is fixed, or where all devices are equal.

A *node* is "the last stage so far runs on device e" (and "it is stage k", where the number of
stages is prescribed); nodes are visited in the devices' order. For each node we keep, for every
boundary j, whether (or how cheaply) pieces 0 .. j-1 can be covered with the last stage ending at
j. A stage's possible starts for an end j are a window [first(j), j - 1], because neither time nor
memory of a stage shrinks when it grows; so each node costs O(n) with running maxima, or
O(n log n) with window minima from a sparse table (Bender and Farach-Colton, LATIN 2000).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from cutset.planning.problem import ROUNDING, ChainProblem, Placed, Variant, with_slack
from cutset.planning.totals import Floats, Ints


@dataclasses.dataclass(frozen=True)
class _Node:
    """Where a plan can stand: its last stage is on `device_class`; predecessors by index."""

    device_class: int
    predecessors: tuple[int, ...]
    may_start: bool
    may_end: bool


def _nodes(problem: ChainProblem) -> list[_Node]:
    wanted = problem.num_stages
    if problem.num_classes == 1:
        last = problem.max_stages
        return [
            _Node(0, (k - 1,) if k else (), k == 0, wanted in (None, k + 1)) for k in range(last)
        ]
    order = [c for c, count in enumerate(problem.counts) for _ in range(count)]
    if wanted is None:
        return [_Node(c, tuple(range(e)), True, True) for e, c in enumerate(order)]
    nodes: list[_Node] = []
    level: dict[int, int] = {}  # device -> index of its node one stage earlier
    for k in range(wanted):
        here: dict[int, int] = {}
        for e in range(k, len(order) - (wanted - 1 - k)):
            before = tuple(index for d, index in level.items() if d < e)
            here[e] = len(nodes)
            nodes.append(_Node(order[e], before, k == 0, k == wanted - 1))
        level = here
    return nodes


def feasible_fixed(problem: ChainProblem, limit_s: float) -> tuple[Placed, ...] | None:
    """Some plan with a period of at most `limit_s`, or None where there is none.

    For problems that are not coupled (`ChainProblem.is_coupled` is not looked at).
    """
    limit_s = with_slack(limit_s)
    num = problem.num_pieces
    nodes = _nodes(problem)
    stops = [problem.stops_within(v, limit_s) for v in problem.variants]
    ends = np.arange(1, num + 1)
    reached: list[np.ndarray] = []
    for node in nodes:
        problem.deadline.check()
        starts = _open_starts(problem, nodes, reached, node, limit_s)
        row = np.zeros(num + 1, dtype=bool)
        for variant, reach in zip(problem.variants, stops, strict=True):
            if variant.device_class == node.device_class:
                row[1:] |= np.maximum.accumulate(np.where(starts[:-1], reach, -1)) >= ends
        reached.append(row)
    finals = [
        k
        for k, node in enumerate(nodes)
        if node.may_end and reached[k][num] and problem.sink_s[node.device_class] <= limit_s
    ]
    if not finals:
        return None
    stages: list[Placed] = []
    index, stop = finals[0], num
    while True:
        node = nodes[index]
        starts = _open_starts(problem, nodes, reached, node, limit_s)
        possible = np.zeros(stop, dtype=bool)
        for variant, reach in zip(problem.variants, stops, strict=True):
            if variant.device_class == node.device_class:
                possible |= starts[:stop] & (reach[:stop] >= stop)
        start = int(np.flatnonzero(possible)[0])
        stages.append(Placed(start, stop, node.device_class))
        if start == 0:
            return tuple(reversed(stages))
        index = next(
            p
            for p in node.predecessors
            if reached[p][start]
            and problem.cut_bytes[start] <= _most_bytes(*_link_of(problem, nodes[p], node), limit_s)
        )
        stop = start


def _open_starts(
    problem: ChainProblem,
    nodes: list[_Node],
    reached: list[np.ndarray],
    node: _Node,
    limit_s: float,
) -> np.ndarray:
    """Boundaries from which a stage of this node can start: reached, over a fast enough link."""
    starts = np.zeros(problem.num_pieces + 1, dtype=bool)
    groups: dict[tuple[float, float], np.ndarray] = {}
    for p in node.predecessors:
        key = _link_of(problem, nodes[p], node)
        groups[key] = groups[key] | reached[p] if key in groups else reached[p]
    for (latency_s, per_byte), rows in groups.items():
        starts |= rows & (problem.cut_bytes <= _most_bytes(latency_s, per_byte, limit_s))
    starts[0] = node.may_start and problem.source_s[node.device_class] <= limit_s
    return starts


def _link_of(problem: ChainProblem, node: _Node, following: _Node) -> tuple[float, float]:
    """Latency and seconds per byte of the link between two nodes."""
    pair = node.device_class, following.device_class
    return float(problem.link_latency_s[pair]), float(problem.link_s_per_byte[pair])


def _most_bytes(latency_s: float, per_byte: float, limit_s: float) -> float:
    """The most bytes that a link carries within a limit; below 0 where it carries nothing."""
    if latency_s > limit_s:
        return -1.0
    return (limit_s - latency_s) / per_byte if per_byte > 0 else math.inf


def cheapest_fixed(
    problem: ChainProblem, limit_s: float, *, cost: str
) -> tuple[Placed, ...] | None:
    """The plan of least cost among those with a period of at most `limit_s`, or None.

    Args:
        problem: devices in order, or all equal.
        limit_s: seconds; infinity for no limit.
        cost: ``"latency"``; ``"ties"``; or, where the problem is coupled, ``"load"``: any plan
            that keeps the period (the value of a node is then the least load so far of its
            unfinished last stage). The other two look at the links' ends in no other way than
            `feasible_fixed`, so for a coupled problem their limit has to be infinite.
    """
    limit_s = with_slack(limit_s)
    nodes = _nodes(problem)
    windows = [_first_starts(problem, v, limit_s) for v in problem.variants]
    values: list[Floats] = []
    precision = "rounded" if _is_benign(problem, limit_s, cost) else "exact"
    for node in nodes:
        problem.deadline.check()
        entry = _entry_values(problem, nodes, values, node, limit_s, cost)
        row = np.full(problem.num_pieces + 1, math.inf)
        for variant, first in zip(problem.variants, windows, strict=True):
            if variant.device_class == node.device_class:
                ends = _best_ends(entry, variant, first, "ties" if cost == "ties" else precision)
                row[1:] = np.minimum(row[1:], ends)
        if cost == "load":
            row += problem.overhead_s[node.device_class]
            row[row > limit_s] = math.inf
        values.append(row)
    best, index = math.inf, -1
    for k, node in enumerate(nodes):
        value, sink_s = float(values[k][-1]), float(problem.sink_s[node.device_class])
        if not problem.serial and sink_s > limit_s:
            value = math.inf
        elif cost == "load":
            fits = value + problem.last_load_s(node.device_class) <= limit_s
            value = 0.0 if fits and math.isfinite(value) else math.inf
        elif cost == "latency":
            value += sink_s
        if node.may_end and value < best:
            best, index = value, k
    return None if index < 0 else _trace(problem, nodes, values, index, limit_s, cost)


def _first_starts(problem: ChainProblem, variant: Variant, limit_s: float) -> Ints:
    """For each end 1 .. n the first start of a possible stage, shape (n,); the end where none."""
    ends = np.arange(1, len(variant.furthest) + 1)
    first = np.searchsorted(problem.stops_within(variant, limit_s), ends, side="left")
    return np.minimum(first, ends)


def _is_benign(problem: ChainProblem, limit_s: float, cost: str) -> bool:
    """Whether rounded totals are exact enough: their error is small beside what is looked for."""
    largest = max(float(v.totals.rounded[-1]) for v in problem.variants)
    if cost == "load":
        return largest * 2.0**-48 <= limit_s * ROUNDING
    work, _ = problem.volume()
    return largest * problem.max_stages * 2.0**-50 <= float(work.sum()) * 1e-11


def _entry_values(
    problem: ChainProblem,
    nodes: list[_Node],
    values: list[Floats],
    node: _Node,
    limit_s: float,
    cost: str,
) -> Floats:
    """Least cost to stand at each boundary with the data arrived on the node's device."""
    entry = np.full(problem.num_pieces + 1, math.inf)
    here = node.device_class
    for p in node.predecessors:
        pair = nodes[p].device_class, here
        np.minimum(entry, _arrived(problem, values[p], pair, slice(None), limit_s, cost), out=entry)
    entry[0] = math.inf
    source_s = float(problem.source_s[here])
    if node.may_start and (problem.serial or source_s <= limit_s):
        begun_s = problem.first_load_s(here) if cost == "load" else 0.0
        entry[0] = source_s if cost == "latency" else begun_s
    return entry


def _arrived(
    problem: ChainProblem,
    value: Floats,
    pair: tuple[int, int],
    at: slice | int,
    limit_s: float,
    cost: str,
) -> Floats:
    """Cost once the data has crossed a link, for the boundaries `at`."""
    left, link = value[at], problem.link_row_s(*pair)[at]
    if cost == "load":
        fits = np.isfinite(left) & (left + problem.sender_row_s(*pair)[at] <= limit_s)
        if not problem.serial:
            fits &= link <= limit_s
        return np.where(fits, problem.receiver_row_s(*pair)[at], math.inf)
    added = left + (link if cost == "latency" else problem.tie_cost[at])
    return added if problem.serial else np.where(link <= limit_s, added, math.inf)


def _best_ends(entry: Floats, variant: Variant, first: Ints, precision: str) -> Floats:
    """Least cost of a stage that ends at 1 .. n, over the window of its starts.

    Args:
        entry: cost to stand at each boundary.
        variant: gives the stage's seconds.
        first: for each end the first start.
        precision: ``"ties"`` where stages cost nothing; ``"rounded"`` to look for the least
            difference with a total; ``"exact"`` to sum every stage, in as many steps as there are.
    """
    num = len(first)
    ends = np.arange(1, num + 1)
    width = ends - first
    if precision == "exact":
        best = np.full(num, math.inf)
        for start in np.flatnonzero(np.isfinite(entry[:-1])):
            stop = int(np.searchsorted(first, start, side="right"))  # first never falls
            seconds = variant.totals.between(int(start), slice(int(start) + 1, stop + 1))
            part = best[start:stop]
            np.minimum(part, entry[start] + seconds, out=part)
        return best
    prefix = np.zeros(num + 1) if precision == "ties" else variant.totals.rounded
    table = [entry[:-1] - prefix[:-1]]
    longest = int(width.max(initial=0))
    while 2 ** len(table) <= longest:
        half = 2 ** (len(table) - 1)
        row = table[-1].copy()
        np.minimum(row[:-half], row[half:], out=row[:-half])
        table.append(row)
    stacked = np.stack(table)
    level = np.frexp(np.maximum(width, 1))[1].astype(np.int64) - 1
    left = stacked[level, np.minimum(first, num - 1)]
    right = stacked[level, np.maximum(ends - 2**level, 0)]
    best = np.minimum(left, right) + prefix[1:]
    return np.where(width > 0, best, math.inf)


def _trace(
    problem: ChainProblem,
    nodes: list[_Node],
    values: list[Floats],
    index: int,
    limit_s: float,
    cost: str,
) -> tuple[Placed, ...]:
    """Walks back along the choices that gave the least cost."""
    stages: list[Placed] = []
    stop = problem.num_pieces
    while True:
        node = nodes[index]
        entry = _entry_values(problem, nodes, values, node, limit_s, cost)
        candidates = np.full(stop, math.inf)
        for variant in problem.of_class(node.device_class):
            first = int(_first_starts(problem, variant, limit_s)[stop - 1])
            starts = np.arange(first, stop)
            spent = 0.0 if cost == "ties" else variant.totals.between(starts, stop)
            candidates[first:] = np.minimum(candidates[first:], entry[first:stop] + spent)
        start = int(np.argmin(candidates))
        stages.append(Placed(start, stop, node.device_class))
        if start == 0:
            return tuple(reversed(stages))
        arrivals = [
            _arrived(
                problem, values[p], (nodes[p].device_class, node.device_class), start, limit_s, cost
            )
            for p in node.predecessors
        ]
        index, stop = node.predecessors[int(np.argmin(arrivals))], start
