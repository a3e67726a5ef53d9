"""Exact plans where the order of devices is fixed, or where all devices are equal.

A *node* is "the last stage so far runs on device e" (and "it is stage k", where the number of
stages is prescribed); nodes are visited in the devices' order. For each node we keep, for every
boundary j, whether (or how cheaply) pieces 0 .. j-1 can be covered with the last stage ending at
j. Where neither time nor memory of a stage shrinks when it grows, a stage's possible starts for an
end j are a window [first(j), j - 1]; so each node costs O(n) with running maxima, or O(n log n)
with window minima from a sparse table (Bender and Farach-Colton, LATIN 2000). Where a longer stage
may need less memory (`Variant.possible`), each node looks at every stage: O(n^2).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from cutset.planning.problem import ROUNDING, ChainProblem, Placed, with_slack
from cutset.planning.totals import Bools, Floats, Ints
from cutset.planning.variant import Variant


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
    if wanted is None and problem.max_stages >= min(len(order), problem.num_pieces):
        return [_Node(c, tuple(range(e)), True, True) for e, c in enumerate(order)]
    nodes: list[_Node] = []
    level: dict[int, int] = {}  # device -> index of its node one stage earlier
    for k in range(wanted or problem.max_stages):
        here: dict[int, int] = {}
        left = 0 if wanted is None else wanted - 1 - k
        for e in range(k, len(order) - left):
            before = tuple(index for d, index in level.items() if d < e)
            here[e] = len(nodes)
            nodes.append(_Node(order[e], before, k == 0, wanted in (None, k + 1)))
        level = here
    return nodes


def feasible_fixed(problem: ChainProblem, limit_s: float) -> tuple[Placed, ...] | None:
    """Some plan with a period of at most `limit_s`, or None where there is none.

    For problems that are not coupled (`ChainProblem.is_coupled` is not looked at).
    """
    limit_s = with_slack(limit_s)
    num = problem.num_pieces
    nodes = _nodes(problem)
    stages_of = [_stages_within(problem, v, limit_s) for v in problem.variants]
    reached: list[np.ndarray] = []
    for node in nodes:
        problem.deadline.check()
        starts = _open_starts(problem, nodes, reached, node, limit_s)
        row = np.zeros(num + 1, dtype=bool)
        for variant, possible in zip(problem.variants, stages_of, strict=True):
            if variant.device_class == node.device_class:
                row[1:] |= possible.ends_of(starts[:-1])
        reached.append(row)
    finals = [
        k
        for k, node in enumerate(nodes)
        if node.may_end and reached[k][num] and problem.can_end(node.device_class, limit_s)
    ]
    if not finals:
        return None
    stages: list[Placed] = []
    index, stop = finals[0], num
    while True:
        node = nodes[index]
        starts = _open_starts(problem, nodes, reached, node, limit_s)
        before = np.zeros(stop, dtype=bool)
        for variant, possible in zip(problem.variants, stages_of, strict=True):
            if variant.device_class == node.device_class:
                before |= starts[:stop] & possible.starts_of(stop)
        start = int(np.flatnonzero(before)[0])
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


@dataclasses.dataclass(frozen=True)
class _Stages:
    """Which stages a variant can run within a limit.

    Attributes:
        reach: for each start the largest stop, the start where there is none, shape (n,).
        table: start by stop, shape (n, n + 1); None where all stops up to `reach` are possible, and
            `reach` never falls.
    """

    reach: Ints
    table: Bools | None

    def ends_of(self, starts: Bools) -> Bools:
        """The ends 1 .. n of stages that begin at some of the starts, shape (n,)."""
        ends: Bools
        if self.table is not None:
            ends = np.logical_or.reduce(self.table[starts, 1:], axis=0)
            return ends
        furthest: Ints = np.maximum.accumulate(np.where(starts, self.reach, -1))
        ends = furthest >= np.arange(1, len(self.reach) + 1)
        return ends

    def starts_of(self, stop: int) -> Bools:
        """Which starts below `stop` have a stage that ends there, shape (stop,)."""
        fits: Bools = (
            self.table[:stop, stop] if self.table is not None else self.reach[:stop] >= stop
        )
        return fits

    def first_starts(self) -> Ints:
        """For each end 1 .. n the first start of a stage, the end where none; without a table."""
        ends = np.arange(1, len(self.reach) + 1)
        return np.minimum(np.searchsorted(self.reach, ends, side="left"), ends)


def _stages_within(problem: ChainProblem, variant: Variant, limit_s: float) -> _Stages:
    reach = problem.stops_within(variant, limit_s)
    tables = [variant.possible, problem.ports_fit(variant.device_class, limit_s)]
    known = [table for table in tables if table is not None]
    if not known:
        return _Stages(reach, None)
    starts, stops = np.arange(problem.num_pieces)[:, None], np.arange(problem.num_pieces + 1)
    known += [stops > starts, stops <= reach[:, None]]
    return _Stages(reach, np.logical_and.reduce(known))


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
    starts[0] = node.may_start and problem.can_begin(node.device_class, limit_s)
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
        cost: as `ChainProblem.hop_row`; or, where the problem is coupled, ``"load"``: any plan
            that keeps the period (the value of a node is then the least load so far of its
            unfinished last stage). Media are not held to the limit. The others look at the links'
            ends in no other way than `feasible_fixed`, so for a coupled problem their limit has to
            be infinite.
    """
    limit_s = with_slack(limit_s)
    nodes = _nodes(problem)
    stages_of = [_stages_within(problem, v, limit_s) for v in problem.variants]
    values: list[Floats] = []
    precision = "free"
    if cost in ("latency", "load"):
        precision = "rounded" if _is_benign(problem, limit_s, cost) else "exact"
    for node in nodes:
        problem.deadline.check()
        entry = _entry_values(problem, nodes, values, node, limit_s, cost)
        row = np.full(problem.num_pieces + 1, math.inf)
        for variant, possible in zip(problem.variants, stages_of, strict=True):
            if variant.device_class == node.device_class:
                ends = _best_ends(entry, variant, possible, precision)
                row[1:] = np.minimum(row[1:], ends)
        if cost == "load":
            row += problem.overhead_s[node.device_class]
            row[row > limit_s] = math.inf
        values.append(row)
    best, index = math.inf, -1
    for k, node in enumerate(nodes):
        value = float(values[k][-1])
        if not problem.can_end(node.device_class, limit_s):
            value = math.inf
        elif cost == "load":
            fits = value + problem.last_load_s(node.device_class) <= limit_s
            value = 0.0 if fits and math.isfinite(value) else math.inf
        else:
            value += float(problem.outer_rows(cost)[1][node.device_class])
        if node.may_end and value < best:
            best, index = value, k
    return None if index < 0 else _trace(problem, nodes, values, index, limit_s, cost)


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
    if node.may_start and problem.can_begin(here, limit_s):
        entry[0] = (
            problem.first_load_s(here) if cost == "load" else problem.outer_rows(cost)[0][here]
        )
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
    added = left + problem.hop_row(cost, *pair)[at]
    return added if problem.serial else np.where(link <= limit_s, added, math.inf)


