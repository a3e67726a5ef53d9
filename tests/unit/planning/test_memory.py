"""Memory as a limit: bytes that wait at the ends of a stage, and how many by the plan's stages."""

from unittest import mock

import msgspec
import pytest

from cutset.cluster.devices import Cluster, Device, Link
from cutset.costs.cost_model import CostModel, PieceSeconds, costs_from_flops
from cutset.errors import InfeasiblePlan, PlanError
from cutset.planning import PlanRequest, make_plan, memory, pareto_plans
from cutset.planning.certificates import quick_bound
from cutset.planning.deadline import OutOfTime
from cutset.planning.formulate import build_problem
from cutset.planning.plan import Plan
from planner_graphs import chain

BULGE = {"widths": [10, 1000, 10, 10], "weights": [100] * 4}
"""After op1 come 4000 bytes, elsewhere 40."""


def plan(flops: list[int], cluster: Cluster, *, bulge: bool = False, **options: object) -> Plan:
    graph, cuts = chain(flops, **(BULGE if bulge else {"weights": [1000] * len(flops)}))
    window = options.pop("window", None)
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0, window=window)
    return make_plan(
        graph, cuts, costs, PlanRequest(cluster=cluster, **options), with_alternatives=False
    )


def devices(*memory_bytes: int, speeds: tuple[float, ...] = (), link_s: float = 0.0) -> Cluster:
    return Cluster(
        devices=tuple(
            Device(name=f"d{k}", memory_bytes=each, speed=speeds[k] if speeds else 1.0)
            for k, each in enumerate(memory_bytes)
        ),
        link=Link(latency_s=link_s),
    )


# Of op0 alone: 100 bytes of weights, a peak of 80, 5 inputs and 4 outputs of 40: 540. With op1:
# 200, a peak of 4040, 5 inputs of 40 and 4 outputs of 4000: 20,440; with op2 too only 300, a peak
# of 4040 (both in and out of op2), 5 * 40 and 4 * 40: 4,700.
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="equal devices"),
        pytest.param({"serial": True}, id="equal devices, serial"),
        pytest.param({"objective": "latency", "num_stages": 2}, id="latency"),
        pytest.param({"speeds": (1.0, 1.0001)}, id="two kinds"),
        pytest.param({"speeds": (1.0, 1.0001), "serial": True}, id="two kinds, serial"),
        pytest.param({"speeds": (1.0, 1.0001), "fixed_order": True}, id="in order"),
    ],
)
def test_a_longer_stage_fits_where_a_shorter_one_does_not(options: dict[str, object]) -> None:
    cluster = devices(5000, 5000, speeds=options.pop("speeds", ()))
    made = plan([1, 3, 3, 1], cluster, bulge=True, **options)
    assert [stage.last for stage in made.stages] in (["op0", "output"], ["op2", "output"])
    assert made.period_s == pytest.approx(7.0, rel=1e-3)
    assert made.is_proven
    assert {s.last: s.memory_bytes for s in made.stages}.get("op2", 4700) == 4700
    # Where memory is no limit the bulge is cut through.
    free = plan([1, 3, 3, 1], devices(50_000, 50_000), bulge=True)
    assert [stage.last for stage in free.stages] == ["op1", "output"]


def test_fewer_stages_have_less_in_flight() -> None:
    # Four stages of one piece need 1000 + 760 each, two of two pieces 2000 + 440; of three stages
    # one has two pieces and needs 2000 + 600.
    flops, limit = [1, 1, 1, 1], 2450
    made = plan(flops, devices(limit, limit, limit, limit))
    assert len(made.stages) == 4
    assert {stage.memory_bytes for stage in made.stages} == {1760}
    made = plan(flops, devices(limit, limit, limit, 1700))
    assert [stage.memory_bytes for stage in made.stages] == [2440, 2440]
    assert (made.period_s, made.is_proven) == (2.0, True)


@pytest.mark.parametrize("speeds", [(), (1.0, 1.01, 1.02)])
def test_the_number_of_stages_is_that_of_the_plan(speeds: tuple[float, ...]) -> None:
    """One piece each would be the fastest: 1600 bytes with seven in flight. Two fit with five."""
    cluster = devices(2500, 1500, 1500, speeds=speeds)
    made = plan([2, 2, 2], cluster, fixed_order=bool(speeds))
    assert sorted(stage.memory_bytes for stage in made.stages) == [1440, 2440]
    assert made.is_proven
    with pytest.raises(InfeasiblePlan) as caught:
        plan([2, 2, 2], cluster, num_stages=3)
    assert caught.value.needed_bytes == 1600
    # With one in flight all three fit: 1000 + 80 + 40.
    made = plan([2, 2, 2], cluster, window=1)
    assert [stage.memory_bytes for stage in made.stages] == [1120, 1120, 1120]


def test_a_front_keeps_to_each_plan_s_own_number_in_flight() -> None:
    graph, cuts = chain([2, 2, 2], weights=[1000] * 3)
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0)
    cluster = devices(3280, 2440, 1500, speeds=(1.0, 1.5, 1.0), link_s=2.0)
    front = pareto_plans(graph, cuts, costs, PlanRequest(cluster=cluster))
    found = [(made.period_s, [s.memory_bytes for s in made.stages]) for made in front]
    assert found == [(pytest.approx(8 / 3), [2440, 1440]), (6.0, [3280])]


