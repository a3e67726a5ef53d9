"""Over 16 devices that all differ not everything is searched; what is said stays true."""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np
import pytest

from cutset.cluster.devices import Cluster, Device, Link, equal_cluster
from cutset.costs.cost_model import CostModel, PieceSeconds, costs_from_flops
from cutset.errors import PlanError
from cutset.planning import PlanRequest, make_plan, pareto_plans
from cutset.planning.deadline import Deadline
from cutset.planning.formulate import build_problem
from cutset.planning.solvers.solve import Infeasible, solve_period
from planner_graphs import chain

NEVER = (1e6, 1e9, 1e12, 1e15, 1e18, float("inf"))


def with_seconds(costs: CostModel, table: dict[tuple[str, str], list[float]]) -> CostModel:
    entries = tuple(
        PieceSeconds(device=device, backend=backend, seconds=tuple(seconds))
        for (device, backend), seconds in table.items()
    )
    return msgspec.structs.replace(costs, seconds=entries)


@pytest.mark.parametrize("never", NEVER)
def test_a_number_that_means_never_does_not_blur_the_others(never: float) -> None:
    graph, cuts = chain([1, 1, 1, 1])
    table = {("", ""): [0.01, 0.02, 0.02, 0.02], ("b", ""): [never, 0.03, 0.03, 0.03]}
    costs = with_seconds(costs_from_flops(graph, cuts), table)
    plan = make_plan(
        graph,
        cuts,
        costs,
        PlanRequest(cluster=Cluster(devices=(Device(name="a"), Device(name="b")))),
    )
    assert plan.period_s == pytest.approx(0.05, rel=1e-12)
    assert [stage.device for stage in plan.stages] == ["a", "b"]
    assert plan.stages[1].compute_s == 0.03
    assert plan.is_proven


def test_negative_seconds_are_refused() -> None:
    graph, cuts = chain([1, 1])
    costs = with_seconds(costs_from_flops(graph, cuts), {("", ""): [1.0, -1.0]})
    with pytest.raises(PlanError, match=r"piece 1 takes -1\.0 s .*None or infinity"):
        make_plan(graph, cuts, costs, PlanRequest(cluster=equal_cluster(1)))


def test_searches_over_seconds_far_apart_end() -> None:
    graph, cuts = chain([1, 1, 1])
    model = costs_from_flops(graph, cuts)
    costs = with_seconds(model, {("", "one"): [28.0, 1.7e-4, 0.0], ("", "two"): [0.0, 1.0, 0.0]})
    front = pareto_plans(graph, cuts, costs, PlanRequest(cluster=equal_cluster(2)))
    # All on "two": 1 s; the second piece on "one", the first on "two": 0.17 ms.
    assert [plan.period_s for plan in front] == [pytest.approx(1.7e-4)]
    costs = with_seconds(model, {("", "one"): [9.1e8, 0, 1.0], ("", "two"): [0, 0, 1.0]})
    plan = make_plan(graph, cuts, costs, PlanRequest(cluster=equal_cluster(2), objective="latency"))
    assert plan.latency_s == 1.0


def test_a_plan_for_two_devices_is_one_for_eighteen() -> None:
    graph, cuts = chain([1] * 20, weights=[100] * 20)
    model = costs_from_flops(graph, cuts)
    costs = with_seconds(model, {("", ""): [1.0] * 20})
    limit = costs.memory_bytes(0, 12, num_stages=2)  # no device holds all 20
    devices = tuple(Device(name=f"d{k}", speed=1 + k / 100, memory_bytes=limit) for k in range(18))
    cluster = Cluster(devices=devices, link=Link(latency_s=1.0))
    # 12 pieces on the fastest, 8 on the next, and one link.
    best_s = 12 / 1.17 + 8 / 1.16 + 1
    plan = make_plan(
        graph,
        cuts,
        costs,
        PlanRequest(cluster=cluster, objective="latency"),
        with_alternatives=False,
    )
    assert plan.latency_s == pytest.approx(best_s)
    plan = make_plan(
        graph,
        cuts,
        costs,
        PlanRequest(cluster=cluster, max_latency_s=19.0),
        with_alternatives=False,
    )
    assert plan.latency_s <= 19.0 * (1 + 1e-9)
    with pytest.raises(PlanError, match=r"no plan takes at most 18 s .*: the least is 18\.15"):
        make_plan(
            graph,
            cuts,
            costs,
            PlanRequest(cluster=cluster, max_latency_s=18.0),
            with_alternatives=False,
        )


def test_each_device_may_be_the_only_fast_one_for_a_piece() -> None:
    graph, cuts = chain([1] * 18)
    table = {
        (f"d{7 * k % 18}", ""): [1.0 if j == k else 10 + 0.01 * k * j for j in range(18)]
        for k in range(18)
    }
    costs = with_seconds(costs_from_flops(graph, cuts), table)
    cluster = Cluster(devices=tuple(Device(name=f"d{k}") for k in range(18)))
    plan = make_plan(
        graph,
        cuts,
        costs,
        PlanRequest(cluster=cluster, min_rows_per_s=0.9),
        with_alternatives=False,
    )
    assert plan.rows_per_s == pytest.approx(1.0)
    assert plan.is_proven


def test_the_end_of_the_time_is_no_proof_of_anything() -> None:
    rng = np.random.default_rng(3)
    graph, cuts = chain([1] * 24)
    names = [f"d{k}" for k in range(14)]
    table = {(name, ""): rng.uniform(0.5, 2.0, 24).tolist() for name in names}
    costs = with_seconds(costs_from_flops(graph, cuts), table)
    cluster = Cluster(devices=tuple(Device(name=name) for name in names))
    plan = make_plan(
        graph, cuts, costs, PlanRequest(cluster=cluster, time_limit_s=1e-6), with_alternatives=False
    )
    assert plan.bound_s <= plan.period_s
    assert plan.is_proven or "above the best possible" in plan.claim
    built = build_problem(costs, cluster, range(25), num_stages=14)
    ended = dataclasses.replace(built.problem, deadline=Deadline(1e-6, 0.0))
    try:
        solution = solve_period(ended)
    except Infeasible as reason:
        assert not reason.is_proven  # noqa: PT017  # either end is right, a claim is not
    else:
        assert solution.bound_s <= ended.period_s(solution.stages)


def test_a_limit_of_time_has_a_range() -> None:
    graph, cuts = chain([1, 1])
    costs = costs_from_flops(graph, cuts)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="time_limit_s must be above 0"):
            make_plan(graph, cuts, costs, PlanRequest(cluster=equal_cluster(1), time_limit_s=wrong))
