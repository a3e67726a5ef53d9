"""Plans on ports, media and a caller's own machine, whose optimum is known by hand."""

import json
import math

import msgspec
import pytest

from cutset.cluster.devices import CallerMachine, Cluster, Device, Link, LinkOverride
from cutset.cluster.wires import Medium, Port
from cutset.costs.cost_model import costs_from_flops
from cutset.errors import PlanError
from cutset.planning import (
    CostGraph,
    Plan,
    PlanRequest,
    expect_on_cluster,
    make_plan,
    pareto_cost_graph,
    pareto_plans,
    plan_cost_graph,
    plan_from_json,
    plan_to_json,
    simulate_plan,
)
from cutset.planning.anyorder.cost_graph import CostNode, CostTensor
from cutset.report.documents import plan_document
from cutset.report.loads import load_rows, stage_loads
from planner_graphs import chain

PIS = tuple(Device(name=f"pi-{k}") for k in (1, 2, 3))
NAMES = tuple(device.name for device in PIS)


def wifi(*, relayed: bool, names: tuple[str, ...] = NAMES) -> Medium:
    """20 Mbit/s with 2 ms for each message."""
    return Medium(
        name="wifi", devices=names, bandwidth_bytes_per_s=2.5e6, latency_s=0.002, relayed=relayed
    )


def three_parts(num_bytes: int = 200_000) -> CostGraph:
    """Three nodes of 100 ms in a row."""
    return CostGraph(
        format="cutset-cost-graph/1",
        nodes=tuple(CostNode(name=f"n{k}", seconds={"": 0.1}) for k in range(3)),
        tensors=tuple(
            CostTensor(source=f"n{k}", targets=(f"n{k + 1}",), num_bytes=num_bytes)
            for k in range(2)
        ),
    )


@pytest.mark.parametrize(
    ("relayed", "period_s", "num_stages", "limited"),
    [
        (False, 0.164, 3, "medium wifi"),  # two transfers of 82 ms
        (True, 0.2, 2, "stage 1 on pi-2"),  # three stages would have 328 ms of air
    ],
)
def test_three_pis_on_wifi(relayed, period_s, num_stages, limited) -> None:
    cluster = Cluster(devices=PIS, media=(wifi(relayed=relayed),))
    plan = plan_cost_graph(three_parts(), PlanRequest(cluster=cluster))
    assert (plan.period_s, len(plan.stages)) == (pytest.approx(period_s), num_stages)
    assert plan.is_proven
    assert plan.bottleneck == limited
    assert plan.proven_among == "with one device a stage"


def planned(cluster: Cluster, flops: list[int], widths: list[int], **wanted: object) -> Plan:
    """A chain of parts that take as many seconds; boundary k has 4 bytes for each of its width."""
    graph, cuts = chain(flops, widths=widths)
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0)
    return make_plan(graph, cuts, costs, PlanRequest(cluster=cluster, **wanted))


def test_the_same_for_a_model() -> None:
    medium = wifi(relayed=True)
    medium = msgspec.structs.replace(medium, bandwidth_bytes_per_s=1.0, latency_s=0.0)
    cluster = Cluster(devices=PIS, media=(medium,))
    # Two cuts of 4 and 8 bytes: 24 s of air; with one cut 20 s of work or 16 + ... of air.
    plan = planned(cluster, [10, 10, 10], [1, 2, 1])
    assert [stage.last for stage in plan.stages] == ["op0", "output"]
    assert plan.period_s == pytest.approx(20.0)
    slow = msgspec.structs.replace(cluster, media=(msgspec.structs.replace(medium, relayed=False),))
    plan = planned(slow, [10, 10, 10], [1, 2, 1])
    assert len(plan.stages) == 3
    assert (plan.period_s, plan.bottleneck) == (pytest.approx(12.0), "medium wifi")
    assert [(m.after, m.num_bytes, m.seconds, m.medium) for m in plan.messages] == [
        (0, 4, 4.0, "medium wifi"),
        (1, 8, 8.0, "medium wifi"),
    ]
    assert plan_from_json(plan_to_json(plan)) == plan
    document = json.loads(json.dumps(plan_document(plan)))
    assert document["bottleneck"] == "medium wifi"
    assert document["messages"][1]["uses"] == [
        {"wire": "link pi-2 -> pi-3", "busy_s": 8.0},
        {"wire": "medium wifi", "busy_s": 8.0},
    ]
    assert 12.0 * 16 <= simulate_plan(plan, num_microbatches=16).total_s <= 12.0 * (16 + 7)


