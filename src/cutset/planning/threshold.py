"""Is there a plan with a period of at most T? Any device order, answered with bit sets.

For each set (or count) of devices in use and each last device we keep the boundaries that can be
reached, one bit each. A stage on one more device maps a set of starts to a set of ends; the union
over eight starts at a time is looked up in a table (the method of the four Russians: Arlazarov,
Dinic, Kronrod, Faradzev 1970), so a set of 96 boundaries takes 12 look-ups. All states of a level
(as many devices in use) go through NumPy together. Nothing is assumed about which boundaries can
be reached: a cut that is small may come after one that is too large, so feasibility is not monotone
and no greedy step would be safe.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from cutset.planning.lattice import Lattice, OverBudget
from cutset.planning.problem import ChainProblem, Ints, Placed, with_slack

MAX_TABLE_BYTES = 256 * 2**20
MAX_STATE_BYTES = 512 * 2**20

Words = npt.NDArray[np.uint64]


def _pack(rows: npt.NDArray[np.bool_], num_words: int) -> Words:
    """Packs booleans of shape (..., k) into 64-bit words, lowest bit first."""
    packed = np.packbits(rows, axis=-1, bitorder="little")
    padded = np.zeros((*rows.shape[:-1], num_words * 8), dtype=np.uint8)
    padded[..., : packed.shape[-1]] = packed
    return padded.view(np.uint64)


def _unpack(words: Words, size: int) -> npt.NDArray[np.bool_]:
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little", count=size)
    return bits.astype(bool)


@dataclasses.dataclass(frozen=True)
class _Level:
    """States with the same number of stages.

    Attributes:
        states: their numbers, rising, shape (M,).
        reached: boundaries by last class, shape (M, C, words).
    """

    states: Ints
    reached: Words


class ThresholdSearch:
    """Answers the question for one problem and many limits.

    Overlapped periods, or serial ones where all links cost the same (then the load of a stage
    follows from its two boundaries).

    Raises:
        OverBudget: the look-up tables or the states would take too much memory.
    """

    def __init__(self, problem: ChainProblem) -> None:
        self.problem = problem
        self.lattice = Lattice(problem)
        self.size = problem.num_pieces + 1
        self.num_words = (self.size + 63) // 64
        row_bytes = self.num_words * 8
        if problem.num_classes * self.num_words * 8 * 256 * row_bytes > MAX_TABLE_BYTES:
            raise OverBudget(f"{self.size} boundaries are too many for bit sets")
        if self.lattice.num_states * problem.num_classes * row_bytes > MAX_STATE_BYTES:
            raise OverBudget(f"{self.lattice.num_states} states are too many")
        self.place = np.zeros(self.lattice.num_states, dtype=np.int64)
        self._at_least = _pack(
            np.tri(self.size + 1, self.size, -1, dtype=bool) == 0, self.num_words
        )

    def find(self, limit_s: float) -> tuple[Placed, ...] | None:
        """Some plan with a period of at most `limit_s`, or None where there is none."""
        problem, limit_s = self.problem, with_slack(limit_s)
        stages = [self._stages(c, limit_s) for c in range(problem.num_classes)]
        tables = [self._table(rows) for rows in stages]
        links = self._links(limit_s)
        levels: list[_Level] = []
        level: _Level | None = self._first(stages, limit_s)
        last_bit = np.uint64(1) << np.uint64((self.size - 1) % 64)
        exits = problem.sink_s <= limit_s if not problem.serial else np.ones(len(stages), bool)
        while level is not None:
            levels.append(level)
            if problem.num_stages in (None, len(levels)):
                done = (level.reached[:, :, (self.size - 1) // 64] & last_bit) != 0
                found = np.argwhere(done & exits)
                if len(found):
                    at, device_class = (int(x) for x in found[0])
                    return self._trace(levels, at, device_class, stages, links)
            if len(levels) == self.lattice.num_levels:
                break
            level = self._next(level, tables, links, limit_s)
        return None

    def _stages(self, device_class: int, limit_s: float) -> npt.NDArray[np.bool_]:
        """Which stages are possible on a class: shape (n, n + 1), start by stop."""
        problem = self.problem
        stops = np.arange(self.size)
        allowed = np.zeros((problem.num_pieces, self.size), dtype=bool)
        moves = np.zeros((problem.num_pieces, self.size))
        if problem.serial:
            link = self._any_link()
            received = link[:-1].copy()
            received[0] = problem.source_s[device_class]
            sent = link.copy()
            sent[-1] = problem.sink_s[device_class]
            moves = received[:, None] + sent
        for variant in problem.of_class(device_class):
            if problem.serial:
                prefix = variant.prefix_s
                fits = prefix - prefix[:-1, None] + moves <= limit_s
                reach = variant.furthest
            else:
                fits, reach = np.ones(1, dtype=bool), variant.stops_within(limit_s)
            allowed |= fits & (stops <= reach[:, None])
        allowed &= stops > np.arange(problem.num_pieces)[:, None]
        return allowed

    def _any_link(self) -> npt.NDArray[np.float64]:
        problem = self.problem
        for a in range(problem.num_classes):
            for b in range(problem.num_classes):
                if a != b or problem.counts[a] > 1:
                    return problem.link_row_s(a, b)
        return np.zeros(self.size)

    def _links(self, limit_s: float) -> Words:
        """Boundaries where a cut between two classes is fast enough: shape (C, C, words)."""
        problem = self.problem
        num = problem.num_classes
        allowed = np.zeros((num, num, self.size), dtype=bool)
        for a in range(num):
            for b in range(num):
                if (a != b or problem.counts[a] > 1) and self.lattice.can_follow(a, b):
                    row = problem.link_row_s(a, b)
                    allowed[a, b] = True if problem.serial else row <= limit_s
        allowed[:, :, [0, -1]] = False
        return _pack(allowed, self.num_words)

    def _table(self, stages: npt.NDArray[np.bool_]) -> Words:
        """For each group of 8 starts and each of their 256 subsets, the union of their ends."""
        num_groups = self.num_words * 8
        flat = np.zeros((num_groups * 8, self.num_words), dtype=np.uint64)
        flat[: len(stages)] = _pack(stages, self.num_words)
        rows = flat.reshape(num_groups, 8, self.num_words)
        table = np.zeros((num_groups, 256, self.num_words), dtype=np.uint64)
        for bit in range(8):
            half = 1 << bit
            table[:, half : 2 * half] = table[:, :half] | rows[:, bit, None]
        return table

    def _first(self, stages: list[npt.NDArray[np.bool_]], limit_s: float) -> _Level | None:
        problem = self.problem
        states = np.unique(self.lattice.strides)
        reached = np.zeros((len(states), problem.num_classes, self.num_words), dtype=np.uint64)
        for c, rows in enumerate(stages):
            if problem.serial or problem.source_s[c] <= limit_s:
                at = int(np.searchsorted(states, self.lattice.strides[c]))
                reached[at, c] = _pack(rows[0], self.num_words)
        return self._pruned(states, reached, limit_s)

    def _next(
        self, level: _Level, tables: list[Words], links: Words, limit_s: float
    ) -> _Level | None:
        """Adds a stage on every class that has a device left."""
        lattice, num = self.lattice, self.problem.num_classes
        chosen, ends, targets = [], [], []
        for f in range(num):
            rows = np.flatnonzero(lattice.has_room(level.states, f))
            starts = np.zeros((len(rows), self.num_words), dtype=np.uint64)
            for e in range(num):
                if links[e, f].any():
                    starts |= level.reached[rows, e] & links[e, f]
            alive = np.flatnonzero(starts.any(axis=1))
            if len(alive) == 0:
                continue
            chosen.append(f)
            ends.append(_expand(np.ascontiguousarray(starts[alive]), tables[f]))
            targets.append(level.states[rows[alive]] + lattice.strides[f])
        if not chosen:
            return None
        used = np.zeros(lattice.num_states, dtype=bool)
        for target in targets:
            used[target] = True
        states = np.flatnonzero(used)
        self.place[states] = np.arange(len(states))
        reached = np.zeros((len(states), num, self.num_words), dtype=np.uint64)
        for f, end, target in zip(chosen, ends, targets, strict=True):
            reached[self.place[target], f] = end
        return self._pruned(states, reached, limit_s)

    def _pruned(self, states: Ints, reached: Words, limit_s: float) -> _Level | None:
        """Drops boundaries from which the devices left over cannot finish, and dead states."""
        least = self.lattice.least_boundary(states, limit_s)
        reached = reached & self._at_least[least][:, None]
        alive = np.flatnonzero(reached.any(axis=(1, 2)))
        return _Level(states[alive], reached[alive]) if len(alive) else None

    def _trace(
        self,
        levels: list[_Level],
        at: int,
        device_class: int,
        stages: list[npt.NDArray[np.bool_]],
        links: Words,
    ) -> tuple[Placed, ...]:
        """Walks back; among the possible predecessors the one with the cheapest tie cost."""
        problem, stop = self.problem, self.size - 1
        state = int(levels[-1].states[at])
        placed: list[Placed] = []
        for depth in range(len(levels) - 1, 0, -1):
            before = levels[depth - 1]
            state -= int(self.lattice.strides[device_class])
            row = before.reached[int(np.searchsorted(before.states, state))]
            reached = _unpack(row & links[:, device_class], self.size)
            reached[:, : len(stages[device_class])] &= stages[device_class][:, stop]
            costs = np.where(reached, problem.tie_cost, np.inf)
            best_class, start = np.unravel_index(int(np.argmin(costs)), costs.shape)
            placed.append(Placed(int(start), stop, device_class))
            device_class, stop = int(best_class), int(start)
        placed.append(Placed(0, stop, device_class))
        return tuple(reversed(placed))


def _expand(starts: Words, table: Words) -> Words:
    """The union of the ends of every start, for each row of `starts`, shape (M, words)."""
    groups = starts.view(np.uint8)
    ends = np.zeros_like(starts)
    for group in range(groups.shape[1]):
        column = groups[:, group]
        if column.any():
            ends |= table[group].take(column, axis=0)
    return ends
