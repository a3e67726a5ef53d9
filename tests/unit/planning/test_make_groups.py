"""Plans in which a stage may have several devices."""

import pytest

from cutset.cluster.devices import Cluster, Device, Link
from cutset.cluster.wires import Medium
from cutset.costs.cost_model import costs_from_flops
from cutset.errors import PlanError
from cutset.planning import (
    PlanRequest,
    make_plan,
    pareto_plans,
    plan_cost_graph,
    plan_from_json,
    plan_to_json,
    simulate_plan,
)
from cutset.report.text import PlainConsole, print_plan
from planner_graphs import chain

FAST = Link(bandwidth_bytes_per_s=1e9)


def planned(flops, cluster, *, replicas=9, weights=None, **wanted):
    graph, cuts = chain(flops, weights=weights)
    costs = costs_from_flops(graph, cuts, flops_per_s=1e3)
    plan = make_plan(graph, cuts, costs, PlanRequest(cluster=cluster, replicas=replicas, **wanted))
    assert plan_from_json(plan_to_json(plan)) == plan
    return plan


def devices(*speeds, **given):
    return tuple(Device(name="abcdefgh"[k], speed=s, **given) for k, s in enumerate(speeds))


def groups(plan):
    return [[(each.device, round(each.share, 4)) for each in stage.group] for stage in plan.stages]


def test_pieces_of_600_200_200_ms_on_three_equal_boards_are_three_copies_at_333_ms():
    plan = planned([600, 200, 200], Cluster(devices=devices(1, 1, 1), link=FAST))
    assert groups(plan) == [[("a", 0.3333), ("b", 0.3333), ("c", 0.3333)]]
    assert plan.period_s == pytest.approx(1 / 3)
    assert plan.stages[0].busy_s == pytest.approx(1 / 3)
    assert plan.latency_s == pytest.approx(1.0)
    assert plan.is_proven
    assert plan.format == "cutset-plan/2"
    assert plan.claim.endswith("with up to 9 devices a stage and no shared wire")


def test_without_replicas_the_copies_stand_beside_the_plan():
    cluster = Cluster(devices=devices(1, 1, 1), link=FAST)
    plan = planned([600, 200, 200], cluster, replicas=1)
    assert plan.format == "cutset-plan/1"
    assert plan.period_s == pytest.approx(0.6)
    assert plan.copies.devices == ("a", "b", "c")
    assert plan.copies.shares == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert plan.copies.period_s == pytest.approx(1 / 3)
    assert plan.copies.latency_s == pytest.approx(1.0)
    console = PlainConsole(width=120, record=True)
    print_plan(console, plan)
    text = console.export_text()
    assert (
        "3 copies on a 33.3%, b 33.3%, c 33.3%: 333 ms in steady state, 1 s for one alone" in text
    )


def test_unequal_devices_have_shares_by_their_speeds():
    plan = planned([900], Cluster(devices=devices(1, 0.5), link=FAST))
    assert groups(plan) == [[("a", 0.6667), ("b", 0.3333)]]
    assert plan.period_s == pytest.approx(0.6)
    assert plan.latency_s == pytest.approx(1.8)
    assert [note for note in plan.notes if "on average over routes it is 1.2 s" in note]


def test_where_the_whole_does_not_fit_the_slow_stage_has_two_devices():
    cluster = Cluster(devices=devices(1, 1, 1, memory_bytes=2700), link=FAST)
    plan = planned([800, 200, 200], cluster, weights=[2000, 600, 600])
    assert groups(plan) == [[("a", 0.5), ("b", 0.5)], [("c", 1.0)]]
    assert [stage.last for stage in plan.stages] == ["op0", "output"]
    assert plan.period_s == pytest.approx(0.4)
    assert plan.copies.reason == "the whole model fits on none of the devices"
    assert [each.memory_limit_bytes for each in plan.stages[0].group] == [2700, 2700]
    three = next(each for each in plan.alternatives if each.num_stages == 3)
    assert three.period_s == pytest.approx(0.8)


def test_a_group_is_no_larger_than_was_asked_for():
    cluster = Cluster(devices=devices(1, 1, 1), link=FAST)
    plan = planned([600, 200, 200], cluster, replicas=2)
    assert groups(plan) == [[("a", 0.5), ("b", 0.5)], [("c", 1.0)]]
    assert plan.period_s == pytest.approx(0.4)