def _best_ends(entry: Floats, variant: Variant, possible: _Stages, precision: str) -> Floats:
    """Least cost of a stage that ends at 1 .. n, over its possible starts.

    Args:
        entry: cost to stand at each boundary.
        variant: gives the stage's seconds.
        possible: which stages there are.
        precision: ``"free"`` where stages cost nothing; ``"rounded"`` to look for the least
            difference with a total; ``"exact"`` to sum every stage, in as many steps as there are.
    """
    num = len(possible.reach)
    if precision == "exact" or possible.table is not None:
        best = np.full(num, math.inf)
        for start in np.flatnonzero(np.isfinite(entry[:-1])).tolist():
            stop = int(possible.reach[start])
            spent = np.full(stop - start, entry[start])
            if precision != "free":
                spent += variant.totals.between(start, slice(start + 1, stop + 1))
            if possible.table is not None:
                spent[~possible.table[start, start + 1 : stop + 1]] = math.inf
            np.minimum(best[start:stop], spent, out=best[start:stop])
        return best
    first = possible.first_starts()
    ends = np.arange(1, num + 1)
    width = ends - first
    prefix = np.zeros(num + 1) if precision == "free" else variant.totals.rounded
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
            starts = np.flatnonzero(_stages_within(problem, variant, limit_s).starts_of(stop))
            is_free = cost not in ("latency", "load")
            spent = 0.0 if is_free else variant.totals.between(starts, stop)
            candidates[starts] = np.minimum(candidates[starts], entry[starts] + spent)
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