def test_half_duplex_adds_what_comes_and_what_goes() -> None:
    port = Port(out_bytes_per_s=1.0, in_bytes_per_s=1.0, half_duplex=True)
    devices = tuple(msgspec.structs.replace(device, port=port) for device in PIS)
    # The middle one of three stages takes 8 bytes and gives 8: 16 s. Two stages: 20 s of work.
    plan = planned(Cluster(devices=devices), [10, 10, 10], [2, 2, 1])
    assert (len(plan.stages), plan.period_s) == (3, pytest.approx(16.0))
    assert plan.bottleneck == "port of pi-2"
    full = tuple(
        msgspec.structs.replace(device, port=msgspec.structs.replace(port, half_duplex=False))
        for device in PIS
    )
    plan = planned(Cluster(devices=full), [10, 10, 10], [2, 2, 1])
    assert (plan.period_s, plan.bottleneck) == (pytest.approx(10.0), "stage 0 on pi-1")
    graph = three_parts(12)
    of_graph = plan_cost_graph(graph, PlanRequest(cluster=Cluster(devices=devices)))
    # 24 s at the port of a middle stage, or 12 s and one of two.
    assert (len(of_graph.stages), of_graph.period_s) == (1, pytest.approx(0.3))


def test_the_caller_shares_the_port_of_its_device() -> None:
    port = Port(out_bytes_per_s=1.0, in_bytes_per_s=1.0)
    cluster = Cluster(
        devices=tuple(Device(name=name, port=port) for name in ("a", "b")), caller="a"
    )
    # Inputs and outputs of 40 and 4 bytes; a cut of 4 bytes.
    plan = planned(cluster, [6, 6], [1, 1], num_stages=2, fixed_order=True)
    # a computes first: it sends the cut, and gets the outputs.
    assert [stage.device for stage in plan.stages] == ["a", "b"]
    assert plan.period_s == pytest.approx(6.0)
    half = msgspec.structs.replace(port, half_duplex=True)
    cluster = msgspec.structs.replace(
        cluster, devices=tuple(Device(name=name, port=half) for name in ("a", "b"))
    )
    plan = planned(cluster, [6, 6], [1, 1], num_stages=2, fixed_order=True)
    assert (plan.period_s, plan.bottleneck) == (pytest.approx(8.0), "port of a")
    # As the last stage a would send 40 bytes and get 4.
    plan = planned(cluster, [6, 6], [1, 1], num_stages=2)
    assert [stage.device for stage in plan.stages] == ["a", "b"]


def test_a_caller_on_a_machine_of_its_own_has_a_port_too() -> None:
    cluster = Cluster(
        devices=PIS[:2],
        caller="laptop",
        caller_machine=CallerMachine(
            name="laptop",
            port=Port(out_bytes_per_s=1.0, in_bytes_per_s=1.0, half_duplex=True),
        ),
    )
    plan = planned(cluster, [6, 6], [1, 1])
    assert plan.period_s == pytest.approx(44.0)  # 40 bytes of inputs, 4 of outputs
    assert plan.bottleneck == "port of laptop"
    assert [(m.source, m.target, m.num_bytes) for m in plan.messages] == [
        ("laptop", "pi-1", 40),
        *([("pi-1", "pi-2", 4)] if len(plan.stages) == 2 else []),
        (plan.stages[-1].device, "laptop", 4),
    ]
    front = pareto_plans(*model([6, 6], [1, 1]), PlanRequest(cluster=cluster))
    assert [each.period_s for each in front] == [pytest.approx(44.0)]


def model(flops: list[int], widths: list[int]) -> tuple:
    graph, cuts = chain(flops, widths=widths)
    return graph, cuts, costs_from_flops(graph, cuts, flops_per_s=1.0)


def test_limits_hold_over_media_too() -> None:
    medium = msgspec.structs.replace(wifi(relayed=False), bandwidth_bytes_per_s=1.0, latency_s=0.0)
    cluster = Cluster(devices=PIS, media=(medium,))
    # 30 s of work, cuts of 4 and 8 s: three stages have 12 s and a latency of 42 s.
    plan = planned(cluster, [10, 10, 10], [1, 2, 1], max_latency_s=41.0)
    assert (plan.period_s, plan.latency_s) == (pytest.approx(20.0), pytest.approx(34.0))
    quick = planned(cluster, [10, 10, 10], [1, 2, 1], objective="latency", min_rows_per_s=1 / 12.5)
    assert (quick.period_s, quick.latency_s) == (pytest.approx(12.0), pytest.approx(42.0))
    with pytest.raises(PlanError, match=r"the most is 0\.0833333 rows/s"):
        planned(cluster, [10, 10, 10], [1, 2, 1], min_rows_per_s=1 / 11.5)
    front = pareto_plans(*model([10, 10, 10], [1, 2, 1]), PlanRequest(cluster=cluster))
    assert [(p.period_s, p.latency_s) for p in front] == [
        pytest.approx((12.0, 42.0)),
        pytest.approx((20.0, 34.0)),
        pytest.approx((30.0, 30.0)),
    ]


