"""Plans with groups where links differ: a state knows the last group and the one after it.

What a member of a group takes depends on the groups before and after it, by the dearest of its
links to them. So a state is who is used, the last group, the one that is to come next, and who is
charged with the link between the two.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from cutset.planning.deadline import OverBudget
from cutset.planning.group_problem import (
    Demands,
    GroupProblem,
    GroupStage,
    GroupStages,
    caps,
    sizes_up_to,
)
from cutset.planning.problem import ROUNDING, with_slack
from cutset.planning.totals import Bools, Floats

MAX_COMBINATIONS = 400_000
"""Of those used before, three groups in a row, and the rest."""

Group: TypeAlias = tuple[int, ...]
_Holds: TypeAlias = Callable[[Group, Group, Group, "tuple[bool, bool]"], Bools]
_Key: TypeAlias = tuple[int, Group, Group, Group, bool]
"""How many stages (0 where that does not matter), all used, the last group, the next, and whether
those who receive are charged."""


def is_within_reach(problem: GroupProblem) -> bool:
    """Whether `UnequalSearch` is for a problem of this size."""
    combinations = 1
    for count in problem.chain.counts:
        combinations *= _ways(count, 5)
    num = problem.chain.num_pieces
    return combinations * max(1, num * num // 512) <= MAX_COMBINATIONS


def _ways(count: int, parts: int) -> int:
    """In how many ways equal devices are divided among so many parts."""
    ways = [1] + [0] * count
    for _ in range(parts):
        for k in range(1, count + 1):
            ways[k] += ways[k - 1]
    return ways[count]


class UnequalSearch:
    """Any plan within a limit, exactly.

    Args:
        problem: a step of the problem.
    """

    def __init__(self, problem: GroupProblem) -> None:
        chain = problem.chain
        self.problem, self.deadline = problem, chain.deadline
        self.nobody = (0,) * chain.num_classes
        self.groups = sizes_up_to(chain.counts, problem.most)[1:]
        self.states = sizes_up_to(chain.counts, problem.num_devices)[1:]
        self.charges = (True,) if chain.serial else (True, False)
        limit = chain.num_stages or chain.at_most
        most = min(problem.num_devices, chain.num_pieces)
        self.limit = chain.num_stages if limit is not None and limit >= most else limit

    @functools.cache  # noqa: B019  # as long as the search
    def _demands(
        self, c: int, before: Group, after: Group, pays: tuple[bool, bool], is_alone: bool
    ) -> Demands:
        num = self.problem.chain.num_pieces
        starts, stops = np.arange(num)[:, None], np.arange(num + 1)[None, :]
        classes = [[k for k, n in enumerate(group) if n] for group in (before, after)]
        rows = self.problem.partners(c, *classes)
        none = np.zeros(num + 1)
        ends = (
            (rows.link_in if pays[0] and any(before) else none)[starts],
            (rows.link_out if pays[1] and any(after) else none)[stops],
            rows.bytes_in[starts],
            rows.bytes_out[stops],
        )
        return self.problem.demands(c, starts, stops, ends, is_alone=is_alone)

    def find(self, limit_s: float) -> GroupStages | None:
        """Some plan with a period of at most `limit_s`, or None.

        Raises:
            OverBudget: the time is over.
        """
        chain = self.problem.chain
        must = -1
        if self.problem.floor_s() > with_slack(limit_s):
            must = self.problem.caller_class
            if must < 0:
                return None
        holds = self._holds(limit_s)
        reached: dict[_Key, Bools] = {}
        for depth in range(1, (self.limit or 1) + 1):
            for used in self.states:
                self.deadline.check()
                has_must = must < 0 or used[must] > 0
                last = self.limit is None or chain.num_stages in (None, depth)
                self._reach(reached, used, depth if self.limit else 0, holds)
                for group in self._within(used):
                    key = (depth if self.limit else 0, used, group, self.nobody, True)
                    if has_must and last and key in reached and reached[key][-1]:
                        return self._read(reached, key, holds)
        return None

    def _within(self, used: Group) -> list[Group]:
        return [g for g in self.groups if all(a <= b for a, b in zip(g, used, strict=True))]

    def _holds(self, limit_s: float) -> _Holds:
        """Which stages a group can hold between two others, shape (n, n + 1)."""

        @functools.cache
        def share(
            c: int, before: Group, after: Group, pays: tuple[bool, bool], is_alone: bool
        ) -> Floats:
            return caps(self._demands(c, before, after, pays, is_alone), limit_s)

        @functools.cache
        def holds(group: Group, before: Group, after: Group, pays: tuple[bool, bool]) -> Bools:
            # Only which classes are beside it matters.
            ends = tuple(tuple(min(n, 1) for n in g) for g in (before, after))
            shares = [(n, share(c, *ends, pays, sum(group) == 1)) for c, n in enumerate(group) if n]
            total: Floats = np.sum([n * most for n, most in shares], axis=0)
            found: Bools = total >= 1 - ROUNDING
            for _, most in shares:
                found = found & (most > 0)
            return found

        return holds

    def _reach(self, reached: dict[_Key, Bools], used: Group, depth: int, holds: _Holds) -> None:
        """Adds what is reached when just these are used."""
        counts = self.problem.chain.counts
        rest = tuple(a - b for a, b in zip(counts, used, strict=True))
        for group in self._within(used):
            ways = list(self._ways_in(reached, used, group, depth))
            if not ways:
                continue
            for after in (self.nobody, *self._within(rest)):
                for to_receivers in self.charges if any(after) else (True,):
                    pays_out = not to_receivers or self.problem.chain.serial
                    row = np.zeros(self.problem.chain.num_pieces + 1, dtype=bool)
                    for known, before, pays_in in ways:
                        stages = holds(group, before, after, (pays_in, pays_out))
                        row |= (known[:-1, None] & stages).any(axis=0)
                    row[-1] &= not any(after)
                    row[:-1] &= any(after)
                    if row.any():
                        reached[(depth, used, group, after, to_receivers)] = row

    def _ways_in(
        self, reached: dict[_Key, Bools], used: Group, group: Group, depth: int
    ) -> Iterator[tuple[Bools, Group, bool]]:
        """Where a group can begin, whom it follows, and whether it is charged."""
        start = np.zeros(self.problem.chain.num_pieces + 1, dtype=bool)
        start[0] = True
        others = tuple(a - b for a, b in zip(used, group, strict=True))
        if not any(others):
            if depth <= 1:
                yield start, self.nobody, True
            return
        for before in self._within(others):
            for charged in self.charges:
                key = (max(depth - 1, 0), others, before, group, charged)
                if key in reached:
                    yield reached[key], before, charged

    def _read(self, reached: dict[_Key, Bools], key: _Key, holds: _Holds) -> GroupStages:
        stages: list[GroupStage] = []
        place = self.problem.chain.num_pieces
        while True:
            depth, used, group, after, to_receivers = key
            pays_out = not to_receivers or self.problem.chain.serial
            for known, before, pays_in in self._ways_in(reached, used, group, depth):
                table = holds(group, before, after, (pays_in, pays_out))
                hits = np.flatnonzero(known[:-1] & table[:, place])
                if len(hits):
                    break
            else:
                raise OverBudget("no stage leads to a state that was reached")
            stages.append(GroupStage(int(hits[0]), place, group))
            place = int(hits[0])
            if not any(before):
                return tuple(reversed(stages))
            others = tuple(a - b for a, b in zip(used, group, strict=True))
            key = (max(depth - 1, 0), others, before, group, pays_in)
