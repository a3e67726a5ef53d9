import msgspec
import pytest

from cutset.cluster.devices import Cluster, Device, Link, LinkOverride, equal_cluster
from cutset.costs.cost_model import PieceSeconds, costs_from_flops
from cutset.errors import InfeasiblePlan, PlanError
from cutset.planning import PlanRequest, gain_inside_units, make_plan, pareto_plans
from planner_graphs import chain, refuse


def plan(flops, cluster, *, costs=None, chain_options=None, with_alternatives=True, **options):
    graph, cuts = chain(flops, **(chain_options or {}))
    costs = costs or costs_from_flops(graph, cuts, flops_per_s=1.0)
    request = PlanRequest(cluster=cluster, **options)
    return make_plan(graph, cuts, costs, request, with_alternatives=with_alternatives)


def where(made):
    return [(stage.device, stage.start, stage.stop) for stage in made.stages]


def test_two_equal_stages_split_where_the_slower_one_is_fastest():
    made = plan([4, 1, 1, 2], equal_cluster(2), num_stages=2)
    assert where(made) == [("device-0", 0, 1), ("device-1", 1, 4)]
    assert made.period_s == 4.0
    assert made.latency_s == 8.0
    assert (made.bound_s, made.gap, made.bound_by) == (4.0, 0.0, "volume")
    assert [stage.compute_s for stage in made.stages] == [4.0, 4.0]
    assert made.stages[0].units == ("block0",)
    assert made.stages[0].first == "block0"
    assert made.stages[1].first == "op1"
    assert [stage.last for stage in made.stages] == ["op0", "output"]
    assert made.is_proven


def test_a_slow_link_makes_one_device_the_answer_and_says_so():
    cluster = Cluster(
        devices=(Device(name="a"), Device(name="b")), link=Link(bandwidth_bytes_per_s=1.0)
    )
    made = plan([4, 4], cluster)
    assert where(made) == [("a", 0, 2)]
    assert made.unused_devices == ("b",)
    two = made.alternatives[-1]
    assert (two.num_stages, two.period_s, two.latency_s) == (2, 40.0, 48.0)


def test_links_count_in_the_direction_of_the_data():
    slow = Link(bandwidth_bytes_per_s=1.0)
    cluster = Cluster(
        devices=(Device(name="a"), Device(name="b")),
        link=Link(bandwidth_bytes_per_s=40.0),
        overrides=(LinkOverride(source="a", target="b", link=slow),),
    )
    made = plan([4, 4], cluster)
    assert where(made) == [("b", 0, 1), ("a", 1, 2)]
    assert made.period_s == 4.0
    assert made.stages[0].send_s == 1.0
    assert made.stages[1].receive_s == 1.0
    assert made.latency_s == 9.0


def test_the_caller_costs_transfers_at_both_ends():
    cluster = Cluster(
        devices=(Device(name="a"), Device(name="b", speed=10.0)),
        link=Link(bandwidth_bytes_per_s=1.0),
        caller="a",
    )
    made = plan([4, 4], cluster)
    assert where(made) == [("a", 0, 2)]  # b would compute ten times as fast, 40 s away
    alone = plan([4, 4], msgspec.structs.replace(cluster, caller=None))
    assert where(alone) == [("b", 0, 2)]


def test_serial_adds_up_what_overlap_hides():
    link = Link(bandwidth_bytes_per_s=20.0)
    cluster = Cluster(devices=(Device(name="a"), Device(name="b")), link=link)
    assert plan([4, 4], cluster).period_s == 4.0
    serial = plan([4, 4], cluster, serial=True)
    assert serial.period_s == 6.0
    assert serial.serial


def test_faster_devices_get_more_and_order_is_chosen():
    cluster = Cluster(devices=(Device(name="slow"), Device(name="fast", speed=3.0)))
    free = plan([3, 3, 3, 3], cluster)
    assert {stage.device: stage.compute_s for stage in free.stages} == {"slow": 3.0, "fast": 3.0}
    assert where(plan([3, 3, 3, 3], cluster, fixed_order=True)) == [("slow", 0, 1), ("fast", 1, 4)]
    swapped = msgspec.structs.replace(cluster, devices=cluster.devices[::-1])
    assert where(plan([3, 3, 3, 3], swapped, fixed_order=True)) == [
        ("fast", 0, 3),
        ("slow", 3, 4),
    ]


def test_ties_send_fewer_bytes_then_prefer_blocks():
    made = plan([4, 0, 0, 4], equal_cluster(2), chain_options={"widths": [9, 9, 2, 9]})
    assert made.stages[0].last == "op2"
    kinds = {"kinds": ["activation", "block", "pool"]}
    made = plan([4, 0, 0, 4], equal_cluster(2), chain_options=kinds)
    assert made.stages[0].last == "op1"
    assert made.stages[0].cut_kind == "block"


