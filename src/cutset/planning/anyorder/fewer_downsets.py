"""Where downsets are too many to list: fewer parts, several orders, and bounds over all of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from cutset.planning.anyorder.downsets import DagProblem
from cutset.planning.certificates import sharing_bound
from cutset.planning.plan import Certificate
from cutset.planning.totals import Floats

MAX_ORDERS = 24


def seconds_of_parts(problem: DagProblem, parts: list[list[int]]) -> Floats:
    """Seconds of each part on each class, shape (C, parts); infinity where impossible."""
    return np.array([[math.fsum(row[part]) for part in parts] for row in problem.seconds])


def fold_free_parts(
    problem: DagProblem, parts: list[list[int]], before: list[set[int]]
) -> tuple[list[list[int]], list[set[int]]]:
    """Joins parts that cost nothing with the one that they read.

    Such a part takes no time on any class and needs no memory that is limited; all that it reads
    comes from one other part, and what it makes costs at most as much to send as what it alone
    reads. Moving it to the stage that makes its input then makes no stage slower and no cut dearer,
    so that some best plan has it there; that plan may have a stage less.

    Returns:
        As `contract`.
    """
    seconds = seconds_of_parts(problem, parts)
    weights = [float(problem.weight_bytes[part].sum()) for part in parts]
    has_limits = bool(np.isfinite(problem.limit_bytes).any())
    part_of = {node: k for k, part in enumerate(parts) for node in part}
    made: list[list[tuple[set[int], float, float]]] = [[] for _ in parts]
    for tensor in problem.tensors:
        source = part_of[tensor.source]
        targets = {part_of[t] for t in tensor.targets} - {source}
        if targets:
            made[source].append((targets, tensor.transfer_s, tensor.num_bytes))
    root = list(range(len(parts)))
    for part in range(len(parts)):  # in topological order, so that roots are final
        sources = {root[k] for k in before[part]}
        if seconds[:, part].any() or len(sources) != 1 or (has_limits and weights[part]):
            continue
        (source,) = sources
        joined = {k for k in range(part) if root[k] == source} | {part}
        read = [
            tensor
            for k in joined - {part}
            for tensor in made[k]
            if part in tensor[0] and tensor[0] <= joined
        ]
        if (
            math.fsum(t[1] for t in made[part]) <= math.fsum(t[1] for t in read)
            and math.fsum(t[2] for t in made[part]) <= math.fsum(t[2] for t in read)
            and (problem.max_tensors is None or len(made[part]) <= len(read))
        ):
            root[part] = source
    kept = sorted(set(root))
    place = {k: at for at, k in enumerate(kept)}
    folded: list[list[int]] = [[] for _ in kept]
    needs: list[set[int]] = [set() for _ in kept]
    for part, nodes in enumerate(parts):
        at = place[root[part]]
        folded[at] += nodes
        needs[at] |= {place[root[k]] for k in before[part]} - {at}
    return folded, needs


def prefixes_of_orders(
    problem: DagProblem, parts: list[list[int]], before: list[set[int]], limit: int
) -> list[int]:
    """The prefixes of several topological orders, as bit masks.

    The first order is the given one; the others take what one class of devices is best at as early,
    or as late, as they can.
    """
    seconds = seconds_of_parts(problem, parts)
    least = np.where(np.isinf(seconds), np.inf, seconds).min(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(seconds > 0, seconds / least, 1.0)
    ratio = np.nan_to_num(ratio, nan=1.0, posinf=np.inf)
    keys: list[Callable[[int], float]] = [float]
    for row, sign in itertools.product(ratio, (1.0, -1.0)):
        keys.append(lambda part, row=row, sign=sign: sign * float(row[part]))  # type: ignore[misc]
    found: dict[int, None] = {0: None}
    for key in keys[:MAX_ORDERS]:
        mask = 0
        for part in _order(before, key):
            mask |= 1 << part
            found[mask] = None
        if len(found) > limit:
            break
    return list(found)


def _order(before: list[set[int]], key: Callable[[int], float]) -> list[int]:
    """A topological order that always takes the ready part of least key."""
    missing = [len(needs) for needs in before]
    after: list[list[int]] = [[] for _ in before]
    for part, needs in enumerate(before):
        for k in needs:
            after[k].append(part)
    ready = [(key(part), part) for part, count in enumerate(missing) if not count]
    order = []
    while ready:
        chosen = min(ready)
        ready.remove(chosen)
        order.append(chosen[1])
        for part in after[chosen[1]]:
            missing[part] -= 1
            if not missing[part]:
                ready.append((key(part), part))
    return order


def certificates_for_all(
    problem: DagProblem, parts: list[list[int]], value_s: float, *, by_latency: bool
) -> tuple[Certificate, ...]:
    """Bounds that hold for plans with any cut, whatever was searched; the tightest first.

    Args:
        problem: the graph and the devices.
        parts: nodes that share a stage, as `contract` gives them.
        value_s: the objective of the plan that was found.
        by_latency: whether that is its latency.
    """
    seconds = seconds_of_parts(problem, parts)
    work = seconds.min(axis=0)
    least_s = min(problem.overhead_s, default=0.0)
    if by_latency:
        bounds = [("volume", math.fsum(work), "every part where it is fastest")]
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = np.where(work > 0, work / seconds, 0.0).max(axis=1)
        most = min(sum(problem.counts), problem.num_stages or len(parts), len(parts))
        every = np.sort(np.repeat(rates, problem.counts))[::-1][:most]
        spread_s = math.fsum(work) / float(every.sum()) if every.any() else 0.0
        shared_s = sharing_bound(seconds, problem.counts)
        bounds = [
            ("volume", spread_s + least_s, f"all work spread evenly over {most} devices at most"),
            (
                "largest node",
                float(work.max()) + least_s,
                "the largest part on the device that is fastest for it",
            ),
            (
                "sharing",
                shared_s + least_s,
                "all work, every part divided among the devices at will",
            ),
        ]
    return tuple(
        Certificate(name=name, bound_s=min(bound_s, value_s), detail=detail)
        for name, bound_s, detail in sorted(bounds, key=lambda bound: -bound[1])
    )
