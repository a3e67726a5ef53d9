"""Why nothing fits: which device lacks how much, and the least that would do."""

from __future__ import annotations

import dataclasses

import numpy as np

from cutset.cluster.devices import Cluster
from cutset.errors import InfeasiblePlan, PlanError
from cutset.planning.deadline import OverBudget
from cutset.planning.formulate import BuiltProblem
from cutset.planning.problem import ChainProblem
from cutset.planning.solvers.within_limit import is_exact, period_oracle
from cutset.planning.totals import Ints
from cutset.planning.variant import Variant

MAX_LISTED_PIECES = 600


def explain_infeasible(cluster: Cluster, built: BuiltProblem) -> PlanError:
    """The error for a problem that has no plan at all.

    Looks for the device whose memory has to grow least for some plan to fit; where growing one
    is not enough, for the least memory that all of them would need.

    Returns:
        An `InfeasiblePlan` where memory is the reason; a plain `PlanError` where more memory would
        not help, or the search cannot tell.
    """
    try:
        return _reason(cluster, built)
    except OverBudget as reason:
        return PlanError(
            f"no plan was found for {built.problem.num_pieces} pieces on {len(cluster.devices)} "
            f"devices; which of them lacks memory was not found out: {reason}"
        )


def _reason(cluster: Cluster, built: BuiltProblem) -> PlanError:
    problem = built.problem
    limits = [built.memory.limit_on(group[0]) for group in built.classes]
    if all(limit is None for limit in limits) or not is_exact(problem):
        return PlanError(
            f"no plan was found for {problem.num_pieces} pieces on {len(cluster.devices)} devices"
            + ("" if is_exact(problem) else "; with so many unequal devices none may exist or the "
               "search may have missed it: group devices or fix their order")
        )  # fmt: skip
    sizes = _stage_sizes(built)
    window = built.memory.window
    in_flight = "2n + 1 micro-batches in flight in n stages"
    if window is not None:
        in_flight = f"{window} micro-batches in flight"
    memory = "the devices' memory" + (f" with {in_flight}" if window != 0 else "")
    best: tuple[int, int, int] | None = None  # missing, needed, class
    for device_class, limit in enumerate(limits):
        if limit is None:
            continue
        needed = _least(built, sizes[sizes > limit], (device_class,), whole=False)
        if needed is not None and (best is None or needed - limit < best[0]):
            best = needed - limit, needed, device_class
    if best is not None:
        missing, needed, device_class = best
        device = built.classes[device_class][0]
        available = device.memory_bytes or 0
        needed += built.memory.beside(device)
        return InfeasiblePlan(
            f"no placement fits {memory}: device {device.name!r} has "
            f"{_amount(available, down=True)} and lacks {_amount(missing)}; with {_amount(needed)} "
            "there a plan exists. Give it more, add a device, or allow more cuts",
            needed_bytes=needed,
            available_bytes=available,
            device=device.name,
        )
    every = tuple(c for c, limit in enumerate(limits) if limit is not None)
    needed = _least(built, sizes, every, whole=True)
    if needed is None:
        return PlanError(
            f"no plan has exactly {problem.num_stages} stages here, whatever memory there is"
        )
    smallest = min((d for g in built.classes for d in g), key=lambda d: d.memory_bytes or 2**63)
    needed += built.memory.beside(smallest)
    return InfeasiblePlan(
        f"no placement fits {memory}, and more on one device alone "
        f"would not do: every device needs {needed:,} bytes; {smallest.name!r} has "
        f"{smallest.memory_bytes:,}",
        needed_bytes=needed,
        available_bytes=smallest.memory_bytes or 0,
        device=smallest.name,
    )


def _stage_sizes(built: BuiltProblem) -> Ints:
    """Every amount of memory that some stage needs, rising."""
    num = built.problem.num_pieces
    most = built.problem.max_stages
    if num > MAX_LISTED_PIECES:
        largest = built.memory.most_needed(num_stages=most)
        return np.unique(np.geomspace(1, max(largest, 1), 4096).astype(np.int64))
    starts, stops = np.triu_indices(num + 1, 1)
    numbers = range(built.problem.num_stages or 1, most + 1)
    sizes = [np.unique(built.memory.needed(starts, stops, num_stages=k)) for k in numbers]
    return np.unique(np.concatenate(sizes))


def _least(built: BuiltProblem, sizes: Ints, raised: tuple[int, ...], *, whole: bool) -> int | None:
    """The least size with which a plan exists if the classes `raised` had at least that much.

    `whole` raises every device of these classes, else one of each.
    """
    low, high = 0, len(sizes)
    while low < high:  # more memory never makes a plan impossible
        middle = (low + high) // 2
        if _fits(built, int(sizes[middle]), raised, whole=whole):
            high = middle
        else:
            low = middle + 1
    return int(sizes[low]) if low < len(sizes) else None


def _fits(built: BuiltProblem, size: int, raised: tuple[int, ...], *, whole: bool) -> bool:
    problem = built.problem
    limits = {c: max(size, built.memory.limit_on(built.classes[c][0]) or 0) for c in raised}
    rooms = {c: built.memory.most_stages(limits[c], problem.max_stages) for c in raised}
    free = [
        dataclasses.replace(
            v,
            furthest=np.full(problem.num_pieces, problem.num_pieces),
            room=rooms[v.device_class],
        )
        for v in problem.variants
        if v.device_class in raised
    ]
    if whole or problem.counts[raised[0]] == 1:
        kept = tuple(v for v in problem.variants if v.device_class not in raised)
        changed = dataclasses.replace(problem, variants=(*kept, *free))
    else:
        changed = _split_off(problem, raised[0], free)
    return period_oracle(changed)(float("inf")) is not None


def _split_off(problem: ChainProblem, device_class: int, variants: list[Variant]) -> ChainProblem:
    """The problem with one device of a class made a class of its own."""
    num = problem.num_classes
    counts = [count - (k == device_class) for k, count in enumerate(problem.counts)]
    split = problem.of_classes([*range(num), device_class], [*counts, 1])
    own = tuple(dataclasses.replace(v, device_class=num) for v in variants)
    kept = tuple(v for v in split.variants if v.device_class < num)
    return dataclasses.replace(split, variants=(*kept, *own))


def _amount(num_bytes: int, *, down: bool = False) -> str:
    """Bytes for people; above 10 MiB in whole MiB.

    What is needed is rounded up, so that what is named is enough; what there is `down`.
    """
    if num_bytes < 10 << 20:
        return f"{num_bytes:,} bytes"
    return f"{num_bytes >> 20 if down else -(-num_bytes >> 20):,} MiB"