def test_a_head_is_divided_only_where_that_gains_more_than_five_percent():
    made = plan([50, 46, 4], equal_cluster(2), chain_options={"kinds": ["block", "head"]})
    assert made.stages[0].last == "op0"
    made = plan([48, 2, 50], equal_cluster(2), chain_options={"kinds": ["block", "head"]})
    assert made.stages[0].last == "op0"
    assert "would gain 3.8%" in made.notes[0]
    made = plan([10, 40, 50], equal_cluster(2), chain_options={"kinds": ["block", "head"]})
    assert made.stages[0].last == "op1"
    assert "without one the plan is 80.0% worse" in made.notes[0]


def test_a_head_is_divided_where_nothing_else_fits():
    made = plan(
        [50, 46, 4],
        Cluster(devices=tuple(Device(name=name, memory_bytes=2500) for name in "ab")),
        chain_options={"kinds": ["block", "head"], "weights": [1000, 1000, 1500]},
    )
    assert made.stages[0].last == "op1"
    assert "nothing keeps the limits" in made.notes[0]


def test_three_stages_of_two_blocks_need_the_head():
    made = plan(
        [4, 4, 4], equal_cluster(3), num_stages=3, chain_options={"kinds": ["block", "head"]}
    )
    assert len(made.stages) == 3


def test_named_cuts_are_kept():
    made = plan([1, 1, 1, 9], equal_cluster(3), cut_names=("op1", "op0"))
    assert [stage.last for stage in made.stages] == ["op0", "op1", "output"]
    assert made.family == "given"
    with pytest.raises(PlanError, match="2 cuts make 3 stages, not the 2 that"):
        plan([1, 1, 1, 9], equal_cluster(3), cut_names=("op1", "op0"), num_stages=2)


def test_a_refused_cut_quotes_its_reason_and_an_unknown_one_near_names():
    graph, cuts = chain([1, 1, 1])
    cuts = refuse(cuts, 1, "inside block0 (Block): 2 tensors live")
    costs = costs_from_flops(graph, cuts)
    with pytest.raises(PlanError, match=r"after 'op0': inside block0 \(Block\): 2 tensors live"):
        make_plan(graph, cuts, costs, PlanRequest(cluster=equal_cluster(2), cut_names=("op0",)))
    with pytest.raises(PlanError, match="no cut point after 'opp1'; did you mean 'op1'"):
        make_plan(graph, cuts, costs, PlanRequest(cluster=equal_cluster(2), cut_names=("opp1",)))


def test_too_many_stages_say_the_most_that_is_possible():
    with pytest.raises(PlanError, match="1 cut points, so at most 2 stages"):
        plan([1, 1], equal_cluster(3), num_stages=3)
    with pytest.raises(PlanError, match="ask for at most 2 stages"):
        plan([1, 1, 1], equal_cluster(2), num_stages=3)
    with pytest.raises(ValueError, match="num_stages must be at least 1, got 0"):
        plan([1, 1, 1], equal_cluster(2), num_stages=0)


def test_memory_that_nothing_fits_names_the_device_and_the_least_that_would_do():
    # Beside its weights a stage needs 80 bytes while it computes, and 40 for each input and output
    # that waits: 200 in a plan of one stage, three in flight, and 360 in one of two, with five.
    weights = {"weights": [1000] * 3}
    cluster = Cluster(
        devices=(Device(name="a", memory_bytes=2500), Device(name="b", memory_bytes=1400))
    )
    with pytest.raises(InfeasiblePlan) as caught:
        plan([1, 1, 1], cluster, chain_options=weights)
    error = caught.value
    # b needs 1440 for one piece beside a's two (2440); a alone would need 3280, 780 more.
    assert (error.device, error.needed_bytes, error.available_bytes) == ("b", 1440, 1400)
    assert "with 2n + 1 micro-batches in flight in n stages: device 'b'" in str(error)
    assert "lacks 40" in str(error)
    enough = Cluster(
        devices=(Device(name="a", memory_bytes=2500), Device(name="b", memory_bytes=1440))
    )
    stages = plan([1, 1, 1], enough, chain_options=weights).stages
    assert {stage.device: stage.memory_bytes for stage in stages} == {"a": 2440, "b": 1440}


def test_memory_is_exact_where_the_balanced_cut_does_not_fit():
    # Balanced would be 2 + 2 pieces; a holds only one.
    cluster = Cluster(
        devices=(Device(name="a", memory_bytes=1440), Device(name="b", memory_bytes=9000))
    )
    made = plan([5, 5, 5, 5], cluster, chain_options={"weights": [1000] * 4})
    assert made.period_s == 15.0
    assert made.stages[0].memory_limit_bytes in (1440, 9000)


