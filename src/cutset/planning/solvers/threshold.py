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
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cutset.planning.deadline import OverBudget
from cutset.planning.problem import ChainProblem, Placed, with_slack
from cutset.planning.solvers.lattice import Lattice
from cutset.planning.totals import Ints

MAX_TABLE_BYTES = 256 * 2**20
MAX_STATE_BYTES = 512 * 2**20
FEW_STATES = 512

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
        reached: boundaries by last class, shape (C, words, M): the states lie side by side, so
            that every step is a few passes over long rows.
    """

    states: Ints
    reached: Words


@dataclasses.dataclass(frozen=True)
class _Pass:
    """One run of the search at one limit.

    Attributes:
        stages: for each class which stages are possible, shape (n, n + 1), start by stop.
        links: boundaries where a cut between two classes is fast enough, shape (C, C, words).
        levels: by number of stages.
        ends: where a plan is complete: depth, index of the state, class.
    """

    stages: list[npt.NDArray[np.bool_]]
    links: Words
    levels: list[_Level]
    ends: list[tuple[int, int, int]]


class ThresholdSearch:
    """Answers the question for one problem and many limits.

    Problems that are not coupled, or coupled ones where all links cost the same (then the load of
    a stage follows from its two boundaries).

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
        pass_ = self._run(with_slack(limit_s), stop_early=True)
        if not pass_.ends:
            return None
        return self._trace(pass_, pass_.ends[0], lambda *_: 0.0)

    def find_cheapest(self, limit_s: float, max_visits: int) -> tuple[Placed, ...] | None:
        """The plan of least tie cost within `limit_s`; None where there is none or too many.

        Only what lies on some plan is visited, from the end; where limits are tight that is little.

        Args:
            limit_s: seconds.
            max_visits: how many (state, class, boundary) may be looked at.
        """
        pass_ = self._run(with_slack(limit_s), stop_early=False)
        known: dict[tuple[int, int, int, int], float] = {}

        def cost_of(depth: int, at: int, device_class: int, stop: int) -> float:
            key = depth, at, device_class, stop
            if key not in known:
                if len(known) >= max_visits:
                    raise OverBudget(f"more than {max_visits} ways to compare")
                known[key] = min(
                    (
                        float(self.problem.tie_cost[before[3]]) + cost_of(*before)
                        for before in self._before(pass_, *key)
                    ),
                    default=0.0,
                )
            return known[key]

        if not pass_.ends:
            return None
        try:
            ends = [(cost_of(*end, self.size - 1), end) for end in pass_.ends]
            return self._trace(pass_, min(ends)[1], cost_of)
        except OverBudget:
            return None

    def _run(self, limit_s: float, *, stop_early: bool) -> _Pass:
        """All levels, or those up to the first that holds a plan."""
        problem = self.problem
        stages = [self._stages(c, limit_s) for c in range(problem.num_classes)]
        tables = [self._table(rows) for rows in stages]
        pass_ = _Pass(stages=stages, links=self._links(limit_s), levels=[], ends=[])
        level: _Level | None = self._first(stages, limit_s)
        last_bit = np.uint64(1) << np.uint64((self.size - 1) % 64)
        exits = np.array([problem.can_end(c, limit_s) for c in range(problem.num_classes)])
        while level is not None:
            pass_.levels.append(level)
            depth = len(pass_.levels) - 1
            if problem.num_stages in (None, depth + 1):
                done = (level.reached[:, (self.size - 1) // 64] & last_bit) != 0
                found = np.argwhere(done & exits[:, None])
                pass_.ends.extend((depth, int(at), int(c)) for c, at in found)
                if stop_early and pass_.ends:
                    break
            if depth + 1 == self.lattice.num_levels:
                break
            problem.deadline.check()
            level = self._next(level, tables, pass_.links, limit_s)
        return pass_

    def _stages(self, device_class: int, limit_s: float) -> npt.NDArray[np.bool_]:
        """Which stages are possible on a class: shape (n, n + 1), start by stop."""
        problem = self.problem
        stops = np.arange(self.size)
        allowed = np.zeros((problem.num_pieces, self.size), dtype=bool)
        overhead_s = float(problem.overhead_s[device_class])
        if problem.is_coupled:
            moves = self._moves_s(device_class)
            starts = np.arange(problem.num_pieces)[:, None]
        for variant in problem.of_class(device_class):
            if problem.is_coupled:
                seconds = variant.totals.between(starts, stops[None, :])
                fits = seconds + moves <= limit_s - overhead_s
                reach = variant.furthest
            else:
                fits, reach = np.ones(1, dtype=bool), problem.stops_within(variant, limit_s)
            fits = fits & (stops <= reach[:, None])
            allowed |= fits if variant.possible is None else fits & variant.possible
        allowed &= stops > np.arange(problem.num_pieces)[:, None]
        ports = problem.ports_fit(device_class, limit_s)
        return allowed if ports is None else allowed & ports

    def _moves_s(self, here: int) -> npt.NDArray[np.float64]:
        """What receiving and sending add to the load of every stage, shape (n, n + 1)."""
        problem = self.problem
        none = np.full(self.size, np.inf)
        before, after = problem.any_source(here), problem.any_target(here)
        received = none[:-1] if before is None else problem.receiver_row_s(before, here)[:-1].copy()
        received[0] = problem.first_load_s(here)
        sent = none if after is None else problem.sender_row_s(here, after).copy()
        sent[-1] = problem.last_load_s(here)
        moves: npt.NDArray[np.float64] = received[:, None] + sent
        return moves

    def _links(self, limit_s: float) -> Words:
        """Boundaries where a cut between two classes is fast enough: shape (C, C, words)."""
        problem = self.problem
        num = problem.num_classes
        allowed = np.zeros((num, num, self.size), dtype=bool)
        for a in range(num):
            for b in range(num):
                if problem.can_follow(a, b) and self.lattice.can_follow(a, b):
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
        reached = np.zeros((problem.num_classes, self.num_words, len(states)), dtype=np.uint64)
        for c, rows in enumerate(stages):
            if problem.can_begin(c, limit_s):
                at = int(np.searchsorted(states, self.lattice.strides[c]))
                reached[c, :, at] = _pack(rows[0], self.num_words)
        return self._pruned(states, reached, limit_s)

    def _next(
        self, level: _Level, tables: list[Words], links: Words, limit_s: float
    ) -> _Level | None:
        """Adds a stage on every class that has a device left."""
        lattice, num = self.lattice, self.problem.num_classes
        chosen, ends, targets = [], [], []
        for f in range(num):
            if len(level.states) < FEW_STATES:
                starts = np.bitwise_or.reduce(level.reached & links[:, f, :, None], axis=0)
            else:
                starts = np.zeros((self.num_words, len(level.states)), dtype=np.uint64)
                for e, word in np.argwhere(links[:, f]):
                    starts[word] |= level.reached[e, word] & links[e, f, word]
            alive = np.flatnonzero(lattice.has_room(level.states, f) & starts.any(axis=0))
            if len(alive) == 0:
                continue
            chosen.append(f)
            ends.append(_expand(starts[:, alive], tables[f]))
            targets.append(level.states[alive] + lattice.strides[f])
        if not chosen:
            return None
        used = np.zeros(lattice.num_states, dtype=bool)
        for target in targets:
            used[target] = True
        states = np.flatnonzero(used)
        self.place[states] = np.arange(len(states))
        reached = np.zeros((num, self.num_words, len(states)), dtype=np.uint64)
        for f, end, target in zip(chosen, ends, targets, strict=True):
            reached[f][:, self.place[target]] = end
        return self._pruned(states, reached, limit_s)

    def _pruned(self, states: Ints, reached: Words, limit_s: float) -> _Level | None:
        """Drops boundaries from which the devices left over cannot finish, and dead states."""
        least = self.lattice.least_boundary(states, limit_s)
        reached &= np.ascontiguousarray(self._at_least[least].T)
        alive = np.flatnonzero(reached.any(axis=(0, 1)))
        if len(alive) == 0:
            return None
        return _Level(states[alive], np.ascontiguousarray(reached[:, :, alive]))

    def _before(
        self, pass_: _Pass, depth: int, at: int, device_class: int, stop: int
    ) -> list[tuple[int, int, int, int]]:
        """Where a plan can have stood before its last stage: depth, state, class, boundary."""
        if depth == 0:
            return []
        before, stages = pass_.levels[depth - 1], pass_.stages[device_class]
        state = pass_.levels[depth].states[at] - self.lattice.strides[device_class]
        index = int(np.searchsorted(before.states, state))
        row = before.reached[:, :, index] & pass_.links[:, device_class]
        reached = _unpack(np.ascontiguousarray(row), self.size)[:, : len(stages)]
        found = np.argwhere(reached & stages[:, stop])
        return [(depth - 1, index, int(c), int(start)) for c, start in found]

    def _trace(
        self,
        pass_: _Pass,
        end: tuple[int, int, int],
        cost_of: Callable[[int, int, int, int], float],
    ) -> tuple[Placed, ...]:
        """Walks back; among the possible predecessors the one with the cheapest ties."""
        tie_cost = self.problem.tie_cost
        here = (*end, self.size - 1)
        placed: list[Placed] = []
        while here[0] > 0:
            options = self._before(pass_, *here)
            before = min(options, key=lambda key: (float(tie_cost[key[3]]) + cost_of(*key), key))
            placed.append(Placed(before[3], here[3], here[2]))
            here = before
        placed.append(Placed(0, here[3], here[2]))
        return tuple(reversed(placed))


def _expand(starts: Words, table: Words) -> Words:
    """The union of the ends of every start, for each column of `starts`, shape (words, M)."""
    num_words, num = starts.shape
    octets = np.ascontiguousarray(starts).view(np.uint8).reshape(num_words, num, 8)
    if num < FEW_STATES:  # one call that gathers everything beats many that stay in the cache
        groups = np.arange(num_words * 8)[:, None]
        columns = octets.transpose(0, 2, 1).reshape(num_words * 8, num)
        gathered: Words = np.bitwise_or.reduce(table[groups, columns], axis=0).T
        return gathered
    ends = np.zeros((num_words, num), dtype=np.uint64)
    useful: npt.NDArray[np.bool_] = np.any(table != 0, axis=1)
    for word in range(num_words):
        if not starts[word].any():
            continue
        for octet in range(8):
            column = octets[word, :, octet]
            group = table[word * 8 + octet]
            for target in np.flatnonzero(useful[word * 8 + octet]):
                ends[target] |= np.ascontiguousarray(group[:, target]).take(column)
    return ends
