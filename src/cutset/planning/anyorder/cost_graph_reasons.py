"""Why a cost graph has no plan, or none within the limits: said only as far as it is known."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from cutset.cluster.devices import Device
from cutset.errors import InfeasiblePlan, PlanError
from cutset.planning.anyorder.downsets import DagProblem, contract
from cutset.planning.anyorder.goals import Goals, OutOfReach
from cutset.planning.request import PlanRequest

if TYPE_CHECKING:
    from cutset.planning.anyorder.cost_graph import CostGraph

_SHOWN = 3


def limit_not_kept(reason: OutOfReach, request: PlanRequest) -> PlanError:
    """The error for limits that no plan keeps, or none that was found in time."""
    among = _among(reason.family)
    both = reason.limit == "both"
    if reason.limit == "period":
        does = f"gives {request.min_rows_per_s:g} rows/s"
        best, bound = f"{_rows_per_s(reason.best_s):g} rows/s", _rows_per_s(reason.bound_s)
        least, bounded = "the most is", f"none can give more than {bound:g} rows/s"
        is_proven = reason.bound_s > (request.max_period_s(1) or math.inf) * (1 + 1e-9)
    else:
        also = f" and gives {request.min_rows_per_s:g} rows/s" if both else ""
        does = f"takes at most {request.max_latency_s:g} s for one micro-batch{also}"
        best, least = f"{reason.best_s:g} s", "the least is"
        bounded = f"none can take less than {reason.bound_s:g} s"
        is_proven = reason.bound_s > (request.max_latency_s or math.inf) * (1 + 1e-9)
    if reason.bound_s >= reason.best_s * (1 - 1e-9):
        return PlanError(f"no plan {does}: {least} {best}{among}")
    found = f"the best found is {best}" + (f", and {bounded}{among}" if reason.bound_s > 0 else "")
    over = f"the time limit of {request.time_limit_s:g} s was reached"
    if is_proven:
        return PlanError(f"no plan {does}: {found}; {over}")
    return PlanError(f"no plan was found that {does}: {found}. One may exist: {over}")


def _rows_per_s(period_s: float) -> float:
    return 1 / period_s if period_s else math.inf


def _among(family: str) -> str:
    """What a claim holds for, where not for all cuts."""
    return "" if family == "downset" else " among the cuts that were searched, which are not all"


def no_plan(
    costs: CostGraph, dag: DagProblem, kinds: list[list[Device]], request: PlanRequest, family: str
) -> PlanError:
    """The error for a cost graph that has no plan at all among the cuts of `family`."""
    nowhere = _nowhere(costs, dag)
    if nowhere:
        return PlanError(nowhere)
    unlimited = dataclasses.replace(dag, limit_bytes=np.full(len(kinds), math.inf))
    if _is_possible(unlimited):
        return _lacks_memory(dag, kinds, _among(family))
    devices, parts = sum(dag.counts), len(contract(dag)[0])
    what = (
        f"no plan has {request.num_stages or 'any number of'} stages over {len(costs.nodes)} nodes "
        f"and {devices} devices{_among(family)}"
    )
    stages = request.num_stages or 1
    if stages > devices:
        return PlanError(f"{what}: each stage needs a device of its own")
    if stages > parts:
        return PlanError(
            f"{what}: nodes that share a group, and what lies between them, leave {parts} parts"
        )
    for name, change in (
        ("--max-tensors", {"max_tensors": None}),
        ("--fixed-order", {"fixed_order": False}),
    ):
        if getattr(dag, next(iter(change))) and _is_possible(
            dataclasses.replace(unlimited, **change)
        ):
            return PlanError(f"{what} with {name}; without it there is one, memory aside")
    if request.num_stages and _is_possible(dataclasses.replace(unlimited, num_stages=None)):
        return PlanError(f"{what}; with another number of stages there is one, memory aside")
    return PlanError(f"{what} where each node runs on a device that it has seconds for")


def _nowhere(costs: CostGraph, dag: DagProblem) -> str:
    """Which nodes, or nodes that must share a stage, no device of the cluster can run."""
    for column, node in enumerate(costs.nodes):
        if np.isinf(dag.seconds[:, column]).all():
            able = [name for name, s in node.seconds.items() if s is not None and math.isfinite(s)]
            return (
                f"node {node.name!r} runs on {_some(able)} only, which the cluster does not have; "
                "add a device of that name, or seconds for one that there is"
            )
    for part in contract(dag)[0]:
        if np.isinf(dag.seconds[:, part]).any(axis=1).all():
            names = [costs.nodes[k].name for k in part]
            return f"nodes {_some(names)} must share a stage, and no device can run them all"
    return ""


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _is_possible(dag: DagProblem) -> bool:
    return Goals(dag).least_memory(()) is not None


def _lacks_memory(dag: DagProblem, kinds: list[list[Device]], among: str) -> InfeasiblePlan:
    """The device whose memory has to grow least; where one is not enough, what all would need."""
    best: tuple[int, int, Device] | None = None  # missing, needed
    for row, kind in enumerate(kinds):
        have = kind[0].memory_bytes
        if have is None:
            continue
        if dag.counts[row] == 1:
            needed = Goals(dag).least_memory((row,))
        else:
            needed = Goals(_with_one_apart(dag, row)).least_memory((len(kinds),))
        if needed is not None and (best is None or needed - have < best[0]):
            best = needed - have, needed, kind[0]
    if best is not None:
        missing, needed, device = best
        have = device.memory_bytes or 0
        return InfeasiblePlan(
            f"no placement fits the devices' memory{among}: device {device.name!r} has {have:,} "
            f"bytes and lacks {missing:,}; with {needed:,} bytes there a plan exists. Give it "
            "more, add a device, or divide the nodes",
            needed_bytes=needed,
            available_bytes=have,
            device=device.name,
        )
    limited = tuple(row for row, kind in enumerate(kinds) if kind[0].memory_bytes is not None)
    needed = Goals(dag).least_memory(limited)
    assert needed is not None, "without limits of memory there is a plan"
    smallest = min((kinds[row][0] for row in limited), key=lambda d: d.memory_bytes or 0)
    return InfeasiblePlan(
        f"no placement fits the devices' memory{among}, and more on one device alone would not do: "
        f"with {needed:,} bytes on every device a plan exists; {smallest.name!r} has "
        f"{smallest.memory_bytes:,}",
        needed_bytes=needed,
        available_bytes=smallest.memory_bytes or 0,
        device=smallest.name,
    )


def _with_one_apart(dag: DagProblem, row: int) -> DagProblem:
    """The problem with one device of a class of several made a class of its own, the last one."""
    counts = [count - (k == row) for k, count in enumerate(dag.counts)]
    return dataclasses.replace(
        dag,
        seconds=np.vstack([dag.seconds, dag.seconds[row]]),
        counts=(*counts, 1),
        limit_bytes=np.append(dag.limit_bytes, dag.limit_bytes[row]),
        pays=(*dag.pays, dag.pays[row]),
        overhead_s=(*dag.overhead_s, dag.overhead_s[row]) if dag.overhead_s else (),
    )