def test_links_carry_shares():
    # 40 bytes at 50 bytes a second are 0.8 s for one device, 0.4 s each for two.
    slow = Cluster(devices=devices(1, 1, 1, memory_bytes=2700), link=Link(bandwidth_bytes_per_s=50))
    plan = planned([800, 200, 200], slow, weights=[2000, 600, 600])
    assert groups(plan) == [[("a", 0.5), ("b", 0.5)], [("c", 1.0)]]
    assert plan.period_s == pytest.approx(0.4)
    assert [(m.source, m.target, m.uses[0].busy_s) for m in plan.messages] == [
        ("a", "c", pytest.approx(0.4)),
        ("b", "c", pytest.approx(0.4)),
    ]


def test_latency_wants_no_groups_and_limits_are_kept():
    cluster = Cluster(devices=devices(1, 0.5), link=FAST)
    plan = planned([900], cluster, objective="latency")
    assert groups(plan) == [[("a", 1.0)]]
    plan = planned([900], cluster, max_latency_s=1.0)
    assert groups(plan) == [[("a", 1.0)]]
    assert plan.is_proven
    assert planned([900], cluster, min_rows_per_s=1.6).period_s == pytest.approx(0.6)
    with pytest.raises(PlanError, match=r"no plan gives 1.7 rows/s: the most is 1.66667 rows/s"):
        planned([900], cluster, min_rows_per_s=1.7)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"fixed_order": True}, "not planned with a fixed order of devices"),
        ({"objective": "latency", "min_rows_per_s": 1.0}, "the least latency under a throughput"),
        (
            {
                "cluster": Cluster(
                    devices=devices(1, 1),
                    media=(Medium(name="m", devices=("a", "b"), bandwidth_bytes_per_s=1.0),),
                )
            },
            "not planned with a medium that devices share",
        ),
    ],
)
def test_what_groups_are_not_searched_with_is_refused(wanted, words):
    with pytest.raises(PlanError, match=words):
        PlanRequest(replicas=2, **wanted)
    assert PlanRequest(replicas=1, **wanted).replicas == 1


@pytest.mark.parametrize("count", [0, -1, 1025])
def test_a_number_of_replicas_out_of_range_is_refused(count):
    with pytest.raises(ValueError, match=f"replicas must be 1 to 1024, got {count}"):
        PlanRequest(num_stages=2, replicas=count)


def test_fronts_and_cost_graphs_have_one_device_a_stage():
    graph, cuts = chain([1, 2])
    request = PlanRequest(num_stages=2, replicas=2)
    with pytest.raises(PlanError, match="one device a stage only"):
        pareto_plans(graph, cuts, costs_from_flops(graph, cuts), request)
    with pytest.raises(PlanError, match="one device each: leave replicas out"):
        plan_cost_graph("none.json", request)


@pytest.mark.parametrize(
    ("flops", "speeds", "link_bytes_per_s"),
    [
        ([600, 200, 200], (1, 1, 1), 1e9),
        ([900], (1, 0.5), 1e9),
        ([800, 200, 200], (1, 1, 1, 0.5), 300.0),
        ([500, 700, 100], (1, 0.6, 0.3), 100.0),
    ],
)
def test_the_simulation_by_routes_agrees_with_the_formula(flops, speeds, link_bytes_per_s):
    cluster = Cluster(
        devices=devices(*speeds, memory_bytes=2700 if len(flops) > 1 else None),
        link=Link(bandwidth_bytes_per_s=link_bytes_per_s),
    )
    plan = planned(flops, cluster, weights=[2000, 600, 600][: len(flops)])
    assert plan.has_groups
    timeline = simulate_plan(plan, num_microbatches=800)
    assert timeline.steady_period_s == pytest.approx(plan.period_s, rel=0.01)
    first = min(slot.start_s for slot in timeline.slots)
    assert timeline.first_latency_s - first <= plan.latency_s * (1 + 1e-9)


def test_many_distinct_devices_have_a_plan_and_an_honest_gap_in_time():
    cluster = Cluster(devices=tuple(Device(name=f"d{k}", speed=1 / (1 + k / 7)) for k in range(30)))
    plan = planned([900, 500, 700, 100], cluster, replicas=40, time_limit_s=3.0)
    # All that the devices can do together, which whole copies do.
    rate = sum(1 / (1 + k / 7) for k in range(30))
    assert plan.period_s == pytest.approx(2.2 / rate)
    assert plan.is_proven
    small = planned([900, 500, 700, 100], cluster, replicas=3, time_limit_s=3.0)
    assert small.gap is not None
    assert small.bound_s <= small.period_s
    assert max(len(stage.group) for stage in small.stages) <= 3


def test_memory_that_allows_no_plan_is_told_as_without_groups():
    cluster = Cluster(devices=devices(1, 1, memory_bytes=100), link=FAST)
    with pytest.raises(PlanError, match="no placement fits"):
        planned([800, 200], cluster)