def test_a_stage_that_was_measured_changes_nothing_for_a_medium() -> None:
    medium = msgspec.structs.replace(wifi(relayed=False), bandwidth_bytes_per_s=1.0, latency_s=0.0)
    cluster = Cluster(devices=PIS, media=(medium,))
    plan = planned(cluster, [10, 10, 10], [1, 2, 1])
    timed = expect_on_cluster(plan, cluster, 40, [1.0, 2.0, 3.0])
    assert timed.expected_period_s == pytest.approx(12.0)


def test_what_a_cost_graph_cannot_count_is_refused() -> None:
    cluster = Cluster(devices=PIS, media=(wifi(relayed=False),))
    graph = three_parts()
    with pytest.raises(PlanError, match="leave out the limit on the other one"):
        plan_cost_graph(graph, PlanRequest(cluster=cluster, max_latency_s=1.0))
    with pytest.raises(PlanError, match="leave out the limit on the other one"):
        plan_cost_graph(
            graph, PlanRequest(cluster=cluster, objective="latency", min_rows_per_s=1.0)
        )
    with pytest.raises(PlanError, match="front of a cost graph over a medium"):
        pareto_cost_graph(graph, PlanRequest(cluster=cluster))
    with pytest.raises(PlanError, match="leave ports and media out"):
        plan_cost_graph(
            msgspec.structs.replace(graph, transfers="host"), PlanRequest(cluster=cluster)
        )
    some = Cluster(
        devices=PIS, media=(wifi(relayed=False, names=NAMES[:2]),), link=Link(latency_s=1.0)
    )
    with pytest.raises(PlanError, match=r"link pi-1 -> pi-2 and link pi-1 -> pi-3 differ"):
        plan_cost_graph(graph, PlanRequest(cluster=some))
    quick = plan_cost_graph(graph, PlanRequest(cluster=cluster, objective="latency"))
    assert quick.latency_s == pytest.approx(0.3)
    with pytest.raises(PlanError, match=r"the most is 6\.09756 rows/s"):
        plan_cost_graph(graph, PlanRequest(cluster=cluster, min_rows_per_s=7.0))


def test_old_plans_say_what_limits_them() -> None:
    link = Link(bandwidth_bytes_per_s=0.5)
    plan = planned(Cluster(devices=PIS[:2], link=link), [6, 6], [1, 1], num_stages=2)
    assert plan.bottleneck == "link pi-1 -> pi-2"
    old = msgspec.structs.replace(plan, messages=())
    assert old.bottleneck == "link after stage 0"
    serial = planned(Cluster(devices=PIS[:2], link=link), [6, 6], [1, 1], num_stages=2, serial=True)
    assert (serial.period_s, serial.bottleneck) == (pytest.approx(14.0), "stage 0 on pi-1")


def test_a_port_is_named_where_it_makes_a_link_slow() -> None:
    devices = (Device(name="a"), Device(name="b", port=Port(in_bytes_per_s=0.5)))
    link = Link(bandwidth_bytes_per_s=4.0, latency_s=1.0)
    plan = planned(Cluster(devices=devices, link=link), [6, 6], [1, 1], num_stages=2,
                   fixed_order=True)  # fmt: skip
    assert plan.period_s == pytest.approx(9.0)
    assert plan.bottleneck == "link a -> b, limited by port into b"
    back = LinkOverride(source="a", target="b", link=Link(bandwidth_bytes_per_s=0.25))
    cluster = Cluster(devices=devices, link=link, overrides=(back,))
    plan = planned(cluster, [6, 6], [1, 1], num_stages=2, fixed_order=True)
    assert (plan.period_s, plan.bottleneck) == (pytest.approx(16.0), "link a -> b")


def test_json_takes_a_cluster_with_wires() -> None:
    cluster = Cluster(devices=PIS, media=(wifi(relayed=True),), link=Link())
    wish = PlanRequest(cluster=cluster)
    assert msgspec.json.decode(msgspec.json.encode(wish), type=PlanRequest) == wish
    assert math.isinf(cluster.link.bandwidth_bytes_per_s)


def test_the_picture_of_loads_shows_ports_and_media() -> None:
    medium = msgspec.structs.replace(wifi(relayed=False), bandwidth_bytes_per_s=1.0, latency_s=0.0)
    devices = tuple(
        msgspec.structs.replace(device, port=Port(out_bytes_per_s=2.0)) for device in PIS
    )
    plan = planned(Cluster(devices=devices, media=(medium,)), [10, 10, 10], [1, 2, 1])
    rows = load_rows(stage_loads(plan, None), plan.shared_wires, with_measured=False)
    shown = [(row["line"], row.get("milliseconds")) for row in rows if row["index"] is None]
    assert shown == [
        ("wh:ports and media", None),
        ("w0:medium wifi", 12_000.0),
        ("w1:port out of pi-1", 2_000.0),
        ("w2:port out of pi-2", 4_000.0),
    ]
