"""More distinct devices than can be searched: a plan with a proven gap.

Three roads, and the best of what they give:

- An easier problem in which a device may serve several stages has as many states as there are
  numbers of stages. Its optimum is a lower bound; where it names every device once it is the
  optimum itself.
- A plan for a part of the devices is one for all: parts of few devices are searched exactly.
- Devices that are nearly alike are merged into groups, twice. Where each group is taken to be as
  good as the best of its members in every respect, the exact optimum is a lower bound. Where each
  is taken to be as bad as the worst, it is a plan that the real devices can keep; its devices are
  then exchanged for one another while that helps.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from cutset.planning.certificates import quick_bound, shared_work_bound
from cutset.planning.deadline import OverBudget
from cutset.planning.problem import ROUNDING, ByteCosts, ChainProblem, Placed
from cutset.planning.shared_wires import SharedMedium, SharedWires
from cutset.planning.solvers.period_search import Found
from cutset.planning.totals import Floats, Ints
from cutset.planning.variant import Variant
from cutset.planning.watch import note, unheard

logger = logging.getLogger(__name__)

MAX_GROUPED_STATES = 1 << 13
MAX_PART_STATES = 1 << 9
MAX_EXCHANGES = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """What is minimised, and what is not to be exceeded.

    Attributes:
        by_latency: whether the latency is minimised, and not the period.
        limit_s: the most that the other of the two may be.
    """

    by_latency: bool = False
    limit_s: float = math.inf

    def value_s(self, problem: ChainProblem, stages: tuple[Placed, ...]) -> float:
        """What is minimised."""
        return problem.latency_s(stages) if self.by_latency else problem.period_s(stages)

    def other_s(self, problem: ChainProblem, stages: tuple[Placed, ...]) -> float:
        """What has the limit."""
        return problem.period_s(stages) if self.by_latency else problem.latency_s(stages)

    def is_kept(self, problem: ChainProblem, stages: tuple[Placed, ...]) -> bool:
        """Whether a plan is possible and keeps the limit."""
        other_s = self.other_s(problem, stages)
        return (
            math.isfinite(other_s)
            and math.isfinite(self.value_s(problem, stages))
            and problem.fits(stages)
            and other_s <= self.limit_s * (1 + ROUNDING)
        )


Exact: TypeAlias = Callable[[ChainProblem, Goal], "Found | None"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wide:
    """What was found where not everything could be searched.

    Attributes:
        stages: the best plan that keeps the limit, or None.
        bound_s: no plan that keeps the limit has a lower objective; infinity where this proves
            that there is none.
    """

    stages: tuple[Placed, ...] | None
    bound_s: float


def solve_wide(
    problem: ChainProblem, goal: Goal, exact: Exact, known: Sequence[tuple[Placed, ...]] = ()
) -> Wide:
    """A good plan and a lower bound; neither rests on what a heuristic did not find.

    Args:
        problem: too many states, or too little time, to be searched.
        goal: what is wanted.
        exact: solves a problem of few states; None where it has no plan.
        known: plans that were found already.
    """
    plans = [plan for plan in known if goal.is_kept(problem, plan)]
    easier = _tried(dataclasses.replace(problem, reuse=True), goal, exact, 0.4)
    if easier is None:
        return Wide(stages=None, bound_s=math.inf)
    bound_s, path = easier.bound_s, easier.stages
    if path and _has_devices(problem, path):
        plans.append(path)
    if not goal.by_latency:
        bound_s = max(bound_s, quick_bound(problem), shared_work_bound(problem))

    def is_done() -> bool:
        kept = (goal.value_s(problem, plan) for plan in plans if goal.is_kept(problem, plan))
        least_s = min(kept, default=math.inf)
        note(best_s=least_s, bound_s=bound_s)
        return least_s <= bound_s * (1 + 1e-9)

    for index in _parts(problem, path):
        if is_done():
            break
        plans += _in_part(problem, index, goal, exact)
    if not is_done() and not problem.fixed_order and not problem.deadline.is_past:
        grouped, grouped_s = _grouped(problem, goal, exact)
        plans += grouped
        bound_s = max(bound_s, grouped_s)
    best = min(
        (plan for plan in plans if goal.is_kept(problem, plan)),
        key=lambda plan: goal.value_s(problem, plan),
        default=None,
    )
    if best is None:
        return Wide(stages=None, bound_s=bound_s)
    if not problem.fixed_order:
        best = _exchange(problem, goal, exact, best, bound_s)
    return Wide(stages=best, bound_s=min(bound_s, goal.value_s(problem, best)))


def _has_devices(problem: ChainProblem, path: tuple[Placed, ...]) -> bool:
    """Whether there is a device for each stage of a plan that used some again."""
    used = Counter(stage.device_class for stage in path)
    return all(count <= problem.counts[c] for c, count in used.items())


_NOTHING = Found((), math.inf, 0.0, is_complete=False)
"""Stands for a search that was ended before it gave any plan."""


def _tried(problem: ChainProblem, goal: Goal, exact: Exact, fraction: float) -> Found | None:
    """An exact answer within a part of the time that is left."""
    try:
        with unheard():
            sooner = problem.deadline.sooner(fraction)
            return exact(dataclasses.replace(problem, deadline=sooner), goal)
    except OverBudget as reason:
        logger.info("a part of the search was ended: %s", reason)
        return _NOTHING


def _parts(problem: ChainProblem, path: tuple[Placed, ...]) -> list[list[int]]:
    """Classes of devices to search exactly, small parts first.

    Those that the easier problem used, the fastest, and those on which most pieces fit, each
    filled up with the next fastest while the states stay few.
    """
    _, rates = problem.volume()
    every = range(problem.num_classes)
    reach = [max(int(v.furthest.sum()) for v in problem.of_class(c)) for c in every]
    fastest = sorted(every, key=lambda c: (-rates[c], -reach[c], c))
    roomy = sorted(every, key=lambda c: (-reach[c], -rates[c], c))
    used = list(dict.fromkeys(stage.device_class for stage in path))
    pieces = problem.piece_seconds()
    best_for = [c for c, _ in Counter(pieces.argmin(axis=0).tolist()).most_common()]
    found: list[list[int]] = []
    for first, limit in itertools.product((used, fastest, roomy, best_for), (8, MAX_PART_STATES)):
        chosen: list[int] = []
        states = 1
        for c in dict.fromkeys([*first, *fastest]):
            states *= problem.counts[c] + 1
            missing = (problem.num_stages or 1) - sum(problem.counts[c] for c in chosen)
            if states > limit and chosen and missing <= 0:
                break
            chosen.append(c)
        found.append(sorted(chosen))
    return sorted(
        map(list, {tuple(index) for index in found}), key=lambda index: (len(index), index)
    )


def _in_part(
    problem: ChainProblem, index: list[int], goal: Goal, exact: Exact
) -> list[tuple[Placed, ...]]:
    """The best plan on some classes of devices, if one was found."""
    part = problem.of_classes(index, [problem.counts[c] for c in index])
    found = _tried(part, goal, exact, 0.3)
    if found is None or not found.stages:
        return []
    return [tuple(Placed(s.start, s.stop, index[s.device_class]) for s in found.stages)]


def _grouped(
    problem: ChainProblem, goal: Goal, exact: Exact
) -> tuple[list[tuple[Placed, ...]], float]:
    """Plans from groups of devices that are nearly alike, and a lower bound."""
    groups = _groups(problem)
    easier = _tried(merge_classes(problem, groups, as_best=True), goal, exact, 0.5)
    if easier is None:
        return [], math.inf
    harder = _tried(merge_classes(problem, groups, as_best=False), goal, exact, 0.5)
    plans: list[tuple[Placed, ...]] = []
    for found in (harder, easier):
        if found is not None and found.stages:
            plans += _with_real_devices(problem, groups, found.stages, goal, exact)
    return plans, easier.bound_s


def _groups(problem: ChainProblem) -> list[list[int]]:
    """Classes by speed, neighbours merged (the most alike first) until there are few states."""
    _, rates = problem.volume()
    order = sorted(range(problem.num_classes), key=lambda c: (rates[c], c))
    groups = [[c] for c in order]

    def states() -> int:
        return math.prod(1 + sum(problem.counts[c] for c in group) for group in groups)

    while len(groups) > 1 and states() > MAX_GROUPED_STATES:
        spread = [
            (float(rates[b[-1]] / rates[a[0]]) if rates[a[0]] > 0 else math.inf) * (len(a) + len(b))
            for a, b in itertools.pairwise(groups)
        ]
        at = int(np.argmin(spread))
        groups[at : at + 2] = [groups[at] + groups[at + 1]]
    return groups


def merge_classes(problem: ChainProblem, groups: list[list[int]], *, as_best: bool) -> ChainProblem:
    """One class for each group, with the best or the worst of its members' properties."""
    pick = np.min if as_best else np.max
    variants = []
    for k, group in enumerate(groups):
        pieces, reach, rooms = [], [], []
        for c in group:
            own = problem.of_class(c)
            if not as_best:  # what one backend can keep, every stage can
                own = (min(own, key=lambda v: (-int(v.furthest.sum()), float(v.seconds.sum()))),)
            pieces += [v.seconds for v in own]
            reach += [v.furthest for v in own]
            rooms += [v.room for v in own]
        seconds = pick(np.stack(pieces), axis=0)
        furthest = (np.max if as_best else np.min)(np.stack(reach), axis=0)
        room = _merged_room(rooms, as_best=as_best)
        if room is None:  # what one member cannot, another can: no stage less is possible
            furthest = np.maximum.accumulate(furthest)
        variants.append(
            Variant(device_class=k, backend="", seconds=seconds, furthest=furthest, room=room)
        )

    def pairs(table: np.ndarray) -> np.ndarray:
        merged = np.zeros((len(groups), len(groups)))
        for a, b in itertools.product(range(len(groups)), repeat=2):
            values = [table[c, d] for c in groups[a] for d in groups[b] if problem.can_follow(c, d)]
            merged[a, b] = pick(values) if values else 0.0
        return merged

    def each(row: np.ndarray) -> np.ndarray:
        return np.array([pick(row[group], axis=0) for group in groups])

    own_bytes = problem.byte_costs
    return dataclasses.replace(
        problem,
        counts=tuple(sum(problem.counts[c] for c in group) for group in groups),
        variants=tuple(variants),
        link_latency_s=pairs(problem.link_latency_s),
        link_s_per_byte=pairs(problem.link_s_per_byte),
        source_s=each(problem.source_s),
        sink_s=each(problem.sink_s),
        overhead_s=each(problem.overhead_s),
        shared=_merged_shared(problem, groups, pairs, each, as_best=as_best),
        byte_costs=None
        if own_bytes is None
        else ByteCosts(
            **{
                field.name: (pairs if field.name.endswith("per_byte") else each)(
                    getattr(own_bytes, field.name)
                )
                for field in dataclasses.fields(ByteCosts)
            }
        ),
    )