def test_exactly_n_equal_devices_without_memory_raise_all_of_them():
    cluster = Cluster(devices=tuple(Device(name=n, memory_bytes=100) for n in "ab"))
    with pytest.raises(InfeasiblePlan) as caught:
        plan([1, 1], cluster, num_stages=2)
    assert caught.value.needed_bytes == 540
    assert "every device needs 540 bytes" in str(caught.value)


def test_limits_are_kept_or_said_to_be_impossible():
    cluster = Cluster(
        devices=(Device(name="a"), Device(name="b")), link=Link(bandwidth_bytes_per_s=40.0)
    )
    assert plan([4, 4], cluster).latency_s == 9.0
    limited = plan([4, 4], cluster, max_latency_s=8.5)
    assert (limited.latency_s, limited.period_s) == (8.0, 8.0)
    with pytest.raises(PlanError, match="at most 7 s for one micro-batch: the least is 8 s"):
        plan([4, 4], cluster, max_latency_s=7.0)
    fast = plan([4, 4], cluster, objective="latency", min_rows_per_s=0.2)
    assert (fast.latency_s, fast.period_s) == (9.0, 4.0)
    with pytest.raises(PlanError, match=r"no plan gives 1 rows/s: the most is 0\.25 rows/s"):
        plan([4, 4], cluster, min_rows_per_s=1.0)


def test_the_front_holds_every_trade():
    graph, cuts = chain([4, 4])
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0)
    cluster = Cluster(
        devices=(Device(name="a"), Device(name="b")), link=Link(bandwidth_bytes_per_s=40.0)
    )
    front = pareto_plans(graph, cuts, costs, PlanRequest(cluster=cluster))
    assert [(p.period_s, p.latency_s) for p in front] == [(4.0, 9.0), (8.0, 8.0)]
    assert [len(p.stages) for p in front] == [2, 1]
    short = pareto_plans(graph, cuts, costs, PlanRequest(cluster=cluster, max_latency_s=8.5))
    assert [(p.period_s, p.latency_s) for p in short] == [(8.0, 8.0)]


def test_a_stage_takes_the_backend_that_is_fastest_for_it():
    graph, cuts = chain([1, 1])
    costs = msgspec.structs.replace(
        costs_from_flops(graph, cuts),
        seconds=(
            PieceSeconds(device="", backend="ort", seconds=(1.0, None)),
            PieceSeconds(device="", backend="torch", seconds=(2.0, 3.0)),
        ),
    )
    made = make_plan(graph, cuts, costs, PlanRequest(cluster=equal_cluster(2), num_stages=2))
    assert [(s.backend, s.compute_s) for s in made.stages] == [("ort", 1.0), ("torch", 3.0)]
    whole = make_plan(graph, cuts, costs, PlanRequest(cluster=equal_cluster(1)))
    assert [(s.backend, s.compute_s) for s in whole.stages] == [("torch", 5.0)]


def test_what_respecting_units_costs():
    graph, cuts = chain([3, 3, 2])
    coarse = refuse(cuts, 1, "inside a unit")
    plans = [
        make_plan(
            graph,
            coarse,
            costs_from_flops(graph, coarse, flops_per_s=1.0, granularity=granularity),
            PlanRequest(cluster=equal_cluster(2), num_stages=2),
        )
        for granularity in ("unit", "op")
    ]
    assert [p.period_s for p in plans] == [6.0, 5.0]
    assert gain_inside_units(*plans) == pytest.approx(1 / 6)


def test_more_unequal_devices_than_are_searched_get_a_gap_and_a_bound():
    cluster = Cluster(devices=tuple(Device(name=f"d{k}", speed=1 + k / 7) for k in range(18)))
    made = plan([3 + k % 5 for k in range(40)], cluster, with_alternatives=False)
    assert made.bound_s <= made.period_s
    assert made.gap == pytest.approx(made.period_s / made.bound_s - 1, abs=1e-9)
    assert made.bound_by != "exhaustion"
    graph, cuts = chain([3] * 40)
    costs = costs_from_flops(graph, cuts)
    with pytest.raises(PlanError, match="fix the order of devices"):
        pareto_plans(graph, cuts, costs, PlanRequest(cluster=cluster))


def test_unknown_objectives_and_limits_are_refused():
    with pytest.raises(ValueError, match="'throughput' or 'latency'"):
        plan([1, 1], equal_cluster(1), objective="pareto")
    with pytest.raises(ValueError, match="max_latency_s must be above 0"):
        plan([1, 1], equal_cluster(1), max_latency_s=0.0)
