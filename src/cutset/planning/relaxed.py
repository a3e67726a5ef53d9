"""More distinct devices than can be searched: a plan with a proven gap.

Devices that are nearly alike are merged into groups, twice. Where each group is taken to be as
good as the best of its members in every respect, the exact optimum of this easier problem is a
lower bound. Where each is taken to be as bad as the worst, the optimum is a plan that the real
devices can keep; its devices are then exchanged for one another while that helps.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np

from cutset.planning.bounds import quick_bound
from cutset.planning.fixed import feasible_fixed
from cutset.planning.problem import ChainProblem, Placed, Variant
from cutset.planning.search import least_period

Exact: TypeAlias = Callable[[ChainProblem], "tuple[tuple[Placed, ...], float] | None"]

MAX_GROUPED_STATES = 1 << 13
MAX_EXCHANGES = 60


def solve_relaxed(problem: ChainProblem, exact: Exact) -> tuple[tuple[Placed, ...], float] | None:
    """A good plan and a lower bound on the period of any; None where no plan was found.

    Args:
        problem: free order, too many states.
        exact: solves a problem of few states.
    """
    groups = _groups(problem)
    easier = exact(merge_classes(problem, groups, as_best=True))
    if easier is None:
        return None
    bound_s = max(easier[1], quick_bound(problem))
    plans = []
    harder = exact(merge_classes(problem, groups, as_best=False))
    for found in (harder, easier):
        if found is not None:
            plans += _with_real_devices(problem, groups, found[0])
    if not plans:
        return None
    best = min(plans, key=problem.period_s)
    best = _exchange(problem, best, bound_s)
    return best, min(bound_s, problem.period_s(best))


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
        pieces, reach = [], []
        for c in group:
            own = problem.of_class(c)
            if not as_best:  # what one backend can keep, every stage can
                own = (min(own, key=lambda v: (-int(v.furthest.sum()), float(v.prefix_s[-1]))),)
            pieces += [np.diff(v.prefix_s) for v in own]
            reach += [v.furthest for v in own]
        seconds = pick(np.stack(pieces), axis=0)
        furthest = (np.max if as_best else np.min)(np.stack(reach), axis=0)
        prefix = np.concatenate([[0.0], np.cumsum(seconds)])
        variants.append(Variant(device_class=k, backend="", prefix_s=prefix, furthest=furthest))
    num = len(groups)
    latency, per_byte = np.zeros((num, num)), np.zeros((num, num))
    for a in range(num):
        for b in range(num):
            pairs = [
                (c, d) for c in groups[a] for d in groups[b] if c != d or problem.counts[c] > 1
            ]
            if pairs:
                latency[a, b] = pick([problem.link_latency_s[p] for p in pairs])
                per_byte[a, b] = pick([problem.link_s_per_byte[p] for p in pairs])
    return dataclasses.replace(
        problem,
        counts=tuple(sum(problem.counts[c] for c in group) for group in groups),
        variants=tuple(variants),
        link_latency_s=latency,
        link_s_per_byte=per_byte,
        source_s=np.array([pick(problem.source_s[group]) for group in groups]),
        sink_s=np.array([pick(problem.sink_s[group]) for group in groups]),
        overhead_s=np.array([pick(problem.overhead_s[group]) for group in groups]),
    )


def _with_real_devices(
    problem: ChainProblem, groups: list[list[int]], stages: tuple[Placed, ...]
) -> list[tuple[Placed, ...]]:
    """The grouped plan on its groups' own devices, kept as it is and with its cuts made anew."""
    members = [[c for c in group for _ in range(problem.counts[c])] for group in groups]
    order = [members[stage.device_class].pop() for stage in stages]
    same = tuple(Placed(s.start, s.stop, c) for s, c in zip(stages, order, strict=True))
    plans = [same] if math.isfinite(problem.period_s(same)) else []
    again = _cut_anew(problem, order)
    return plans + ([again] if again is not None else [])


def _cut_anew(problem: ChainProblem, order: list[int]) -> tuple[Placed, ...] | None:
    """The best cuts for devices in this order (each may be left out unless a number is fixed)."""
    index = np.asarray(order)
    variants = tuple(
        dataclasses.replace(v, device_class=k)
        for k, c in enumerate(order)
        for v in problem.of_class(c)
    )
    ordered = dataclasses.replace(
        problem,
        counts=(1,) * len(order),
        variants=variants,
        link_latency_s=problem.link_latency_s[np.ix_(index, index)],
        link_s_per_byte=problem.link_s_per_byte[np.ix_(index, index)],
        source_s=problem.source_s[index],
        sink_s=problem.sink_s[index],
        overhead_s=problem.overhead_s[index],
        fixed_order=True,
    )
    if problem.serial:
        return None
    found = least_period(
        ordered, lambda limit_s: feasible_fixed(ordered, limit_s), quick_bound(ordered)
    )
    if found is None:
        return None
    return tuple(Placed(s.start, s.stop, order[s.device_class]) for s in found[0])


def _exchange(
    problem: ChainProblem, stages: tuple[Placed, ...], bound_s: float
) -> tuple[Placed, ...]:
    """Puts another device in place of the slowest stage's, while that helps; deterministic."""
    budget = MAX_EXCHANGES
    improved = True
    while improved and problem.period_s(stages) > bound_s * (1 + 1e-9):
        improved = False
        for candidate in _neighbours(problem, [stage.device_class for stage in stages]):
            if budget == 0:
                return stages
            budget -= 1
            other = _cut_anew(problem, candidate)
            goal_s = problem.period_s(stages) * (1 - 1e-9)
            if other is not None and problem.period_s(other) < goal_s:
                stages, improved = other, True
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
