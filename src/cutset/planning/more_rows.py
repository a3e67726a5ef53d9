"""Whether more rows in a micro-batch would do more: where something costs the same for any number.

The overhead of a device and the latency of a link are paid for each micro-batch. With more rows in
it they are shared by more of them, and a row waits longer for its answer.
"""

from __future__ import annotations

from cutset.costs.cost_model import CostModel, with_more_rows
from cutset.errors import PlanError
from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph
from cutset.planning.deadline import within
from cutset.planning.make import make_plan
from cutset.planning.more_tensors import is_hard
from cutset.planning.plan import Plan
from cutset.planning.request import PlanRequest
from cutset.planning.watch import unheard

TRIED_FACTORS = (4, 16)
"""How many times as many rows are tried."""

WORTH = 1.05
"""Least ratio of new to old rows per second at which more rows are worth naming."""


def more_rows_advice(
    graph: Graph,
    cuts: CutPoints,
    costs: CostModel,
    request: PlanRequest,
    *,
    plan: Plan,
) -> str:
    """What more rows a micro-batch would give, in a sentence; ``""`` where it is nothing much.

    It plans anew for each of `TRIED_FACTORS`, with seconds that grow as the rows do.

    Args:
        graph: the captured model.
        cuts: its positions, judged.
        costs: what its pieces cost with the present number of rows.
        request: what is wanted; its time limit is that of all tries together.
        plan: the best one for the throughput as things are.
    """
    cluster = request.devices_and_links
    latencies_s = [cluster.link.latency_s, *(medium.latency_s for medium in cluster.media)]
    latencies_s += [override.link.latency_s for override in cluster.overrides]
    is_shared = (
        cluster.caller_overhead_s
        or any(device.overhead_s for device in cluster.devices)
        or any(latencies_s)
    )
    if not is_shared or plan.objective != "throughput" or is_hard(cluster):
        return ""
    deadline = within(request.time_limit_s)
    found: list[tuple[int, float]] = []
    for factor in TRIED_FACTORS:
        if deadline.is_past:
            break
        try:
            with unheard():
                other = make_plan(
                    graph,
                    cuts,
                    with_more_rows(costs, factor),
                    request.within(deadline.left_s),
                    with_alternatives=False,
                )
        except PlanError:
            continue  # a limit on latency or the memory allows no more rows
        found.append((other.micro_batch, other.rows_per_s))
    if max((pace for _, pace in found), default=0.0) < WORTH * plan.rows_per_s:
        return ""
    gains = ", ".join(f"{pace:.4g} rows/s with --batch-size {rows}" for rows, pace in found)
    return (
        f"more rows a micro-batch would do more, where each takes as long: {gains}, instead of"
        f" {plan.rows_per_s:.4g}; one row alone then waits longer"
    )
