"""Plans with groups of devices, within a limit: any at all, or that of the least latency.

A state is a boundary and how many devices of each class are used. Within a limit a member can take
a certain share of a stage, so which groups can hold it follows from sums. For any plan at all only
the fewest devices of one class, the most numerous, are kept for each choice of the others; for the
least latency every choice has a state.

A cut whose link takes longer than the limit has to be charged to a group of several at one of its
ends; it is two places then, one for each. Where links differ, each device is taken to have the best
of its links for a bound, or the worst of them for a plan.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cutset.planning.deadline import OverBudget
from cutset.planning.group_problem import (
    Demands,
    GroupProblem,
    GroupStage,
    GroupStages,
    Partners,
    caps,
    sizes_up_to,
)
from cutset.planning.problem import ROUNDING, with_slack
from cutset.planning.totals import Bools, Floats, Ints

MAX_TABLE_BYTES = 1 << 29
"""Of the tables that say which groups can hold which stages."""

MAX_WORK = 30_000_000_000
"""States times groups times stages that one question may look at."""

Fewest: TypeAlias = npt.NDArray[np.int16]

_NONE = 1 << 13
"""More devices than there can be."""


class _Places(NamedTuple):
    """Where stages may begin and end within a limit, rising; the model's two ends are the outer.

    Attributes:
        at: the boundary.
        to_receivers: whether a cut there is charged to those that receive.
        to_senders: whether it is charged to those that send.
    """

    at: Ints
    to_receivers: Bools
    to_senders: Bools


class _Member(NamedTuple):
    """Largest shares of one device of a class, shape (P, P), from place to place.

    Attributes:
        in_group: with others.
        alone: by itself.
    """

    in_group: Floats
    alone: Floats


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GroupSearch:
    """Exact where a message takes the same whoever has it; else for a bound, or for a plan.

    Attributes:
        problem: a step of the problem: memory lets a stage be or not be.
        dearest: whether each device is taken to have its worst partners, or its best.
    """

    problem: GroupProblem
    dearest: bool

    def find(self, limit_s: float) -> GroupStages | None:
        """Some plan with a period of at most `limit_s`, or None.

        Raises:
            OverBudget: there are too many groups, or the time is over.
        """
        chain = self.problem.chain
        must = self._must_have(limit_s)
        order = sorted(range(chain.num_classes), key=lambda c: (c != must, -chain.counts[c]))
        fewest = order[1] if must >= 0 and len(order) > 1 else order[0]
        if must >= 0 and fewest == must:
            # The caller's device is the only one.
            must = -1
        places, members = self._places(limit_s), self._members(limit_s)
        return _Fewest(self.problem, places, members, fewest, must).find()

    def soonest(self, limit_s: float) -> GroupStages | None:
        """The plan of least latency on its worst route with a period of at most `limit_s`, or None.

        Args:
            limit_s: seconds; infinity for no limit.

        Raises:
            OverBudget: there are too many groups, or the time is over.
        """
        places, members = self._places(limit_s), self._members(limit_s)
        must = self._must_have(limit_s)
        return _Soonest(self.problem, places, members, self._latencies(places), must).find()

    def _must_have(self, limit_s: float) -> int:
        """The caller's class where no plan without its device is within the limit; else -1.

        It is -2 where there is no such class either.
        """
        if self.problem.floor_s() <= with_slack(limit_s):
            return -1
        return self.problem.caller_class if self.problem.caller_class >= 0 else -2

    @functools.cached_property
    def _partners(self) -> tuple[Partners, ...]:
        classes = range(self.problem.chain.num_classes)
        return tuple(self.problem.any_partners(c, dearest=self.dearest) for c in classes)

    def _link_row(self) -> Floats:
        """Seconds of a message across each boundary on the worst link there is, or the best."""
        pairs = self.problem.chain.pairs
        rows = [self.problem.chain.link_row_s(*pair) for pair in pairs]
        choose = np.maximum if self.dearest else np.minimum
        return choose.reduce(rows) if rows else np.full(self.problem.chain.num_pieces + 1, math.inf)

    def _places(self, limit_s: float) -> _Places:
        chain = self.problem.chain
        fits = self._link_row() <= with_slack(limit_s)
        at, receivers, senders = [0], [False], [False]
        for k in range(1, chain.num_pieces):
            if chain.serial or fits[k]:
                at.append(k)
                receivers.append(chain.serial)
                senders.append(chain.serial)
            elif self.problem.most > 1:
                at += [k, k]
                receivers += [True, False]
                senders += [False, True]
        return _Places(
            np.array([*at, chain.num_pieces]),
            np.array([*receivers, False]),
            np.array([*senders, False]),
        )

    def _demands(self, c: int, places: _Places, *, is_alone: bool) -> Demands:
        rows = self._partners[c]
        starts = places.at[:, None].clip(max=self.problem.chain.num_pieces - 1)
        stops = places.at[None, :]
        with np.errstate(invalid="ignore"):
            ends = (
                np.where(places.to_receivers[:, None], rows.link_in[starts], 0.0),
                np.where(places.to_senders[None, :], rows.link_out[stops], 0.0),
                rows.bytes_in[starts],
                rows.bytes_out[stops],
            )
            return self.problem.demands(c, starts, stops, ends, is_alone=is_alone)

    def _members(self, limit_s: float) -> tuple[_Member, ...]:
        places = self._places(limit_s)
        is_stage = places.at[:, None] < places.at[None, :]
        found = []
        for c in range(self.problem.chain.num_classes):
            shares = [
                np.where(is_stage, caps(self._demands(c, places, is_alone=alone), limit_s), 0.0)
                for alone in (False, True)
            ]
            found.append(_Member(*shares))
        return tuple(found)

    def _latencies(self, places: _Places) -> tuple[Floats, ...]:
        """Of a stage on each class, with what comes before and after it, shape (P, P) each."""
        chain, codecs = self.problem.chain, self.problem.chain.byte_costs
        num, found = chain.num_pieces, []
        starts, stops = places.at[:, None].clip(max=num - 1), places.at[None, :]
        link = self._link_row()
        for c in range(chain.num_classes):
            seconds = self.problem.compute_s[c][starts, stops]
            seconds = seconds + np.where(starts == 0, chain.source_s[c], 0.0)
            seconds = seconds + np.where(stops == num, chain.sink_s[c], 0.0)
            if codecs is not None:
                seconds = seconds + codecs.decode_s[c][starts] + codecs.encode_s[c][stops]
            inner = (stops < num) & (starts < stops)
            found.append(seconds + np.where(inner, link[stops], 0.0))
        return tuple(found)


class _Groups:
    """Which groups can hold a stage, by sums of their members' shares."""

    def __init__(
        self, problem: GroupProblem, places: _Places, members: tuple[_Member, ...]
    ) -> None:
        self.problem, self.places, self.members = problem, places, members
        self.deadline = problem.chain.deadline
        self.shape = members[0].alone.shape
        chain = problem.chain
        self.limit = chain.num_stages or chain.at_most
        if self.limit is not None and self.limit >= min(problem.num_devices, chain.num_pieces):
            self.limit = chain.num_stages
        self.is_exact_count = chain.num_stages is not None

    def share_of(self, group: tuple[int, ...], classes: tuple[int, ...]) -> tuple[Floats, Bools]:
        """Sum of the largest shares of these members, and whether each can have one at all."""
        total, possible = np.zeros(self.shape), np.ones(self.shape, dtype=bool)
        for c, count in zip(classes, group, strict=True):
            if count:
                total += count * self.members[c].in_group
                possible &= self.members[c].in_group > 0
        return total, possible

    def keeps_up(self, group: tuple[int, ...]) -> Bools:
        """Whether a whole group, by class, can hold each stage."""
        if sum(group) == 1:
            return self.members[group.index(1)].alone >= 1 - ROUNDING
        total, possible = self.share_of(group, tuple(range(len(group))))
        return possible & (total >= 1 - ROUNDING)

    def check_size(self, num_groups: int, num_pairs: int, layers: int, item_bytes: int) -> None:
        """Raises `OverBudget` where tables or work are out of reach."""
        cells = self.shape[0] * self.shape[1]
        if (
            num_groups * cells * item_bytes > MAX_TABLE_BYTES
            or num_pairs * cells * layers > MAX_WORK
        ):
            raise OverBudget(f"{num_groups} groups on {self.shape[0]} boundaries are too many")


