"""How planning stands: whatever is told on the way is true of the plan that comes out."""

import math
import random
from unittest import mock

import pytest

from cutset.cluster.devices import Cluster, Device, Link, LinkOverride
from cutset.costs.cost_model import costs_from_flops
from cutset.planning import PlanRequest, make_plan, pareto_plans, plan_cost_graph
from cutset.planning.anyorder.cost_graph import CostGraph, CostNode, CostTensor
from cutset.planning.plan import Plan
from cutset.planning.solvers import within_limit
from cutset.planning.watch import Standing, begin_anew, look, note, unheard, watching
from planner_graphs import chain


def unequal(number: int, *, memory_bytes: int | None = None) -> Cluster:
    """Devices and links that all differ."""
    rng = random.Random(3)
    names = [f"d{k}" for k in range(number)]
    return Cluster(
        devices=tuple(
            Device(name=name, speed=rng.uniform(0.5, 4), memory_bytes=memory_bytes)
            for name in names
        ),
        overrides=tuple(
            LinkOverride(
                source=a,
                target=b,
                link=Link(bandwidth_bytes_per_s=rng.uniform(200, 3000), latency_s=0.01),
            )
            for a in names
            for b in names
            if a != b
        ),
    )


def watched(plan: object) -> tuple[Plan, list[Standing]]:
    told: list[Standing] = []
    with watching(told.append, every_s=0.0):
        made = plan()
    return made, told


def check(made: Plan, told: list[Standing]) -> None:
    """Every plan that was told of is no better than the bound, and no bound above the optimum."""
    assert told
    value_s = made.latency_s if made.objective == "latency" else made.period_s
    for standing in told:
        assert standing.elapsed_s >= 0
        assert standing.bound_s <= value_s * (1 + 1e-9)
        if standing.best_s is not None:
            assert standing.best_s >= made.bound_s * (1 - 1e-9)
            if standing.gap is not None:
                assert standing.gap == pytest.approx(standing.best_s / standing.bound_s - 1)


REQUESTS = [
    pytest.param({}, id="period"),
    pytest.param({"serial": True}, id="serial"),
    pytest.param({"fixed_order": True}, id="in order"),
    pytest.param({"objective": "latency"}, id="latency"),
    pytest.param({"max_latency_s": 24.0}, id="within a latency"),
    pytest.param({"objective": "latency", "min_rows_per_s": 0.15}, id="within a period"),
    pytest.param({"num_stages": 3}, id="three stages"),
]


@pytest.mark.parametrize("wanted", REQUESTS)
@pytest.mark.parametrize("most_states", [1 << 17, 4], ids=["exact", "wide"])
def test_what_is_told_of_a_model_is_true(wanted: dict[str, object], most_states: int) -> None:
    kinds = ["block"] * 8 + ["head"]
    rng = random.Random(5)
    graph, cuts = chain(
        [rng.randint(50, 400) for _ in range(10)],
        kinds=kinds,
        widths=[rng.randint(5, 60) for _ in range(10)],
    )
    costs = costs_from_flops(graph, cuts, flops_per_s=100.0)
    request = PlanRequest(cluster=unequal(5), **wanted)
    with mock.patch.object(within_limit, "MAX_STATES", most_states):
        made, told = watched(lambda: make_plan(graph, cuts, costs, request))
    check(made, told)
    if "objective" not in wanted and "max_latency_s" not in wanted:
        assert any(standing.gap is not None for standing in told)


@pytest.mark.parametrize(
    "wanted", [*REQUESTS[:4], {"max_latency_s": 12.0}, {"max_latency_s": 30.0, "num_stages": 3}]
)
def test_what_is_told_of_a_cost_graph_is_true(wanted: dict[str, object]) -> None:
    rng = random.Random(7)
    graph = CostGraph(
        format="cutset-cost-graph/1",
        nodes=tuple(
            CostNode(name=f"n{k}{w}", seconds={"": rng.uniform(0.1, 2)})
            for k in range(5)
            for w in "ab"
        ),
        tensors=tuple(
            CostTensor(source=f"n{k}{w}", targets=(f"n{k + 1}{w}",), num_bytes=1)
            for k in range(4)
            for w in "ab"
        ),
    )
    devices = Cluster(devices=unequal(4).devices, link=Link(latency_s=0.1))
    made, told = watched(lambda: plan_cost_graph(graph, PlanRequest(cluster=devices, **wanted)))
    check(made, told)


def test_a_front_tells_the_time_and_of_no_plan() -> None:
    graph, cuts = chain([5, 3, 4, 6])
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0)
    request = PlanRequest(cluster=unequal(3))
    _, told = watched(lambda: pareto_plans(graph, cuts, costs, request))
    assert told[-1].best_s is None


def test_what_is_unheard_or_belongs_to_another_problem_is_not_told() -> None:
    told: list[Standing] = []
    note(best_s=1.0)  # nobody watches
    with watching(told.append, every_s=0.0):
        note(best_s=5.0, bound_s=2.0)
        with unheard():
            note(best_s=1.0, bound_s=4.0)
            begin_anew()
            with unheard():
                pass
            note(best_s=1.0)
        note(best_s=6.0, bound_s=1.0)
        look()
        begin_anew()
        look()
    look()
    assert [(each.best_s, each.bound_s, each.gap) for each in told] == [
        (5.0, 2.0, 1.5),
        (None, 0.0, None),
    ]


def test_it_is_told_only_every_few_seconds() -> None:
    told: list[Standing] = []
    with watching(told.append, every_s=math.inf):
        look()
    assert told == []