@pytest.mark.parametrize(
    ("sizes", "speeds"),
    [
        ((1000, 1000), ()),
        ((2000, 1000, 900), (1.0, 2.0, 3.0)),
        ((1, 1, 1, 1), (1.0, 1.0, 2.0, 2.0)),
    ],
)
def test_with_what_is_lacking_there_is_a_plan(
    sizes: tuple[int, ...], speeds: tuple[float, ...]
) -> None:
    """What the error asks for is enough, and a byte less is not."""
    with pytest.raises(InfeasiblePlan) as caught:
        plan([1, 2, 3, 4], devices(*sizes, speeds=speeds), bulge=True)
    error = caught.value
    name = next(k for k in range(len(sizes)) if f"d{k}" == error.device)
    for more in (error.needed_bytes, error.needed_bytes - 1):
        if "alone would not do" in str(error):
            raised = [max(size, more) for size in sizes]
        else:
            raised = [more if k == name else size for k, size in enumerate(sizes)]
        if more == error.needed_bytes:
            assert plan([1, 2, 3, 4], devices(*raised, speeds=speeds), bulge=True).stages
        else:
            with pytest.raises(InfeasiblePlan):
                plan([1, 2, 3, 4], devices(*raised, speeds=speeds), bulge=True)


def test_time_that_ends_while_the_reason_is_looked_for_is_no_traceback() -> None:
    late = mock.Mock(side_effect=OutOfTime("the time limit of 1 s was reached"))
    with mock.patch.object(memory, "period_oracle", late), pytest.raises(PlanError) as caught:
        plan([1, 1], devices(1000, 1000, speeds=(1.0, 2.0)))
    assert not isinstance(caught.value, InfeasiblePlan)
    assert "the time limit of 1 s was reached" in str(caught.value)


def test_a_session_s_own_window_is_what_is_counted() -> None:
    graph, cuts = chain([1, 1, 1])
    costs: CostModel = costs_from_flops(graph, cuts)
    assert [costs.window_with(k) for k in (1, 2, 5)] == [3, 5, 11]


@pytest.mark.parametrize("serial", [False, True])
def test_a_piece_that_fits_alone_nowhere_counts_where_a_stage_holds_it(serial: bool) -> None:
    """Else b would seem slow, all work on it too, and a bound be above what there is."""
    graph, cuts = chain([1, 1, 1], widths=[1000, 10, 10])
    table = {("a", ""): [1.0, 100.0, 1.0], ("b", ""): [2.0, 1.0, 2.0]}
    entries = tuple(
        PieceSeconds(device=device, backend=backend, seconds=tuple(seconds))
        for (device, backend), seconds in table.items()
    )
    costs = msgspec.structs.replace(costs_from_flops(graph, cuts), seconds=entries)
    # op1 alone takes in 4000 bytes five times over; with op0 it is 200 + 4040 + 9 * 40.
    cluster = Cluster(devices=(Device(name="a"), Device(name="b", memory_bytes=4600)))
    request = PlanRequest(cluster=cluster, serial=serial)
    built = build_problem(costs, cluster, range(4), serial=serial)
    assert built.problem.variants[1].room.tolist() == [[0, 0, 2, 1], [0, 0, 0, 0], [0, 0, 0, 2]]
    assert quick_bound(built.problem) <= 3.0
    made = make_plan(graph, cuts, costs, request)
    assert [(s.device, s.last, s.memory_bytes) for s in made.stages] == [
        ("b", "op1", 4600),
        ("a", "output", 540),
    ]
    assert (made.period_s, made.is_proven) == (3.0, True)
    assert all(each.bound_s <= 3.0 for each in made.certificates)


def _with_workers(a: int | None, b: int | None, more: int = 0) -> Plan:
    """Three pieces of 1000 bytes; without workers a needs 2440 for two of them, b 1440 for one."""
    graph, cuts = chain([1, 1, 1], weights=[1000] * 3)
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0, base_bytes=100)
    cluster = Cluster(
        devices=(
            Device(name="a", memory_bytes=2440 + (100 if a is None else a), worker_bytes=a),
            Device(name="b", memory_bytes=1440 + (100 if b is None else b) + more, worker_bytes=b),
        )
    )
    return make_plan(graph, cuts, costs, PlanRequest(cluster=cluster), with_alternatives=False)


@pytest.mark.parametrize(("a", "b"), [(None, None), (None, 700), (0, 700), (50, None), (700, 0)])
def test_a_worker_counts_with_its_own_devices_bytes(a: int | None, b: int | None) -> None:
    found = {stage.device: stage for stage in _with_workers(a, b).stages}
    assert found["a"].memory_bytes == found["a"].memory_limit_bytes
    assert found["b"].memory_bytes == found["b"].memory_limit_bytes
    with pytest.raises(InfeasiblePlan) as caught:
        _with_workers(a, b, more=-40)
    needed = 1440 + (100 if b is None else b)
    error = caught.value
    assert (error.device, error.needed_bytes, error.available_bytes) == ("b", needed, needed - 40)


def test_devices_that_differ_in_their_worker_alone_are_told_apart() -> None:
    graph, cuts = chain([1, 1, 1], weights=[1000] * 3)
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0, base_bytes=100)
    pair = (
        Device(name="a", memory_bytes=2540, worker_bytes=1000),
        Device(name="b", memory_bytes=2540, worker_bytes=100),
    )
    for order in (pair, pair[::-1]):
        request = PlanRequest(cluster=Cluster(devices=order))
        made = make_plan(graph, cuts, costs, request, with_alternatives=False)
        used = {stage.device: stage.memory_bytes for stage in made.stages}
        assert used == {"a": 2440, "b": 2540}  # one piece and two
    small = tuple(msgspec.structs.replace(each, memory_bytes=1000) for each in pair)
    request = PlanRequest(cluster=Cluster(devices=small), num_stages=2)
    with pytest.raises(InfeasiblePlan, match="more on one device alone would not do") as caught:
        make_plan(graph, cuts, costs, request, with_alternatives=False)
    # What all need beside their workers is 2440; the first of the smallest has one of 1000.
    assert (caught.value.device, caught.value.needed_bytes) == ("a", 3440)
