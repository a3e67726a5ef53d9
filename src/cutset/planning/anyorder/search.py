"""The search over downsets: for every count of devices in use the least period to each downset."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from cutset.planning.anyorder.downsets import (
    MAX_DOWNSETS,
    DagProblem,
    DagSolution,
    Space,
    contract,
    list_downsets,
)
from cutset.planning.anyorder.fewer_downsets import fold_free_parts, prefixes_of_orders
from cutset.planning.deadline import Deadline, OutOfTime, OverBudget
from cutset.planning.problem import with_slack
from cutset.planning.totals import Floats, Ints
from cutset.planning.watch import is_due, note

MAX_TABLE = 40_000_000

_Path: TypeAlias = "list[tuple[int, int, int]]"
"""From downset, to downset, class: of each stage."""

Least: TypeAlias = Literal["period", "latency", "memory", "medium"]


class Ended(OutOfTime):
    """A search was ended by its time; what it had found is kept.

    Attributes:
        found: the least value so far and the plan that has it, or None.
        bound_s: no plan that the search could have found has a lower value.
    """

    def __init__(
        self, reason: OutOfTime, found: tuple[float, _Path] | None, bound_s: float
    ) -> None:
        super().__init__(str(reason))
        self.found = found
        self.bound_s = bound_s


class DownsetSearch:
    """One search over the downsets of a `Space`.

    Raises:
        OverBudget: states times downsets are too many to keep; later, `OutOfTime`.
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
        places = np.arange(1, len(problem.counts) + 1)[:, None]
        self.last_in_use = np.where(self.in_use > 0, places, 0).max(axis=0) - 1
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

    def medium_s(self, downset: int) -> float:
        """Seconds that a cut after a downset keeps the medium busy."""
        if self.problem.medium is None or downset in (0, self.count - 1):
            return 0.0
        latency_s, per_byte = self.problem.medium
        return latency_s + per_byte * float(self.space.cut_bytes[downset])

    def ports_s(self, start: int, window: slice, device_class: int) -> Floats:
        """Seconds that the stages from a downset to those in a window keep a port busy."""
        into, out = 0.0, 0.0
        if self.problem.half_duplex:
            into, out = self.problem.half_duplex[device_class]
        cut_bytes = self.space.cut_bytes
        busy: Floats = into * cut_bytes[start] + out * cut_bytes[window]
        return busy

    def load_s(self, start: int, stop: int, device_class: int) -> float:
        """Seconds of the stage between two downsets."""
        window = slice(stop, stop + 1)
        return float(self._loads(start, window, device_class)[0])

    def _loads(
        self, start: int, window: slice, device_class: int, *, alone: bool = False
    ) -> Floats:
        """Seconds of the stages from a downset to those in a window, containment not checked.

        Args:
            start: the downset that they begin after.
            window: the downsets that they end at.
            device_class: where they run.
            alone: what each adds to the time of one micro-batch alone, a cut before it included,
                instead of what keeps its device busy in steady state.
        """
        problem, space = self.problem, self.space
        loads = space.seconds_between(start, window, device_class)
        if not alone and problem.overhead_s:
            loads += problem.overhead_s[device_class]
        send, receive = (
            (0.0, 0.0) if alone else (problem.send_s_per_byte, problem.receive_s_per_byte)
        )
        if problem.through_host and not problem.pays[device_class]:
            return loads
        if problem.through_host:
            return loads + space.through_host_s(start, window, send, receive)
        if send or receive:
            loads += send * space.cut_bytes[window] + receive * space.cut_bytes[start]
        if alone:
            loads += self.cut_s(start)
        elif problem.serial:
            sent = space.cut_s[window] + problem.link_latency_s
            if window.stop == self.count:
                sent[-1] = 0.0
            loads += sent + self.cut_s(start)
        return loads

    def volume_s(self) -> float:
        """Seconds that no plan's period can be below: all work over what all devices do."""
        rate = float(self.left[0])
        return float(self.space.work[-1]) / rate if rate > 0 else 0.0

    def latency_s(self, path: _Path) -> float:
        """Seconds for one micro-batch alone."""
        return math.fsum(
            float(self._loads(a, slice(b, b + 1), c, alone=True)[0]) for a, b, c in path
        )

    def run(
        self,
        known_s: float,
        *,
        least: Least = "period",
        raised: tuple[int, ...] = (),
        deadline: Deadline | None = None,
    ) -> tuple[float, _Path] | None:
        """What is least among the plans whose period is at most a known one, and its stages.

        Args:
            known_s: the period; infinity for any.
            least: the period or the latency; the memory of the largest stage on a class of
                `raised`, whose limits of memory do not count then; or the seconds of the medium,
                which is not held to the known period.
            raised: classes, for the memory.
            deadline: when to end; where None, the problem's.

        Returns:
            The least value, and the plan that has it; None if there is none.

        Raises:
            Ended: the time was over.
        """
        limit_s = with_slack(known_s)
        self.least, self.raised = least, raised
        deadline = deadline or self.problem.deadline
        ceiling = limit_s if least == "period" else math.inf
        best: Floats = np.full((self.num_states, self.count), math.inf)
        parent: npt.NDArray[np.int32] = np.full((self.num_states, self.count), -1, dtype=np.int32)
        via: npt.NDArray[np.int8] = np.full((self.num_states, self.count), -1, dtype=np.int8)
        best[0, 0] = 0.0
        overlapped = not self.problem.through_host and not self.problem.serial
        for start in range(self.count - 1):
            if least in ("period", "latency") and is_due():
                bound_s = self._bound_s(best, start, known_s)
                note(best_s=float(best[:, -1].min()), bound_s=bound_s)
            try:
                deadline.check()
            except OutOfTime as reason:
                found = self._result(best, parent, via, ceiling)
                raise Ended(reason, found, self._bound_s(best, start, known_s)) from reason
            column = best[:, start]
            if overlapped and self.cut_s(start) > limit_s:
                continue
            if overlapped and least == "period":
                column = np.maximum(column, self.cut_s(start))
            active = np.flatnonzero((column <= ceiling) & np.isfinite(column))
            if len(active) == 0:
                continue
            for c in range(len(self.problem.counts)):
                states = self._states_with(c, active)
                if len(states):
                    self._extend(start, c, states, column, limit_s, best, parent, via)
        return self._result(best, parent, via, ceiling)

    def _states_with(self, c: int, active: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
        """Those of the states that may take another device of class `c`."""
        states: npt.NDArray[np.intp] = active[self.in_use[c, active] < self.problem.counts[c]]
        if self.problem.num_stages is not None:
            states = states[self.stages_of[states] < self.problem.num_stages]
        if self.problem.fixed_order:
            states = states[self.last_in_use[states] < c]
        return states

    def _bound_s(self, best: Floats, start: int, known_s: float) -> float:
        """What no plan's value can be below once all downsets before one were extended.

        Every plan has a first boundary that was not; what it cost up to there is known, and what is
        left takes at least as long as where it is fastest, or on all devices together.
        """
        spent = best[:, start:].min(axis=0)
        left = self.space.work[-1] - self.space.work[start:]
        if self.least == "latency":
            return float((spent + left).min())
        rate = float(self.left[0])
        if rate > 0:
            spent = np.maximum(spent, left / rate)
        return min(max(float(spent.min()), self.volume_s()), known_s)

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
        is_raised = self.least == "memory" and device_class in self.raised
        if math.isfinite(problem.limit_bytes[device_class]) and not is_raised:
            # Whole numbers up to 2**53: exact. Memory that is there is never rounded up.
            fits &= space.size[window] - space.size[start] <= problem.limit_bytes[device_class]
        if space.impossible[device_class, -1]:
            row = space.impossible[device_class]
            fits &= row[window] == row[start]
        loads = self._loads(start, window, device_class)
        loads = np.maximum(loads, self.ports_s(start, window, device_class))
        fits &= loads <= limit_s
        chosen = np.flatnonzero(fits)
        if len(chosen) == 0:
            return
        at, added = chosen + low, loads[chosen]
        if self.least == "latency":
            added = self._loads(start, window, device_class, alone=True)[chosen]
        elif self.least == "memory":
            added = (space.size[at] - space.size[start]) * is_raised
        elif self.least == "medium":
            added = np.full(len(at), self.medium_s(start))
        for state, target, from_work in zip(states, targets, least, strict=True):
            first = int(np.searchsorted(space.work[at], from_work, side="left"))
            if self.least in ("latency", "medium"):
                values = added[first:] + column[state]
            else:
                values = np.maximum(added[first:], column[state])
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
        ceiling: float,
    ) -> tuple[float, _Path] | None:
        final = best[:, -1].copy()
        if self.problem.num_stages is not None:
            final[self.stages_of != self.problem.num_stages] = math.inf
        state = int(np.argmin(final))
        value = float(final[state])
        if value > ceiling or math.isinf(value):
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
    """The plan of least period over all downsets, or over some orders where there are too many.

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
    searches = open_searches(problem, limit=limit, allowed=allowed)
    best_s, best = math.inf, None
    for opened in searches:
        found = opened.search.run(best_s)
        if found is not None:
            best_s, best = found[0], opened.solution(found[1])
    if best is None:
        return None
    return dataclasses.replace(best, num_downsets=searches[-1].search.count)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A search that is ready to run, and what its answers stand for.

    Attributes:
        search: over the downsets that were listed.
        parts: the nodes of each part.
        family: as in `DagSolution`.
    """

    search: DownsetSearch
    parts: list[list[int]]
    family: str

    def solution(self, path: _Path) -> DagSolution:
        """The plan that a path stands for."""
        search, member = self.search, self.search.space.member
        stages, loads, cuts, ports = [], [], [], []
        for a, b, c in path:
            inside = np.flatnonzero(member[:, b] & ~member[:, a])
            stages.append(tuple(sorted(node for k in inside for node in self.parts[k])))
            loads.append(search.load_s(a, b, c))
            ports.append(float(search.ports_s(a, slice(b, b + 1), c)[0]))
            cuts.append(0.0 if search.problem.through_host else search.cut_s(b))
        return DagSolution(
            stages=tuple(stages),
            classes=tuple(c for _, _, c in path),
            loads_s=tuple(loads),
            cuts_s=tuple(cuts[:-1]),
            period_s=max([*loads, *ports, *cuts[:-1]]),
            latency_s=search.latency_s(path),
            num_downsets=search.count,
            family=self.family,
            cut_bytes=tuple(int(search.space.cut_bytes[b]) for _, b, _ in path[:-1]),
            medium_s=math.fsum(search.medium_s(b) for _, b, _ in path),
        )


