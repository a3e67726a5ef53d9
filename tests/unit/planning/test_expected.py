from __future__ import annotations

import msgspec
import pytest

from cutset.cluster.devices import Cluster, Device, Link, LinkOverride
from cutset.costs.cost_model import costs_from_flops
from cutset.planning import Plan, PlanRequest, expect_on_cluster, make_plan, simulate_plan
from planner_graphs import chain

INPUT_BYTES = 12
SLOW = Link(send_s_per_byte=0.1, receive_s_per_byte=0.2)
A_AND_B = Cluster(devices=(Device(name="a"), Device(name="b")), link=SLOW)
WITH_CALLER = Cluster(
    devices=(Device(name="a", overhead_s=0.5), Device(name="b")),
    link=SLOW,
    caller="a",
    caller_overhead_s=1.0,
)


def plan_on(where: Cluster, *, serial: bool = False) -> Plan:
    """Two stages of 4 and 6 seconds on a and b; 40 bytes cross the cut and 40 go out."""
    graph, cuts = chain([4, 6], widths=[10, 10])
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0)
    return make_plan(
        graph,
        cuts,
        costs,
        PlanRequest(cluster=where, num_stages=2, fixed_order=True, serial=serial),
    )


def test_what_bytes_take_is_part_of_the_plan() -> None:
    plan = plan_on(A_AND_B)
    assert [stage.overhead_s for stage in plan.stages] == pytest.approx([4.0, 8.0])
    assert plan.period_s == pytest.approx(6.0 + 8.0)
    assert plan.latency_s == pytest.approx(10.0)
    assert simulate_plan(plan, num_microbatches=20).steady_period_s == pytest.approx(14.0)


def test_a_caller_pays_where_it_is() -> None:
    # The input stays on a; the answer comes back over the link.
    # a: 4 s, overheads, sends 40 bytes, and its caller receives 40; b: receives and sends 40.
    plan = plan_on(WITH_CALLER)
    assert [stage.overhead_s for stage in plan.stages] == pytest.approx([1.5 + 4 + 8, 8 + 4])
    assert plan.period_s == pytest.approx(max(4 + 1.5 + 4 + 8, 6 + 8 + 4))


def test_the_dearest_of_the_callers_links_counts_for_its_own_part() -> None:
    dear = msgspec.structs.replace(SLOW, send_s_per_byte=0.5)
    where = Cluster(
        devices=(Device(name="b"), Device(name="a"), Device(name="c", memory_bytes=1)),
        link=SLOW,
        overrides=(LinkOverride(source="a", target="c", link=dear),),
        caller="a",
    )
    plan = plan_on(where)
    assert [stage.device for stage in plan.stages] == ["b", "a"]
    # a receives 40 bytes over the cut, and its caller sends 40 of input.
    assert plan.stages[1].overhead_s == pytest.approx(40 * 0.2 + 40 * 0.5)


def test_a_serial_stage_waits_for_its_transfers_too() -> None:
    link = msgspec.structs.replace(SLOW, latency_s=1.5)
    where = msgspec.structs.replace(
        A_AND_B, overrides=(LinkOverride(source="a", target="b", link=link),)
    )
    plan = plan_on(where, serial=True)
    assert plan.period_s == pytest.approx(1.5 + 6 + 8)
    assert simulate_plan(plan, num_microbatches=20).steady_period_s == pytest.approx(15.5)


def test_stages_measured_as_wholes_take_the_place_of_sums() -> None:
    where = A_AND_B
    plan = plan_on(where)
    timed = expect_on_cluster(plan, where, INPUT_BYTES, [9.0, 5.0])
    assert timed.expected is not None
    assert timed.expected.compute_s == (9.0, 5.0)
    # a sends 40 bytes, b receives 40: 4 s and 8 s.
    assert timed.expected_period_s == pytest.approx(9.0 + 4.0)
    assert timed.expected_latency_s == pytest.approx(plan.latency_s + 14.0 - 10.0)
    assert timed.period_s == plan.period_s
    rested = expect_on_cluster(plan, where, INPUT_BYTES, [9.0, 5.0], [8.0, 4.0])
    assert rested.expected_period_s == timed.expected_period_s
    assert rested.expected_latency_s == pytest.approx(plan.latency_s + 12.0 - 10.0)


def test_measured_stages_count_where_bytes_cost_nothing() -> None:
    where = msgspec.structs.replace(A_AND_B, link=Link())
    timed = expect_on_cluster(plan_on(where), where, INPUT_BYTES, [4.5, 7.0])
    assert timed.expected_period_s == 7.0
