"""Certificates: why no plan can be better, each from its own argument.

- *volume*: all work, spread over all devices without regard to pieces. Every piece counts what
  its fastest device needs; a device counts the most such work that it can do in a second.
- *largest node*: some stage must hold the largest piece, at best on the device that is fastest
  for it.
- *sharing*: all work once more, every piece divided among the devices at will, each device as slow
  for each piece as it is. Any weights of the devices give such a bound (the dual of a linear
  program); weights are sought that give a large one.
- *cover*: stages as long as a limit allows, each on whatever device reaches furthest and a device
  as often as one likes, still need more stages than there may be. A later start is taken to reach
  as far as any earlier one, so that greedy from the left is exact for this relaxation.
- *cut count*: a limit that forces k stages needs k - 1 cuts that some link can carry within it.
- *exhaustion*: the exact search has ruled out every smaller value that a period can take.
- *search*: the exact search was ended by its time limit; it had ruled out all below this.
- *relaxation*: an easier problem was solved exactly: unequal devices merged into groups, each as
  good as the best of its members in every respect, or devices that may serve several stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from cutset.planning.plan import Certificate
from cutset.planning.problem import ROUNDING, ChainProblem
from cutset.planning.totals import Floats

MAX_COVER_SIZE = 50_000

MAX_SHARING_SIZE = 200_000
SHARING_STEPS = 60
MAX_RATIOS = 2_000


def volume_bound(problem: ChainProblem) -> float:
    """Seconds of all work on as many of the fastest devices as a plan may use."""
    work, rates = problem.volume()
    every = np.sort(np.repeat(rates, problem.counts))[::-1][: problem.max_stages]
    total = float(every.sum())
    spread_s = float(work.sum()) / total if math.isfinite(total) and total > 0 else 0.0
    return spread_s + float(problem.overhead_s.min())


def sharing_bound(seconds: Floats, counts: Sequence[int]) -> float:
    """Seconds of all pieces, divided at will among all devices; 0 where some piece cannot run.

    Where a device of class c works for T seconds at most, ``sum_c w_c * counts_c * T`` is at least
    the sum over pieces of ``min_c w_c * seconds[c]``, for any weights w from 0. For two classes the
    best weights are found exactly, for more by exponentiated gradient.

    Args:
        seconds: of each piece on each class, shape (C, n); infinity where impossible.
        counts: devices of each class.
    """
    number = np.asarray(counts, dtype=np.float64)
    least = seconds.min(axis=0)
    if not np.isfinite(least).all() or float(least.sum()) <= 0:
        return 0.0
    with np.errstate(divide="ignore", invalid="ignore"):
        weights = np.where(least > 0, least / seconds, 0.0).max(axis=1)
    best = 0.0
    for _ in range(SHARING_STEPS):
        weights = weights / float(number @ weights)
        if not (weights > 0).all():
            weights = np.maximum(weights, 1e-12)
            weights = weights / float(number @ weights)
        weighted = weights[:, None] * seconds
        chosen = weighted.argmin(axis=0)
        best = max(best, float(weighted.min(axis=0).sum()))
        given = np.bincount(chosen, seconds[chosen, np.arange(len(chosen))], len(counts)) / number
        weights = weights * np.exp(0.5 * (given / given.max() - 1.0))
    if len(counts) == 2:
        best = max(best, _best_of_two(seconds, number))
    return best


def _best_of_two(seconds: Floats, number: Floats) -> float:
    """The largest sharing bound of two classes: its weights make some piece cost both the same."""
    first, second = seconds
    both = np.isfinite(first) & np.isfinite(second) & (first > 0) & (second > 0)
    best = 0.0
    for ratio in np.unique(second[both] / first[both])[:MAX_RATIOS]:
        weights = np.array([ratio, 1.0])
        weights = weights / float(number @ weights)
        best = max(best, float((weights[:, None] * seconds).min(axis=0).sum()))
    return best


def largest_node_bound(problem: ChainProblem) -> float:
    """Seconds of the largest piece on the device that is fastest for it."""
    work, _ = problem.volume()
    return float(work.max()) + float(problem.overhead_s.min())


def least_stages(problem: ChainProblem, limit_s: float) -> int | None:
    """The fewest stages within a limit if devices could be reused and links were free.

    None where some piece is in no stage.
    """
    reach = np.zeros(problem.num_pieces, dtype=np.int64)
    for variant in problem.variants:
        np.maximum(reach, problem.stops_within(variant, limit_s), out=reach)
    reach = np.maximum.accumulate(reach)
    at = count = 0
    while at < problem.num_pieces:
        if reach[at] <= at:
            return None
        at, count = int(reach[at]), count + 1
    return count


def fastest_links_s(problem: ChainProblem) -> Floats:
    """For each inner boundary the seconds on the fastest link there is, shape (n - 1,)."""
    best = np.full(problem.num_pieces + 1, math.inf)
    for pair in problem.pairs:
        np.minimum(best, problem.link_row_s(*pair), out=best)
    return best[1:-1]


def cover_bound(problem: ChainProblem, known_s: float) -> float:
    """The least limit with which the cover relaxation needs few enough stages."""

    def enough(limit_s: float) -> bool:
        needed = least_stages(problem, limit_s)
        return needed is not None and needed <= problem.max_stages

    return _last_failure(enough, volume_bound(problem), known_s)


def cut_count_bound(problem: ChainProblem, known_s: float) -> float:
    """The least limit with which enough cuts can be carried for the stages that it forces."""
    links = np.sort(fastest_links_s(problem))

    def enough(limit_s: float) -> bool:
        needed = problem.num_stages or least_stages(problem, limit_s)
        cuts = int(np.searchsorted(links, limit_s * (1 + ROUNDING), side="right"))
        return needed is not None and cuts >= needed - 1

    return _last_failure(enough, 0.0, known_s)


def _last_failure(enough: Callable[[float], bool], low_s: float, high_s: float) -> float:
    """A limit below which `enough` (which only ever turns true) fails; at most `high_s`."""
    low_s = min(low_s, high_s)
    if not enough(high_s * (1 - 1e-10)):
        return high_s
    if enough(low_s):
        return low_s
    for _ in range(60):
        middle = (low_s + high_s) / 2
        if high_s - low_s <= high_s * 1e-9:
            break
        if enough(middle):
            high_s = middle
        else:
            low_s = middle
    return low_s


def quick_bound(problem: ChainProblem) -> float:
    """The best of the bounds that cost next to nothing, in seconds."""
    return max(volume_bound(problem), largest_node_bound(problem), problem.floor_s)


def shared_work_bound(problem: ChainProblem) -> float:
    """Seconds of all work, divided at will among the devices, and the least overhead."""
    if problem.num_classes == 1 or problem.num_pieces * problem.num_classes > MAX_SHARING_SIZE:
        return 0.0
    return sharing_bound(problem.piece_seconds(), problem.counts) + float(problem.overhead_s.min())


def period_certificates(
    problem: ChainProblem, period_s: float, proven_s: float, proven_by: str
) -> tuple[Certificate, ...]:
    """Every certificate for a period, the tightest first.

    Args:
        problem: what was solved.
        period_s: the period of the plan found.
        proven_s: the bound that the search itself proved.
        proven_by: how: ``"exhaustion"``, ``"search"`` or ``"relaxation"``.
    """
    volume_s, largest_s = volume_bound(problem), largest_node_bound(problem)
    found = [
        Certificate(
            name="volume",
            bound_s=min(volume_s, period_s),
            detail=f"all work spread evenly over {problem.max_stages} devices at most",
        ),
        Certificate(
            name="largest node",
            bound_s=min(largest_s, period_s),
            detail="the largest piece on the device that is fastest for it",
        ),
    ]
    shared_s = shared_work_bound(problem)
    if shared_s > volume_s:
        found.append(
            Certificate(
                name="sharing",
                bound_s=min(shared_s, period_s),
                detail="all work, every piece divided among the devices at will",
            )
        )
    if problem.num_pieces * len(problem.variants) <= MAX_COVER_SIZE:
        found.append(
            Certificate(
                name="cover",
                bound_s=cover_bound(problem, period_s),
                detail=f"less time than this needs more than {problem.max_stages} stages",
            )
        )
        found.append(
            Certificate(
                name="cut count",
                bound_s=cut_count_bound(problem, period_s),
                detail="less time than this needs more cuts than the links can carry",
            )
        )
    detail = {
        "exhaustion": "the search ruled out every smaller period",
        "search": "the search ruled out every period below this before its time was over",
        "relaxation": "the best that groups of devices as good as their best members could do, or "
        "devices that could serve several stages",
    }[proven_by]
    found.append(Certificate(name=proven_by, bound_s=proven_s, detail=detail))
    return _by_tightness(found, period_s)


def group_certificates(
    problem: ChainProblem, period_s: float, proven_s: float, proven_by: str
) -> tuple[Certificate, ...]:
    """Every certificate for a period where stages may have groups; arguments as above."""
    details = {
        "exhaustion": "the search ruled out every smaller period, groups included",
        "search": "the search ruled out every period below this before its time was over",
        "relaxation": "the best that groups could do if each device had the best of its links",
    }
    found = [
        Certificate(
            name="volume",
            bound_s=min(spread_bound(problem), period_s),
            detail=f"all work, divided at will among all {sum(problem.counts)} devices",
        ),
        Certificate(name=proven_by, bound_s=proven_s, detail=details[proven_by]),
    ]
    return _by_tightness(found, period_s)


def spread_bound(problem: ChainProblem) -> float:
    """Seconds of all work, every piece divided at will among all devices, however many."""
    work, rates = problem.volume()
    total = float(np.repeat(rates, problem.counts).sum())
    spread_s = float(work.sum()) / total if math.isfinite(total) and total > 0 else 0.0
    return max(spread_s, sharing_bound(problem.piece_seconds(), problem.counts))


def latency_certificates(
    problem: ChainProblem, latency_s: float, proven_s: float, proven_by: str
) -> tuple[Certificate, ...]:
    """Every certificate for a latency, the tightest first; arguments as above."""
    work, _ = problem.volume()
    forced = (problem.num_stages or least_stages(problem, math.inf) or 1) - 1
    links = float(np.sort(fastest_links_s(problem))[:forced].sum()) if forced else 0.0
    least = float(work.sum()) + float(problem.source_s.min()) + float(problem.sink_s.min()) + links
    found = [
        Certificate(
            name="volume",
            bound_s=min(least, latency_s),
            detail=f"every piece where it is fastest, and {forced} cuts on the fastest link",
        ),
        Certificate(
            name=proven_by,
            bound_s=proven_s,
            detail="the search ruled out every smaller latency"
            if proven_by == "exhaustion"
            else "the least latency if devices could serve several stages",
        ),
    ]
    return _by_tightness(found, latency_s)


def _by_tightness(found: list[Certificate], value_s: float) -> tuple[Certificate, ...]:
    """Tightest first; among those that meet the value the plainest argument first."""
    order = {certificate.name: k for k, certificate in enumerate(found)}

    def key(certificate: Certificate) -> tuple[float, int]:
        meets = certificate.bound_s >= value_s * (1 - 1e-9)
        return (-math.inf if meets else -certificate.bound_s, order[certificate.name])

    return tuple(sorted(found, key=key))