class _Fewest(_Groups):
    """Any plan at all: for each choice of all classes but one the fewest devices of that one."""

    def __init__(
        self,
        problem: GroupProblem,
        places: _Places,
        members: tuple[_Member, ...],
        fewest: int,
        must: int,
    ) -> None:
        super().__init__(problem, places, members)
        counts = problem.chain.counts
        self.fewest, self.must = fewest, must
        self.most = counts[fewest]
        self.others = tuple(c for c in range(len(counts)) if c != fewest)
        self.counts = tuple(counts[c] for c in self.others)
        self.groups = sizes_up_to(self.counts, problem.most)
        self.states = sizes_up_to(self.counts, sum(self.counts))
        layers = 1 if self.limit is None else self.limit
        num_pairs = len(self.states) * len(self.groups)
        self.check_size(len(self.groups), num_pairs, layers, 2)
        self.index = {state: k for k, state in enumerate(self.states)}
        self.needed = np.stack([self._needed(group) for group in self.groups])

    def _needed(self, group: tuple[int, ...]) -> Fewest:
        """The fewest devices of the class that make a group of these hold each stage."""
        self.deadline.check()
        own = self.members[self.fewest]
        total, possible = self.share_of(group, self.others)
        missing = (1 - ROUNDING) - total
        with np.errstate(divide="ignore", invalid="ignore"):
            count = np.where(own.in_group > 0, np.ceil(missing / own.in_group), _NONE)
        count = np.where(missing <= 0, 0, np.clip(count, 0, _NONE))
        with np.errstate(invalid="ignore"):
            count -= (count > 0) & ((count - 1) * own.in_group >= missing)
        size = sum(group)
        if size == 1:  # it may be alone, which costs a caller's device less
            c = self.others[group.index(1)]
            alone = self.members[c].alone >= 1 - ROUNDING
            count = np.where(alone, 0, np.maximum(count, 1))
            possible |= alone
        elif size == 0:
            alone = own.alone >= 1 - ROUNDING
            count = np.where(alone, 1, np.maximum(count, 2))
        room = min(self.most, self.problem.most - size)
        return np.where(possible & (count <= room), count, _NONE).astype(np.int16)

    def find(self) -> GroupStages | None:
        if self.must == -2:
            return None
        if self.limit is None:
            return self._read([self._all_at_once()])
        layers = [self._first()]
        for _ in range(self.limit):
            layers.append(self._one_more(layers[-1]))
            if not self.is_exact_count and (found := self._read(layers)) is not None:
                return found
        return self._read(layers) if self.is_exact_count else None

    def _first(self) -> Fewest:
        used: Fewest = np.full((len(self.states), self.shape[0]), _NONE, dtype=np.int16)
        used[0, 0] = 0
        return used

    def _all_at_once(self) -> Fewest:
        """The fewest devices for each state and place, with any number of stages."""
        used = self._first()
        for k, state in enumerate(self.states):
            self._reach(used[k], used, state, itertools.islice(self.groups, 1, None))
            self._with_own_only(used[k])
        return used

    def _with_own_only(self, row: Fewest) -> None:
        """Adds stages on devices of the one class, as many as there may be."""
        own = self.needed[0]
        if self.most <= 4:
            for _ in range(self.most):
                np.minimum(row, (row[:, None] + own).min(axis=0), out=row)
        else:
            for place in range(1, self.shape[0]):
                before = (row[:place] + own[:place, place]).min()
                row[place] = min(row[place], before)
        row[row > self.most] = _NONE

    def _one_more(self, before: Fewest) -> Fewest:
        used = np.full_like(before, _NONE)
        for k, state in enumerate(self.states):
            self._reach(used[k], before, state, iter(self.groups))
        return used

    def _reach(
        self, row: Fewest, used: Fewest, state: tuple[int, ...], groups: Iterable[tuple[int, ...]]
    ) -> None:
        self.deadline.check()
        for group in groups:
            rest = tuple(a - b for a, b in zip(state, group, strict=True))
            if min(rest, default=0) < 0:
                continue
            before = used[self.index[rest]]
            known = np.flatnonzero(before < _NONE)
            if len(known):
                needed = self.needed[self.group_index[group]]
                low = int(known[0])
                np.minimum(row, (before[low:, None] + needed[low:]).min(axis=0), out=row)
        row[row > self.most] = _NONE

    @functools.cached_property
    def group_index(self) -> dict[tuple[int, ...], int]:
        return {group: k for k, group in enumerate(self.groups)}

    def _read(self, layers: list[Fewest]) -> GroupStages | None:
        """The plan of the fewest devices that the tables hold; None where they hold none."""
        last: Ints = layers[-1][:, -1].astype(np.int64)
        total = last + np.array([sum(state) for state in self.states])
        if self.must >= 0:
            own = self.others.index(self.must)
            total[[state[own] == 0 for state in self.states]] = 2 * _NONE
        total[last >= _NONE] = 2 * _NONE
        k = int(total.argmin())
        if total[k] >= _NONE:
            return None
        state, place, depth = self.states[k], self.shape[0] - 1, len(layers) - 1
        used = int(last[k])
        stages: list[GroupStage] = []
        while place:
            before = layers[depth - 1] if len(layers) > 1 else layers[0]
            group, start, more = self._step_back(before, state, place, used)
            members = [0] * (len(self.others) + 1)
            for c, count in zip((*self.others, self.fewest), (*group, more), strict=True):
                members[c] = count
            at = self.places.at
            stages.append(GroupStage(int(at[start]), int(at[place]), tuple(members)))
            state = tuple(a - b for a, b in zip(state, group, strict=True))
            place, used, depth = start, used - more, depth - 1
        return tuple(reversed(stages))

    def _step_back(
        self, before: Fewest, state: tuple[int, ...], place: int, used: int
    ) -> tuple[tuple[int, ...], int, int]:
        for group in self.groups:
            rest = tuple(a - b for a, b in zip(state, group, strict=True))
            if min(rest, default=0) < 0:
                continue
            needed = self.needed[self.group_index[group]][:, place]
            hits = np.flatnonzero(before[self.index[rest]] + needed == used)
            hits = hits[needed[hits] < _NONE]
            if len(hits):
                return group, int(hits[0]), int(needed[hits[0]])
        raise ArithmeticError("no stage leads to a state that was reached")


