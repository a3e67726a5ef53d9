from __future__ import annotations

import msgspec
import pytest

from cutset.cluster.devices import Cluster, Device, Link
from cutset.costs.cost_model import costs_from_flops
from cutset.planning import PlanRequest, make_plan, more_rows_advice, try_more_tensors
from planner_graphs import chain

SLOW_TO_TURN = Cluster(devices=(Device(name="a", overhead_s=2.0), Device(name="b", overhead_s=2.0)))


def advice(cluster: Cluster, **limits: float) -> str:
    graph, cuts = chain([1, 1])
    costs = costs_from_flops(graph, cuts, flops_per_s=10.0)
    plan = make_plan(graph, cuts, costs, PlanRequest(cluster=cluster, **limits))
    return more_rows_advice(graph, cuts, costs, PlanRequest(cluster=cluster, **limits), plan=plan)


def test_more_rows_share_an_overhead() -> None:
    # A row computes for 0.1 s a stage, a micro-batch costs 2 s besides:
    # 1 / 2.1, 4 / 2.4 and 16 / 3.6 rows a second.
    assert advice(SLOW_TO_TURN) == (
        "more rows a micro-batch would do more, where each takes as long: 1.667 rows/s with"
        " --batch-size 4, 4.444 rows/s with --batch-size 16, instead of 0.4762; one row alone then"
        " waits longer"
    )


def test_a_limit_on_latency_holds_for_more_rows_too() -> None:
    found = advice(SLOW_TO_TURN, max_latency_s=1.0)
    assert "--batch-size 4," in found
    assert "--batch-size 16" not in found


def test_nothing_is_said_where_rows_share_nothing() -> None:
    free = Cluster(devices=(Device(name="a"), Device(name="b")), link=Link(bandwidth_bytes_per_s=1))
    assert advice(free) == ""
    small = tuple(msgspec.structs.replace(d, overhead_s=1e-4) for d in SLOW_TO_TURN.devices)
    assert advice(Cluster(devices=small)) == ""


@pytest.mark.parametrize("num", [12, 13, 40])
def test_more_tensors_are_tried_for_any_number_of_equal_devices(num: int) -> None:
    graph, cuts = chain([1] * 40)
    costs = costs_from_flops(graph, cuts)
    cluster = Cluster(devices=tuple(Device(name=f"d{k}") for k in range(num)))
    plan = make_plan(graph, cuts, costs, PlanRequest(cluster=cluster))
    found = try_more_tensors(
        graph, cuts, PlanRequest(cluster=cluster), lambda wider: costs, plan=plan
    )
    assert found is None
    other = msgspec.structs.replace(cluster.devices[0], speed=0.5)
    mixed = Cluster(devices=(*cluster.devices[1:], other))
    assert (
        try_more_tensors(graph, cuts, PlanRequest(cluster=mixed), lambda wider: costs, plan=plan)
        is None
    )
