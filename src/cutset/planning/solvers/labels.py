"""The best plan where several sums have to stay within limits: media, and a latency.

What each medium carries adds up along a plan, and so does its latency; where stages depend on what
they receive, so does the load of the open one. A partial plan is a *label*: its sums. Of the
partial plans with the same devices in use, the same last device and the same boundary only those
are kept that no other equals or beats in every sum, and that can still be finished within the
limits, for which the least that is left of each sum is known beforehand (as if devices could be
used again). So nothing is lost, but the labels may be many: then the search ends with `OverBudget`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

from cutset.planning.deadline import OverBudget
from cutset.planning.problem import ROUNDING, ChainProblem, Placed, with_slack
from cutset.planning.solvers.lattice import Lattice
from cutset.planning.totals import Bools, Floats, Ints

MAX_LABELS = 2_000_000
"""Labels that one search may keep."""

MAX_CELLS = 20_000_000
"""Stages of all classes whose seconds are listed at most."""

MAX_PAIRED = 400
"""Up to so many labels of one place are compared each with each."""


@dataclasses.dataclass(frozen=True)
class _Labels:
    """Partial plans with the same number of stages, the last of which is open.

    Attributes:
        states: devices in use, as `Lattice` numbers them, shape (M,).
        lasts: class of the open stage, shape (M,).
        starts: boundary where it starts, shape (M,).
        sums: what was spent up to the moment that its input has arrived, shape (M, K).
        parents: place of each in the level before, shape (M,).
    """

    states: Ints
    lasts: Ints
    starts: Ints
    sums: Floats
    parents: Ints

    def of(self, chosen: Ints | Bools) -> _Labels:
        return _Labels(**{f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self)})


class _Search:
    """One search.

    Attributes:
        costs: the sums, by the names that `ChainProblem.hop_row` knows; the load of the open
            stage, where the problem is coupled, comes after them.
        limits: the most that each of these may come to.
    """

    def __init__(
        self, problem: ChainProblem, limit_s: float, cost: str, shared_s: float, latency_s: float
    ) -> None:
        self.problem = problem
        self.limit_s = limit_s
        self.num = problem.num_pieces
        if problem.num_classes * self.num**2 > MAX_CELLS:
            raise OverBudget(f"{self.num} pieces are too many for sums over media")
        self.lattice = Lattice(problem)
        self.by_media = cost == "media"
        media = [f"medium {k}" for k in range(problem.num_media)]
        own = ["latency"] if cost == "latency" or math.isfinite(latency_s) else []
        own += ["ties"] if cost == "ties" else []
        self.costs = [*own, *media]
        self.num_own = len(own)
        self.limits = np.array(
            [latency_s if name == "latency" else math.inf for name in own] + [shared_s] * len(media)
        )
        self.objective = None if self.by_media else self.costs.index(cost)
        classes = range(problem.num_classes)
        self.pairs = [pair for pair in problem.pairs if self.lattice.can_follow(*pair)]
        self.seconds = [self._stage_seconds(c) for c in classes]
        self.hops = {pair: self._hop(*pair) for pair in self.pairs}
        self.ends = np.stack([self._ends(k) for k in range(len(self.costs))])
        self.left = np.stack([self._least_left(k) for k in range(len(self.costs))])

    def _stage_seconds(self, here: int) -> Floats:
        """Seconds of every stage on a class, infinity where it is not possible, (n, n + 1)."""
        problem = self.problem
        starts, stops = np.arange(self.num)[:, None], np.arange(self.num + 1)[None, :]
        best = np.full((self.num, self.num + 1), math.inf)
        for variant in problem.of_class(here):
            seconds = variant.totals.between(starts, stops)
            possible = (stops > starts) & (stops <= variant.furthest[:, None])
            if variant.possible is not None:
                possible &= variant.possible
            best = np.where(possible, np.minimum(best, seconds), best)
        best[best + float(problem.overhead_s[here]) > self.limit_s] = math.inf
        fits = problem.ports_fit(here, self.limit_s)
        if fits is not None:
            best[~fits] = math.inf
        return best

    def _hop(self, source: int, target: int) -> Floats:
        """What a cut at each boundary adds to each cost, shape (K, n + 1)."""
        rows = np.stack([self.problem.hop_row(c, source, target) for c in self.costs])
        if not self.problem.serial:
            rows[:, self.problem.link_row_s(source, target) > self.limit_s] = math.inf
        rows[:, [0, -1]] = math.inf
        return rows

    def _ends(self, k: int) -> Floats:
        """What the outputs add to a cost, by class; infinity where a plan may not end."""
        classes = range(self.problem.num_classes)
        can = [self.problem.can_end(c, self.limit_s) for c in classes]
        return np.where(can, self.problem.outer_rows(self.costs[k])[1], math.inf)

    def _least_left(self, k: int) -> Floats:
        """The least that a cost still grows once a stage on a class starts, (C, n + 1)."""
        num, classes = self.num, range(self.problem.num_classes)
        after = np.full((len(classes), num + 1), math.inf)
        after[:, num] = self.ends[k]
        left = np.full((len(classes), num + 1), math.inf)
        for start in range(num - 1, -1, -1):
            for c in classes:
                spent = self.seconds[c][start] if self.costs[k] == "latency" else np.where(
                    np.isfinite(self.seconds[c][start]), 0.0, math.inf
                )  # fmt: skip
                left[c, start] = (spent + after[c]).min()
            for a, b in self.pairs:
                if start:
                    arrived = self.hops[a, b][k, start] + left[b, start]
                    after[a, start] = min(after[a, start], arrived)
        return left

    def first(self) -> _Labels:
        problem = self.problem
        classes = range(problem.num_classes)
        begun = np.flatnonzero([problem.can_begin(c, self.limit_s) for c in classes])
        outer = np.stack([problem.outer_rows(c)[0] for c in self.costs])
        sums = outer.T[begun]
        if problem.is_coupled:
            load = np.array([problem.first_load_s(int(c)) for c in begun])
            sums = np.column_stack([sums, load])
        labels = _Labels(
            states=self.lattice.strides[begun],
            lasts=begun,
            starts=np.zeros(len(begun), dtype=np.int64),
            sums=sums,
            parents=np.full(len(begun), -1, dtype=np.int64),
        )
        return self._kept(labels)

    def _groups(self, labels: _Labels) -> list[tuple[int, int, Ints]]:
        """The labels by class and start of their open stage: class, start, places."""
        key = labels.lasts * (self.num + 1) + labels.starts
        order = np.argsort(key, kind="stable")
        edges = np.flatnonzero(np.diff(key[order])) + 1
        found = []
        for places in np.split(order, edges):
            if len(places):
                at = places[0]
                found.append((int(labels.lasts[at]), int(labels.starts[at]), places))
        return found

    def _closed(self, labels: _Labels, here: int, start: int, stops: Ints) -> Floats:
        """The sums of labels once their stage has ended at each of some stops, (M, S, K)."""
        spent = np.zeros((len(stops), labels.sums.shape[1]))
        for k, name in enumerate(self.costs):
            if name == "latency":
                spent[:, k] = self.seconds[here][start, stops]
        if self.problem.is_coupled:
            load = self.seconds[here][start, stops] + float(self.problem.overhead_s[here])
            spent[:, -1] = load
        closed: Floats = labels.sums[:, None, :] + spent
        return closed

    def ended(self, labels: _Labels) -> tuple[Ints, Floats]:
        """The labels whose open stage can be the last: their places and all sums."""
        places: list[Ints] = []
        sums: list[Floats] = []
        for here, start, at in self._groups(labels):
            stop = np.array([self.num])
            if math.isinf(self.seconds[here][start, self.num]):
                continue
            total = self._closed(labels.of(at), here, start, stop)[:, 0]
            fits = np.ones(len(at), dtype=bool)
            if self.problem.is_coupled:
                fits = total[:, -1] + self.problem.last_load_s(here) <= self.limit_s
            total = total[:, : len(self.costs)] + self.ends[:, here]
            fits &= (total <= self.limits).all(axis=1) & np.isfinite(total).all(axis=1)
            places.append(at[fits])
            sums.append(total[fits])
        if not places:
            return np.zeros(0, dtype=np.int64), np.zeros((0, len(self.costs)))
        return np.concatenate(places), np.concatenate(sums)

    def values(self, sums: Floats) -> Floats:
        """What is minimised, of whole plans."""
        if self.objective is None:
            busiest: Floats = sums[:, self.num_own :].max(axis=1)
            return busiest
        return sums[:, self.objective]

    def lower(self, best: float) -> None:
        """From now on only plans count that are better than one of this value."""
        below = best * (1 - 4 * ROUNDING)
        if self.objective is None:
            self.limits[self.num_own :] = np.minimum(self.limits[self.num_own :], below)
        else:
            self.limits[self.objective] = min(float(self.limits[self.objective]), below)

    def following(self, labels: _Labels) -> _Labels | None:
        """Every way to end the open stage and to open one more."""
        grown: list[_Labels] = []
        number = 0
        for here, start, at in self._groups(labels):
            self.problem.deadline.check()
            stops = np.flatnonzero(np.isfinite(self.seconds[here][start, : self.num]))
            own = labels.of(at)
            least = self.lattice.least_boundary(own.states, self.limit_s)
            for target in [b for a, b in self.pairs if a == here]:
                free = np.flatnonzero(self.lattice.has_room(own.states, target))
                if not len(free) or not len(stops):
                    continue
                made = self._opened(own.of(free), at[free], here, start, stops, target, least[free])
                number += len(made.states)
                if number > MAX_LABELS:
                    raise OverBudget(f"more than {MAX_LABELS:,} partial plans")
                grown.append(made)
        if not number:
            return None
        joined = _Labels(
            **{
                f.name: np.concatenate([getattr(each, f.name) for each in grown])
                for f in dataclasses.fields(_Labels)
            }
        )
        return self._kept(joined)

    def _opened(
        self,
        own: _Labels,
        at: Ints,
        here: int,
        start: int,
        stops: Ints,
        target: int,
        least: Ints,
    ) -> _Labels:
        """Labels with a stage on `target` after their own, which starts at `start` and ends."""
        problem, pair = self.problem, (here, target)
        num_costs = len(self.costs)
        sums = self._closed(own, here, start, stops)
        fits = stops >= least[:, None]
        if problem.is_coupled:
            fits &= sums[:, :, -1] + problem.sender_row_s(*pair)[stops] <= self.limit_s
            sums[:, :, -1] = problem.receiver_row_s(*pair)[stops]
        sums[:, :, :num_costs] += self.hops[pair][:, stops].T
        final = sums[:, :, :num_costs] + self.left[:, target, stops].T
        fits &= (final <= self.limits).all(axis=2) & np.isfinite(final).all(axis=2)
        rows, columns = np.nonzero(fits)
        return _Labels(
            states=own.states[rows] + self.lattice.strides[target],
            lasts=np.full(len(rows), target, dtype=np.int64),
            starts=stops[columns],
            sums=sums[rows, columns],
            parents=at[rows],
        )

    def _kept(self, labels: _Labels) -> _Labels:
        """The labels that no other of the same place equals or beats in every sum."""
        order = np.lexsort((*labels.sums.T[::-1], labels.starts, labels.lasts, labels.states))
        labels = labels.of(order)
        same = (
            (np.diff(labels.states) == 0)
            & (np.diff(labels.lasts) == 0)
            & (np.diff(labels.starts) == 0)
        )
        edges = np.concatenate([[0], np.flatnonzero(~same) + 1, [len(labels.states)]])
        kept = np.ones(len(labels.states), dtype=bool)
        for first, last in itertools.pairwise(edges.tolist()):
            if last - first > 1:
                kept[first:last] = _undominated(labels.sums[first:last])
        return labels.of(kept)


def _undominated(sums: Floats) -> Bools:
    """Which rows, sorted by their first number, no other equals or beats in every number."""
    num = len(sums)
    kept = np.ones(num, dtype=bool)
    for begin in range(0, num, MAX_PAIRED):
        block = slice(begin, min(num, begin + MAX_PAIRED))
        before = sums[: block.stop][kept[: block.stop]]
        places = np.flatnonzero(kept[: block.stop])
        beats = (before[:, None, :] <= sums[None, block, :]).all(axis=2)
        # A row is dropped by an earlier one; of equal rows the first stays.
        beats &= places[:, None] < np.arange(block.start, block.stop)[None, :]
        kept[block] &= ~beats.any(axis=0)
    return kept


def cheapest_within_sums(
    problem: ChainProblem,
    limit_s: float,
    *,
    cost: str,
    shared_s: float,
    max_latency_s: float = math.inf,
) -> tuple[Placed, ...] | None:
    """The plan of least cost that keeps every limit, or None.

    Args:
        problem: one with media.
        limit_s: the most seconds of any stage, link or port.
        cost: ``"latency"``, ``"ties"``, or ``"media"``: the seconds of the busiest medium.
        shared_s: the most seconds of any medium.
        max_latency_s: the most seconds of one micro-batch alone.

    Raises:
        OverBudget: there are too many partial plans, or the time is over.
    """
    slack = with_slack(limit_s), with_slack(shared_s), with_slack(max_latency_s)
    search = _Search(problem, slack[0], cost, slack[1], slack[2])
    levels = [search.first()]
    best, place, stored = math.inf, (-1, -1), 0
    for depth in range(search.lattice.num_levels):
        labels = levels[depth]
        if problem.num_stages in (None, depth + 1):
            places, sums = search.ended(labels)
            values = search.values(sums)
            if len(values) and float(values.min()) < best:
                k = int(np.argmin(values))
                best, place = float(values[k]), (depth, int(places[k]))
                search.lower(best)
        if depth + 1 == search.lattice.num_levels:
            break
        following = search.following(labels)
        if following is None or not len(following.states):
            break
        stored += len(following.states)
        if stored > MAX_LABELS:
            raise OverBudget(f"{stored:,} partial plans at {depth + 2} stages")
        levels.append(following)
    return _traced(levels, place, problem.num_pieces) if place[0] >= 0 else None


def _traced(levels: list[_Labels], place: tuple[int, int], stop: int) -> tuple[Placed, ...]:
    """The plan that ends with a label."""
    depth, at = place
    stages: list[Placed] = []
    while depth >= 0:
        labels = levels[depth]
        start = int(labels.starts[at])
        stages.append(Placed(start, stop, int(labels.lasts[at])))
        stop, at, depth = start, int(labels.parents[at]), depth - 1
    return tuple(reversed(stages))