def _merged_shared(
    problem: ChainProblem,
    groups: list[list[int]],
    pairs: Callable[[Floats], Floats],
    each: Callable[[Floats], Floats],
    *,
    as_best: bool,
) -> SharedWires | None:
    """What groups of devices share: a group's best member has no ports, its worst has all."""
    shared = problem.shared
    if shared is None:
        return None
    homes = [k for k, group in enumerate(groups) if shared.caller_class in group]
    is_home = homes and (as_best or len(groups[homes[0]]) == 1)
    ports = tuple(
        dataclasses.replace(port, device_class=k)
        for k, group in enumerate(groups)
        for port in shared.ports
        if port.device_class in group and (len(group) == 1 or not as_best)
    )
    media = tuple(
        SharedMedium(
            latency_s=pairs(medium.latency_s),
            s_per_byte=pairs(medium.s_per_byte),
            source_s=each(medium.source_s),
            sink_s=each(medium.sink_s),
        )
        for medium in shared.media
    )
    return SharedWires(
        ports=ports,
        media=media,
        caller_class=homes[0] if is_home else -1,
        caller_s=shared.caller_s,
    )


def _merged_room(rooms: list[Ints | None], *, as_best: bool) -> Ints | None:
    """`Variant.room` of a group: what its best, or its worst, member allows."""
    known = [room for room in rooms if room is not None]
    if not known or (as_best and len(known) < len(rooms)):
        return None
    merged: Ints = (np.maximum if as_best else np.minimum).reduce(known)
    return merged


