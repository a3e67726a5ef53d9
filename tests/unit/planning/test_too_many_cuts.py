"""Graphs with more cuts than are listed: what is found, and what is said of it."""

from __future__ import annotations

import pytest

from cutset.cluster.devices import Cluster, Device, Link
from cutset.planning import PlanRequest, plan_cost_graph, plan_from_json, plan_to_json
from cutset.planning.anyorder.cost_graph import CostGraph, CostNode, CostTensor

TWO = Cluster(
    devices=(Device(name="a"), Device(name="b")),
    link=Link(bandwidth_bytes_per_s=12.5e6, latency_s=1e-3),
)
BRANCHES = {
    "stem": (0.001, 0.001),
    "p1": (0.01, 0.1),
    "p2": (0.1, 0.01),
    "q1": (0.01, 0.1),
    "q2": (0.1, 0.01),
    "join": (0.001, 0.001),
}
EDGES = (("stem", ("p1", "q1")), ("p1", ("p2",)), ("q1", ("q2",)), ("p2", ("join",)),
         ("q2", ("join",)))  # fmt: skip


def branches(leaf_s: float, *, num_leaves: int = 17, leaf_bytes: int = 0) -> CostGraph:
    """Two branches, each fast on a first and on b then, and leaves that hang on the stem."""
    leaves = {f"leaf{k}": (leaf_s, leaf_s) for k in range(num_leaves)}
    tensors = [CostTensor(source=s, targets=t, num_bytes=10) for s, t in EDGES]
    tensors += [CostTensor(source="stem", targets=(n,), num_bytes=leaf_bytes) for n in leaves]
    return CostGraph(
        format="cutset-cost-graph/1",
        nodes=tuple(
            CostNode(name=name, seconds={"a": a, "b": b})
            for name, (a, b) in {**BRANCHES, **leaves}.items()
        ),
        tensors=tuple(tensors),
    )


def test_leaves_that_cost_nothing_hide_no_plan() -> None:
    plan = plan_cost_graph(branches(0.0, leaf_bytes=1000), PlanRequest(cluster=TWO))
    # The stem and the first node of each branch on a, the rest on b.
    assert plan.period_s == pytest.approx(0.021)
    assert (plan.family, plan.bound_by) == ("downset", "exhaustion")
    assert plan.claim == "proven the best with one device a stage and no shared wire"


def test_a_chain_that_costs_nothing_goes_with_what_it_reads() -> None:
    graph = branches(0.0, num_leaves=0)
    free = tuple(CostNode(name=f"view{k}", seconds={"": 0.0}) for k in range(17))
    tensors = tuple(
        tensor
        for k in range(17)
        for tensor in (
            CostTensor(source="stem", targets=(f"view{k}",), num_bytes=8),
            CostTensor(source=f"view{k}", targets=("join",), num_bytes=8),
        )
    )
    plan = plan_cost_graph(
        CostGraph(format=graph.format, nodes=graph.nodes + free, tensors=graph.tensors + tensors),
        PlanRequest(cluster=TWO),
    )
    assert plan.period_s == pytest.approx(0.021)
    assert plan.family == "downset"


def test_bounds_for_every_cut_judge_what_was_searched_in_part() -> None:
    plan = plan_cost_graph(branches(1e-6), PlanRequest(cluster=TWO))
    assert plan.family == "orders"
    assert plan.bound_by != "exhaustion"
    assert {each.name for each in plan.certificates} == {"volume", "largest node", "sharing"}
    # The order that takes first what a is best at has the plan; the stem and the join may be
    # shared in the bound, leaves go where they please.
    assert plan.period_s == pytest.approx(0.021, rel=0.01)
    assert 0.0209 <= plan.bound_s <= plan.period_s
    assert plan_from_json(plan_to_json(plan)).claim == plan.claim


def test_with_a_number_of_stages_a_free_node_may_be_one() -> None:
    plan = plan_cost_graph(branches(0.0), PlanRequest(cluster=TWO, num_stages=2))
    assert plan.period_s == pytest.approx(0.021)
    assert plan.family == "orders"
    assert plan.bound_by in ("volume", "sharing", "largest node")


def test_a_plan_for_some_of_many_devices_is_one_for_all() -> None:
    graph = CostGraph(
        format="cutset-cost-graph/1",
        nodes=tuple(CostNode(name=f"n{k}", seconds={"": 1.0}) for k in range(20)),
        tensors=tuple(
            CostTensor(source=f"n{k}", targets=(f"n{k + 1}",), num_bytes=1) for k in range(19)
        ),
    )
    devices = tuple(Device(name=f"d{k}", speed=1 + k / 100) for k in range(24))
    plan = plan_cost_graph(graph, PlanRequest(cluster=Cluster(devices=devices)))
    # At least two pieces on the fastest of ten devices; all on all 24 would take 20 / 26.76 s.
    assert plan.family == "orders"
    assert plan.period_s <= 2 / 1.14 + 1e-9
    assert plan.bound_s <= 1 / 1.04
    assert not plan.is_proven


def test_costs_of_bytes_move_the_cut() -> None:
    seconds = {"n0": 0.1, "n1": 0.005, "n2": 0.095}
    graph = CostGraph(
        format="cutset-cost-graph/1",
        nodes=tuple(CostNode(name=n, seconds={"": s}) for n, s in seconds.items()),
        tensors=(
            CostTensor(source="n0", targets=("n1",), num_bytes=10_000_000),
            CostTensor(source="n1", targets=("n2",), num_bytes=100_000),
        ),
    )
    link = Link(bandwidth_bytes_per_s=125e6, send_s_per_byte=3e-9, receive_s_per_byte=8e-9)
    plan = plan_cost_graph(graph, PlanRequest(cluster=Cluster(devices=TWO.devices, link=link)))
    assert plan.stages[0].last == "n1"
    assert plan.period_s == pytest.approx(0.1053)


@pytest.mark.parametrize("never", [1e9, 1e15, 1e18, None, float("inf")])
def test_a_number_that_means_never_does_not_blur_the_others(never: float | None) -> None:
    nodes = [CostNode(name="n0", seconds={"": 0.01, "b": never})]
    nodes += [CostNode(name=f"n{k}", seconds={"": 0.02, "b": 0.03}) for k in (1, 2, 3)]
    for transfers in ("neighbour", "host"):
        graph = CostGraph(
            format="cutset-cost-graph/1",
            nodes=tuple(nodes),
            tensors=tuple(
                CostTensor(source=f"n{k}", targets=(f"n{k + 1}",), num_bytes=0) for k in range(3)
            ),
            transfers=transfers,
        )
        plan = plan_cost_graph(graph, PlanRequest(cluster=Cluster(devices=TWO.devices)))
        assert plan.period_s == pytest.approx(0.05)
        assert [stage.compute_s for stage in plan.stages] == pytest.approx([0.05, 0.03])
