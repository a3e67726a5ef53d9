"""The search over downsets: for every count of devices in use the least period to each downset."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from cutset.planning.downsets import (
    MAX_DOWNSETS,
    DagProblem,
    DagSolution,
    Space,
    contract,
    list_downsets,
)
from cutset.planning.lattice import OverBudget
from cutset.planning.problem import Floats, Ints, with_slack

MAX_TABLE = 40_000_000


class DownsetSearch:
    """One search over the downsets of a `Space`.

    Raises:
        OverBudget: states times downsets are too many to keep.
    """

    def __init__(self, problem: DagProblem, space: Space) -> None:
        self.problem = problem
        self.space = space
        self.count = space.member.shape[1]
        sizes = [1, *(c + 1 for c in problem.counts)]
        self.strides = np.cumprod(sizes)[:-1]
        self.num_states = math.prod(c + 1 for c in problem.counts)
        if self.num_states * self.count > MAX_TABLE:
            raise OverBudget(f"{self.num_states} states of {self.count} downsets")
        states = np.arange(self.num_states)
        self.in_use = np.stack(
            [states // s % (c + 1) for s, c in zip(self.strides, problem.counts, strict=True)]
        )
        self.stages_of = self.in_use.sum(axis=0)
        # How much work the devices that are left can do in a second, by state.
        self.left = (np.asarray(problem.counts)[:, None] - self.in_use).T @ space.rates
        self.needs = self._maximal_members()

    def _maximal_members(self) -> list[npt.NDArray[np.int64]]:
        """For each downset the parts that no other part in it depends on.

        A downset contains another if it contains these.
        """
        member = self.space.member
        covered = np.zeros_like(member)
        for source, target in self._edges():
            covered[source] |= member[target]
        top = (member & ~covered).T
        return [np.flatnonzero(row) for row in top]

    def _edges(self) -> Iterator[tuple[int, int]]:
        for source, targets in zip(self.space.sources, self.space.targets, strict=True):
            for target in targets:
                yield source, target

    def cut_s(self, downset: int) -> float:
        """Seconds to send all that is alive after a downset to the next stage."""
        if downset in (0, self.count - 1):
            return 0.0
        return self.problem.link_latency_s + float(self.space.cut_s[downset])

    def load_s(self, start: int, stop: int, device_class: int) -> float:
        """Seconds of the stage between two downsets."""
        window = slice(stop, stop + 1)
        return float(self._loads(start, window, device_class)[0])

    def _loads(self, start: int, window: slice, device_class: int) -> Floats:
        """Seconds of the stages from a downset to those in a window, containment not checked."""
        problem, space = self.problem, self.space
        row = space.seconds[device_class]
        loads: Floats = row[window] - row[start]
        if problem.through_host:
            if problem.pays[device_class]:
                loads += space.cut_s[window] + space.cut_s[start]
                for t in np.flatnonzero(space.alive[:, start]):
                    passed = space.alive[t, window].astype(np.float64)
                    users = [k for k in space.targets[t] if not space.member[k, start]]
                    unused = ~np.logical_or.reduce(space.member[users, window], axis=0)
                    loads -= space.costs[t] * passed * (1 + unused)
        elif problem.serial:
            sent = space.cut_s[window] + problem.link_latency_s
            if window.stop == self.count:
                sent[-1] = 0.0
            loads += sent + self.cut_s(start)
        return loads

    def run(self, known_s: float) -> tuple[float, list[tuple[int, int, int]]] | None:
        """The least period below (or equal to) a known one, and its stages.

        Returns:
            The period and (from downset, to downset, class) of each stage; None if there is none.
        """
        limit_s = with_slack(known_s)
        best: Floats = np.full((self.num_states, self.count), math.inf)
        parent: npt.NDArray[np.int32] = np.full((self.num_states, self.count), -1, dtype=np.int32)
        via: npt.NDArray[np.int8] = np.full((self.num_states, self.count), -1, dtype=np.int8)
        best[0, 0] = 0.0
        overlapped = not self.problem.through_host and not self.problem.serial
        for start in range(self.count - 1):
            column = best[:, start]
            if overlapped:
                column = np.maximum(column, self.cut_s(start))
            active = np.flatnonzero(column <= limit_s)
            if len(active) == 0:
                continue
            for c in range(len(self.problem.counts)):
                states = active[self.in_use[c, active] < self.problem.counts[c]]
                if self.problem.num_stages is not None:
                    states = states[self.stages_of[states] < self.problem.num_stages]
                if len(states):
                    self._extend(start, c, states, column, limit_s, best, parent, via)
        return self._result(best, parent, via, limit_s)

    def _extend(
        self,
        start: int,
        device_class: int,
        states: Ints,
        column: Floats,
        limit_s: float,
        best: Floats,
        parent: npt.NDArray[np.int32],
        via: npt.NDArray[np.int8],
    ) -> None:
        """Adds every stage on one class that begins after a downset."""
        problem, space = self.problem, self.space
        targets = states + self.strides[device_class]
        # Volume: a stage does at most so much work, and the devices left must do the rest.
        slack = 1e-9 * float(space.work[-1])
        rate = float(space.rates[device_class])
        most = space.work[start] + (limit_s * rate if rate > 0 else 0.0) + slack
        left = self.left[targets]
        least = space.work[-1] - slack - np.where(left > 0, limit_s * np.maximum(left, 1e-300), 0.0)
        low = max(start + 1, int(np.searchsorted(space.work, least.min(), side="left")))
        high = int(np.searchsorted(space.work, most, side="right"))
        if low >= high:
            return
        window = slice(low, high)
        fits = np.logical_and.reduce(space.member[self.needs[start], window], axis=0)
        if math.isfinite(problem.limit_bytes[device_class]):
            room = problem.limit_bytes[device_class] * (1 + 1e-12)
            fits &= space.size[window] - space.size[start] <= room
        if space.impossible[device_class, -1]:
            row = space.impossible[device_class]
            fits &= row[window] == row[start]
        loads = self._loads(start, window, device_class)
        fits &= loads <= limit_s
        chosen = np.flatnonzero(fits)
        if len(chosen) == 0:
            return
        at, loads = chosen + low, loads[chosen]
        for state, target, from_work in zip(states, targets, least, strict=True):
            first = int(np.searchsorted(space.work[at], from_work, side="left"))
            values = np.maximum(loads[first:], column[state])
            better = values < best[target, at[first:]]
            where = at[first:][better]
            best[target, where] = values[better]
            parent[target, where] = start
            via[target, where] = device_class

    def _result(
        self,
        best: Floats,
        parent: npt.NDArray[np.int32],
        via: npt.NDArray[np.int8],
        limit_s: float,
    ) -> tuple[float, list[tuple[int, int, int]]] | None:
        final = best[:, -1].copy()
        if self.problem.num_stages is not None:
            final[self.stages_of != self.problem.num_stages] = math.inf
        state = int(np.argmin(final))
        value = float(final[state])
        if value > limit_s or math.isinf(value):
            return None
        path, stop = [], self.count - 1
        while stop:
            start, device_class = int(parent[state, stop]), int(via[state, stop])
            path.append((start, stop, device_class))
            state, stop = state - int(self.strides[device_class]), start
        return value, path[::-1]


def solve_downsets(
    problem: DagProblem,
    *,
    limit: int = MAX_DOWNSETS,
    allowed: Callable[[Space], npt.NDArray[np.bool_]] | None = None,
) -> DagSolution | None:
    """The plan of least period over all downsets, or over prefixes where there are too many.

    Args:
        problem: the graph and the devices.
        limit: the most downsets to list.
        allowed: says which downsets of a space a stage may end at, by position; the empty and
            the whole one must be among them. All if None.

    Returns:
        The plan, or None where memory or the number of stages allows none.

    Raises:
        OverBudget: the counts of devices have too many states.
    """
    parts, before = contract(problem)
    masks = list_downsets(before, limit)
    prefixes = [0, *itertools.accumulate((1 << k for k in range(len(parts))), lambda a, b: a | b)]
    family = "downset" if masks is not None else "prefix"
    best_s, best = math.inf, None
    for choice in [prefixes] if masks is None else [prefixes, masks]:
        space = Space(problem, choice, parts)
        if problem.max_tensors is not None:
            space.keep(space.num_alive <= problem.max_tensors)
        if allowed is not None:
            space.keep(allowed(space))
        search = DownsetSearch(problem, space)
        found = search.run(best_s)
        if found is not None:
            best_s, best = found[0], (space, found[1])
        count = space.member.shape[1]
    if best is None:
        return None
    space, path = best
    stages, loads, cuts = [], [], []
    search = DownsetSearch(problem, space)
    for a, b, c in path:
        inside = np.flatnonzero(space.member[:, b] & ~space.member[:, a])
        stages.append(tuple(sorted(node for k in inside for node in parts[k])))
        loads.append(search.load_s(a, b, c))
        cuts.append(0.0 if problem.through_host else search.cut_s(b))
    return DagSolution(
        stages=tuple(stages),
        classes=tuple(c for _, _, c in path),
        loads_s=tuple(loads),
        cuts_s=tuple(cuts[:-1]),
        period_s=max([*loads, *cuts[:-1]]),
        num_downsets=count,
        family=family,
    )
