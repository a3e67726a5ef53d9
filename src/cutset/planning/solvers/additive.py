"""The cheapest plan within a period: least latency, or the best among equals, for any order.

Dynamic programming over (devices in use, device of the open stage, boundary where it starts).
The value is the cost up to the moment that the stage's input has arrived. This covers what the
faster methods cannot: costs that add up along the plan while every stage stays within a limit.

Where a stage is serial, or bytes take from its computing, its load depends on the links on both
sides. If all links cost the same, both shares follow from the boundaries; if not, the state also
names the device before it.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from cutset.planning.deadline import OverBudget
from cutset.planning.problem import ChainProblem, Placed, with_slack
from cutset.planning.solvers.lattice import Lattice
from cutset.planning.totals import Floats, Ints

MAX_STORED = 40_000_000
"""Numbers that one search may keep (8 bytes each)."""

MAX_WORST = 4
"""A search is not begun where it could come to keep this many times as much."""

_SOURCE = -1


@dataclasses.dataclass(frozen=True)
class _Level:
    """States with the same number of open stages.

    Attributes:
        states: their numbers, shape (M,).
        values: least cost, shape (number of "lasts", n + 1, M).
    """

    states: Ints
    values: Floats


class _Search:
    """One search; `limit_s` has its slack already."""

    def __init__(self, problem: ChainProblem, limit_s: float, cost: str) -> None:
        self.problem = problem
        self.limit_s = limit_s
        self.cost = cost
        self.by_latency = cost == "latency"
        self.by_load = cost == "load"
        self.outer = problem.outer_rows("ties" if self.by_load else cost)
        self.lattice = Lattice(problem)
        self.size = problem.num_pieces + 1
        classes = range(problem.num_classes)
        needs_pairs = problem.is_coupled and not problem.has_uniform_moves and not self.by_load
        self.in_pairs = needs_pairs and math.isfinite(limit_s)
        before = (_SOURCE, *classes) if self.in_pairs else (_SOURCE,)
        self.lasts = [(d, e) for e in classes for d in before if problem.can_follow(d, e)]
        self.index = {last: k for k, last in enumerate(self.lasts)}
        self.links = {pair: problem.link_row_s(*pair) for pair in problem.pairs}
        if problem.is_coupled:
            self.sent = {pair: problem.sender_row_s(*pair) for pair in problem.pairs}
            self.received = {pair: problem.receiver_row_s(*pair) for pair in problem.pairs}
        self.rows: dict[tuple[int, int, int, int], tuple[int, Floats]] = {}
        self.least_left: Floats = np.zeros(self.size)
        if self.by_latency:
            work, _ = problem.volume()
            self.least_left = np.append(np.cumsum(work[::-1])[::-1], 0.0)

    def last_of(self, device_class: int, next_class: int) -> int:
        return self.index[(device_class if self.in_pairs else _SOURCE, next_class)]

    def row(self, last: tuple[int, int], start: int, following: int) -> tuple[int, Floats]:
        """Costs of the stages that start at `start`: (furthest stop, costs of start+1 .. stop).

        `following` is the class of the next stage; `_SOURCE` where it does not matter or where
        the stage is the last one.
        """
        key = (*last, start, following)
        if key not in self.rows:
            self.rows[key] = self._make_row(last, start, following)
        return self.rows[key]

    def _make_row(self, last: tuple[int, int], start: int, following: int) -> tuple[int, Floats]:
        problem, here = self.problem, last[1]
        best = np.full(problem.num_pieces - start, math.inf)
        for variant in problem.of_class(here):
            stop = int(variant.furthest[start])
            seconds = variant.totals.between(start, slice(start + 1, stop + 1))
            if variant.possible is not None:
                seconds = np.where(variant.possible[start, start + 1 : stop + 1], seconds, math.inf)
            best[: stop - start] = np.minimum(best[: stop - start], seconds)
        fits = problem.ports_fit(here, self.limit_s)
        if fits is not None:
            best[~fits[start, start + 1 :]] = math.inf
        load = best + problem.overhead_s[here]
        if self.by_load:
            best = load
        elif problem.is_coupled and math.isfinite(self.limit_s):
            load = load + self._moves_s(last, start, following)
        best[load > self.limit_s] = math.inf
        allowed = np.flatnonzero(np.isfinite(best))
        stop = start + 1 + int(allowed[-1]) if len(allowed) else start
        best = best[: stop - start]
        if self.by_latency or self.by_load:
            return stop, best
        return stop, np.where(np.isfinite(best), 0.0, math.inf)

    def _moves_s(self, last: tuple[int, int], start: int, following: int) -> Floats:
        """What receiving and sending add to the load of a stage, for each stop from `start`."""
        problem, here = self.problem, last[1]
        if start == 0:
            received = problem.first_load_s(here)
        else:
            before = last[0] if self.in_pairs else problem.any_source(here)
            received = math.inf if before is None else float(self.received[before, here][start])
        after = following if self.in_pairs else problem.any_target(here)
        sent = np.full(self.size, math.inf)
        if after is not None and after >= 0:
            sent = self.sent[here, after].copy()
        ends_here = following < 0 or not self.in_pairs
        sent[-1] = problem.last_load_s(here) if ends_here else math.inf
        moves: Floats = received + sent[start + 1 :]
        return moves

    def first_level(self) -> _Level:
        problem, lattice = self.problem, self.lattice
        states = np.unique(lattice.strides)
        values = np.full((len(self.lasts), self.size, len(states)), math.inf)
        for e in range(problem.num_classes):
            if problem.can_begin(e, self.limit_s):
                at = int(np.searchsorted(states, lattice.strides[e]))
                begun_s = problem.first_load_s(e) if self.by_load else float(self.outer[0][e])
                values[self.index[(_SOURCE, e)], 0, at] = begun_s
        return _Level(states, values)

    def closed(self, level: _Level, last: tuple[int, int], following: int) -> Floats:
        """Least cost to have ended the open stage at each boundary, shape (n + 1, M)."""
        values = level.values[self.index[last]]
        out: Floats = np.full(values.shape, math.inf)
        for start in np.flatnonzero(np.isfinite(values[:-1]).any(axis=1)):
            stop, row = self.row(last, int(start), following)
            part = out[start + 1 : stop + 1]
            np.minimum(part, values[start] + row[:, None], out=part)
        least = self.lattice.least_boundary(level.states, self.limit_s)
        out[np.arange(self.size)[:, None] < least] = math.inf
        return out

    def end_cost(self, closed: Floats, device_class: int) -> Floats:
        """Cost of a plan that ends with this stage, shape (M,)."""
        if not self.problem.can_end(device_class, self.limit_s):
            return np.full(closed.shape[1], math.inf)
        if self.by_load:
            load = closed[-1] + self.problem.last_load_s(device_class)
            return np.where(np.isfinite(closed[-1]) & (load <= self.limit_s), 0.0, math.inf)
        total: Floats = closed[-1] + float(self.outer[1][device_class])
        return total

    def crossed(self, done: Floats, device_class: int, next_class: int) -> Floats:
        """Cost after a cut at each boundary, from `done` of shape (n + 1,) or (n + 1, M)."""
        if self.by_load:
            pair, shape = (device_class, next_class), (-1, *([1] * (done.ndim - 1)))
            sent, received = self.sent[pair].reshape(shape), self.received[pair].copy()
            received[0] = received[-1] = math.inf
            if not self.problem.serial:
                received[self.links[pair] > self.limit_s] = math.inf
            fits = np.isfinite(done) & (done + sent <= self.limit_s)
            return np.where(fits, received.reshape(shape), math.inf)
        added = self.crossing(device_class, next_class)
        total: Floats = done + added.reshape(-1, *([1] * (done.ndim - 1)))
        return total

    def crossing(self, device_class: int, next_class: int) -> Floats:
        """What a cut at each boundary adds between two classes, shape (n + 1,)."""
        link = self.links[device_class, next_class]
        added: Floats = self.problem.hop_row(self.cost, device_class, next_class).copy()
        if not self.problem.serial:
            added[link > self.limit_s] = math.inf
        added[0] = added[-1] = math.inf
        return added

    def next_level(self, level: _Level, best: float) -> _Level | None:
        """Opens one more stage in every way that can still beat `best`."""
        lattice, classes = self.lattice, range(self.problem.num_classes)
        room = [np.flatnonzero(lattice.has_room(level.states, f)) for f in classes]
        after = [level.states[room[f]] + lattice.strides[f] for f in classes]
        states = np.unique(np.concatenate(after))
        if len(states) == 0:
            return None
        values = np.full((len(self.lasts), self.size, len(states)), math.inf)
        for last in self.lasts:
            self.problem.deadline.check()
            if not np.isfinite(level.values[self.index[last]]).any():
                continue
            closed = None if self.in_pairs else self.closed(level, last, _SOURCE)
            for f in classes:
                if (last[1], f) not in self.links or not lattice.can_follow(last[1], f):
                    continue
                done = self.closed(level, last, f) if closed is None else closed
                at = np.searchsorted(states, after[f])
                moved = self.crossed(done[:, room[f]], last[1], f)
                target = values[self.last_of(last[1], f)]
                target[:, at] = np.minimum(target[:, at], moved)
        if math.isfinite(best):
            values[values + self.least_left[:, None] > best * (1 + 1e-9)] = math.inf
        alive = np.flatnonzero(np.isfinite(values).any(axis=(0, 1)))
        if len(alive) == 0:
            return None
        return _Level(states[alive], np.ascontiguousarray(values[:, :, alive]))

    def best_end(self, level: _Level) -> tuple[float, int, int]:
        """The cheapest way to end a plan here: cost, index of the last, index of the state."""
        best = (math.inf, -1, -1)
        for k, last in enumerate(self.lasts):
            if np.isfinite(level.values[k]).any():
                total = self.end_cost(self.closed(level, last, _SOURCE), last[1])
                at = int(np.argmin(total))
                if total[at] < best[0]:
                    best = float(total[at]), k, at
        return best

    def trace(self, levels: list[_Level], depth: int, last_at: int, at: int) -> tuple[Placed, ...]:
        """Walks back along the choices that gave the least cost."""
        stages: list[Placed] = []
        stop, following = self.size - 1, _SOURCE
        while True:
            level, last = levels[depth], self.lasts[last_at]
            start, _ = self._best_start(level, last_at, at, stop, following)
            stages.append(Placed(start, stop, last[1]))
            if start == 0:
                return tuple(reversed(stages))
            state = level.states[at] - self.lattice.strides[last[1]]
            depth, stop, following = depth - 1, start, last[1]
            at = int(np.searchsorted(levels[depth].states, state))
            options: list[tuple[float, int]] = []
            for k, (_, e) in enumerate(self.lasts):
                if (self.in_pairs and e != last[0]) or (e, last[1]) not in self.links:
                    continue
                if not self.lattice.can_follow(e, last[1]):
                    continue
                _, cost = self._best_start(levels[depth], k, at, stop, following)
                row = np.full(self.size, math.inf)
                row[stop] = cost
                options.append((float(self.crossed(row, e, last[1])[stop]), k))
            last_at = min(options)[1]

    def _best_start(
        self, level: _Level, last_at: int, at: int, stop: int, following: int
    ) -> tuple[int, float]:
        values = level.values[last_at, :, at]
        best = (0, math.inf)
        for start in np.flatnonzero(np.isfinite(values[:stop])):
            end, row = self.row(self.lasts[last_at], int(start), self._named(following))
            if stop <= end and values[start] + row[stop - start - 1] < best[1]:
                best = int(start), float(values[start] + row[stop - start - 1])
        return best

    def _named(self, following: int) -> int:
        return following if self.in_pairs else _SOURCE


def cheapest(
    problem: ChainProblem, limit_s: float, *, cost: str, stop_at_first: bool = False
) -> tuple[Placed, ...] | None:
    """The plan of least cost among those with a period of at most `limit_s`, or None.

    Args:
        problem: any.
        limit_s: seconds; infinity for no limit.
        cost: as `ChainProblem.hop_row`; or, where the problem is coupled, ``"load"``: any plan
            that keeps the period (the value is then the least load so far of the open stage, so
            links may differ freely). Media are not held to the limit.
        stop_at_first: return the first plan found, with the fewest stages, whatever it costs.

    Raises:
        OverBudget: the search would keep more than `MAX_STORED` numbers, or its time is over.
    """
    search = _Search(problem, with_slack(limit_s), cost)
    if search.lattice.num_states * len(search.lasts) * search.size > MAX_WORST * MAX_STORED:
        raise OverBudget(f"{search.lattice.num_states} states of {search.size} boundaries")
    levels = [search.first_level()]
    best, place, stored = math.inf, (-1, -1, -1), 0
    for depth in range(search.lattice.num_levels):
        level = levels[depth]
        if problem.num_stages in (None, depth + 1):
            total, last_at, at = search.best_end(level)
            if total < best:
                best, place = total, (depth, last_at, at)
        if depth + 1 == search.lattice.num_levels or (stop_at_first and place[0] >= 0):
            break
        following = search.next_level(level, best if problem.num_stages is None else math.inf)
        if following is None:
            break
        stored += following.values.size
        if stored > MAX_STORED:
            raise OverBudget(f"{stored} numbers at {depth + 2} stages")
        levels.append(following)
    return search.trace(levels, *place) if place[0] >= 0 else None