def open_searches(
    problem: DagProblem,
    *,
    limit: int = MAX_DOWNSETS,
    allowed: Callable[[Space], npt.NDArray[np.bool_]] | None = None,
) -> list[Opened]:
    """A search over the prefixes of one order, and one over all downsets or over several orders.

    Parts that cost nothing are joined with what they read where the downsets are too many to list
    otherwise. With a number of stages this may take a plan away (one of such a part alone), so then
    the family is no longer all downsets. The last one is the one that proves most. Arguments and
    errors as for `solve_downsets`.
    """
    parts, before = contract(problem)
    masks, is_all = list_downsets(before, limit), True
    if masks is None:
        parts, before = fold_free_parts(problem, parts, before)
        masks, is_all = list_downsets(before, limit), problem.num_stages is None
    prefixes = [0, *itertools.accumulate((1 << k for k in range(len(parts))), lambda a, b: a | b)]
    if masks is None:
        masks, is_all = prefixes_of_orders(problem, parts, before, limit), False
    family = "downset" if is_all else "orders"
    opened = []
    for choice in (prefixes, masks):
        space = Space(problem, choice, parts)
        if problem.max_tensors is not None:
            space.keep(space.num_alive <= problem.max_tensors)
        if allowed is not None:
            space.keep(allowed(space))
        opened.append(Opened(search=DownsetSearch(problem, space), parts=parts, family=family))
    return opened