class _Soonest(_Groups):
    """The plan of least latency: every choice of devices has a state."""

    def __init__(
        self,
        problem: GroupProblem,
        places: _Places,
        members: tuple[_Member, ...],
        latencies: tuple[Floats, ...],
        must: int,
    ) -> None:
        super().__init__(problem, places, members)
        self.latencies, self.must = latencies, must
        counts = problem.chain.counts
        self.groups = sizes_up_to(counts, problem.most)[1:]
        self.states = sizes_up_to(counts, problem.num_devices)
        layers = 1 if self.limit is None else self.limit
        self.check_size(len(self.groups), len(self.states) * len(self.groups), layers, 8)
        self.index = {state: k for k, state in enumerate(self.states)}
        self.costs = {group: self._cost(group) for group in self.groups}

    def _cost(self, group: tuple[int, ...]) -> Floats:
        self.deadline.check()
        cost = np.maximum.reduce([self.latencies[c] for c, n in enumerate(group) if n])
        return np.where(self.keeps_up(group), cost, math.inf)

    def find(self) -> GroupStages | None:
        if self.must == -2:
            return None
        first = np.full((len(self.states), self.shape[0]), math.inf)
        first[0, 0] = 0.0
        if self.limit is None:
            for k, state in enumerate(self.states):
                self._reach(first[k], first, state)
            return self._read([first], first[:, -1])
        layers = [first]
        for _ in range(self.limit):
            nxt = np.full_like(first, math.inf)
            for k, state in enumerate(self.states):
                self._reach(nxt[k], layers[-1], state)
            layers.append(nxt)
        if self.is_exact_count:
            return self._read(layers, layers[-1][:, -1])
        found = [self._read(layers[: t + 1], layers[t][:, -1]) for t in range(1, len(layers))]
        least = [float(layers[t][self._allowed(), -1].min()) for t in range(1, len(layers))]
        return found[int(np.argmin(least))]

    def _allowed(self) -> Bools:
        if self.must < 0:
            return np.ones(len(self.states), dtype=bool)
        return np.array([state[self.must] > 0 for state in self.states])

    def _reach(self, row: Floats, known: Floats, state: tuple[int, ...]) -> None:
        self.deadline.check()
        for group in self.groups:
            rest = tuple(a - b for a, b in zip(state, group, strict=True))
            if min(rest) < 0:
                continue
            before = known[self.index[rest]]
            if np.isfinite(before).any():
                np.minimum(row, (before[:, None] + self.costs[group]).min(axis=0), out=row)

    def _read(self, layers: list[Floats], last: Floats) -> GroupStages | None:
        values = np.where(self._allowed(), last, math.inf)
        k = int(values.argmin())
        if math.isinf(values[k]):
            return None
        state, place, depth = self.states[k], self.shape[0] - 1, len(layers) - 1
        value, stages = float(values[k]), []
        while place:
            before = layers[depth - 1] if len(layers) > 1 else layers[0]
            group, start = self._step_back(before, state, place, value)
            at = self.places.at
            stages.append(GroupStage(int(at[start]), int(at[place]), group))
            state = tuple(a - b for a, b in zip(state, group, strict=True))
            place, depth = start, depth - 1
            value = float(before[self.index[state], place])
        return tuple(reversed(stages))

    def _step_back(
        self, before: Floats, state: tuple[int, ...], place: int, value: float
    ) -> tuple[tuple[int, ...], int]:
        for group in self.groups:
            rest = tuple(a - b for a, b in zip(state, group, strict=True))
            if min(rest) < 0:
                continue
            hits = np.flatnonzero(before[self.index[rest]] + self.costs[group][:, place] == value)
            if len(hits):
                return group, int(hits[0])
        raise ArithmeticError("no stage leads to a state that was reached")