def _with_real_devices(
    problem: ChainProblem,
    groups: list[list[int]],
    stages: tuple[Placed, ...],
    goal: Goal,
    exact: Exact,
) -> list[tuple[Placed, ...]]:
    """The grouped plan on its groups' own devices, kept as it is and with its cuts made anew."""
    members = [[c for c in group for _ in range(problem.counts[c])] for group in groups]
    order = [members[stage.device_class].pop() for stage in stages]
    same = tuple(Placed(s.start, s.stop, c) for s, c in zip(stages, order, strict=True))
    again = _cut_anew(problem, order, goal, exact)
    return [same] + ([again] if again is not None else [])


def _cut_anew(
    problem: ChainProblem, order: list[int], goal: Goal, exact: Exact
) -> tuple[Placed, ...] | None:
    """The best cuts for devices in this order (each may be left out unless a number is fixed)."""
    ordered = dataclasses.replace(
        problem.of_classes(order, (1,) * len(order)), fixed_order=len(order) > 1
    )
    found = _tried(ordered, goal, exact, 0.1)
    if found is None or not found.stages:
        return None
    return _renamed(found.stages, order)


def _renamed(stages: tuple[Placed, ...], classes: Sequence[int]) -> tuple[Placed, ...]:
    """Stages of a problem over chosen classes, with the numbers that these have elsewhere."""
    return tuple(Placed(s.start, s.stop, classes[s.device_class]) for s in stages)


def _exchange(
    problem: ChainProblem,
    goal: Goal,
    exact: Exact,
    stages: tuple[Placed, ...],
    bound_s: float,
) -> tuple[Placed, ...]:
    """Puts another device in place of a stage's, while that helps; deterministic but for time."""
    budget = MAX_EXCHANGES
    improved = True
    while improved and goal.value_s(problem, stages) > bound_s * (1 + 1e-9):
        improved = False
        for candidate in _neighbours(problem, [stage.device_class for stage in stages]):
            if budget == 0 or problem.deadline.is_past:
                return stages
            budget -= 1
            other = _cut_anew(problem, candidate, goal, exact)
            goal_s = goal.value_s(problem, stages) * (1 - 1e-9)
            if (
                other is not None
                and goal.is_kept(problem, other)
                and goal.value_s(problem, other) < goal_s
            ):
                stages, improved = other, True
                note(best_s=goal.value_s(problem, other))
                break
    return stages


def _neighbours(problem: ChainProblem, order: list[int]) -> Iterator[list[int]]:
    """Orders one step away: another device for a stage, one stage more, two stages swapped."""
    free = [c for c, count in enumerate(problem.counts) if count > order.count(c)]
    for c in free:
        for i in range(len(order)):
            yield [*order[:i], c, *order[i + 1 :]]
    if problem.num_stages is None:
        for c in free:
            for i in range(len(order) + 1):
                yield [*order[:i], c, *order[i:]]
    for i, j in itertools.combinations(range(len(order)), 2):
        if order[i] != order[j]:
            yield [*order[:i], order[j], *order[i + 1 : j], order[i], *order[j + 1 :]]
