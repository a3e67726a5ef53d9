"""What turns costs and clusters into numbers, against plain sums."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import planner_twin as twin
from cutset.cluster.cluster_file import cluster_from_toml
from cutset.cluster.devices import Cluster, Device, Link, LinkOverride
from cutset.cluster.file_writer import cluster_to_toml
from cutset.costs.cost_model import CostModel, PieceSeconds, SharedWeight
from cutset.planning.formulate import MemoryTable, build_problem
from cutset.planning.solvers.solve import Infeasible, solve_period
from cutset.planning.variant import Variant

quick = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
SMALL = st.integers(0, 9)


def _row(element, size):
    return st.lists(element, min_size=size, max_size=size)


@st.composite
def cost_models(draw, max_pieces=6):
    num = draw(st.integers(1, max_pieces))
    users = st.sets(st.integers(0, num - 1), min_size=2) if num > 1 else st.nothing()
    shared = draw(st.lists(st.tuples(SMALL, users), max_size=2 if num > 1 else 0))
    seconds = st.one_of(st.none(), SMALL.map(float))
    return CostModel(
        micro_batch=draw(st.integers(1, 3)),
        positions=tuple(range(num + 1)),
        names=tuple(f"n{k}" for k in range(num + 1)),
        kinds=("block",) * (num + 1),
        cut_bytes_per_row=tuple(draw(_row(SMALL, num + 1))),
        flops_per_row=(1,) * num,
        own_weight_bytes=tuple(draw(_row(SMALL, num))),
        shared_weights=tuple(
            SharedWeight(num_bytes=size, pieces=tuple(sorted(users))) for size, users in shared
        ),
        peak_bytes_per_row=tuple(draw(_row(SMALL, num))),
        seconds=(
            PieceSeconds(device="", backend="a", seconds=tuple(draw(_row(SMALL.map(float), num)))),
            PieceSeconds(device="", backend="b", seconds=tuple(draw(_row(seconds, num)))),
        ),
        base_bytes=draw(SMALL),
        window=draw(st.one_of(st.none(), st.integers(1, 3))),
    )


@st.composite
def clusters(draw, max_devices=4):
    names = [f"d{k}" for k in range(draw(st.integers(1, max_devices)))]
    links = st.builds(
        Link,
        bandwidth_bytes_per_s=st.sampled_from([1.0, 4.0, math.inf]),
        latency_s=st.sampled_from([0.0, 0.5]),
    )
    pairs = [(a, b) for a in names for b in names if a != b]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=3)) if pairs else []
    caller = draw(st.sampled_from([None, *names]))
    return Cluster(
        devices=tuple(
            Device(
                name=name,
                speed=draw(st.sampled_from([0.5, 1.0])),
                memory_bytes=draw(st.sampled_from([None, 40, 90, 150])),
                overhead_s=draw(st.sampled_from([0.0, 0.25])),
            )
            for name in names
        ),
        link=draw(links),
        overrides=tuple(LinkOverride(source=a, target=b, link=draw(links)) for a, b in chosen),
        caller=caller,
        caller_overhead_s=draw(st.sampled_from([0.0, 0.5])) if caller else 0.0,
    )


def memory_bytes(costs, start, stop, num_stages):
    """What a worker holds, from first principles: see `CostModel.memory_bytes`."""
    total = costs.base_bytes + sum(costs.own_weight_bytes[start:stop])
    for weight in costs.shared_weights:
        if {*range(start, stop)} & {*weight.pieces}:
            total += weight.num_bytes
    in_flight = 2 * num_stages + 1 if costs.window is None else costs.window
    per_row = max(costs.peak_bytes_per_row[start:stop])  # one computes
    per_row += in_flight * costs.cut_bytes_per_row[start]  # all were received
    per_row += (in_flight - 1) * costs.cut_bytes_per_row[stop]  # the others were computed
    return total + costs.micro_batch * per_row


@quick
@given(cost_models(), st.data())
def test_memory_is_what_the_cost_model_says(costs, data):
    inner = range(1, costs.num_pieces)
    kept = [k for k in inner if data.draw(st.booleans())]
    edges = [0, *kept, costs.num_pieces]
    table = MemoryTable(costs, edges)
    num = len(edges) - 1
    stages = [(i, j) for i in range(num) for j in range(i + 1, num + 1)]
    for i, j in stages:
        for count in (1, 2, 5):
            needed = int(table.needed(np.array([i]), np.array([j]), num_stages=count)[0])
            assert needed == memory_bytes(costs, edges[i], edges[j], count)
            assert needed == costs.memory_bytes(edges[i], edges[j], num_stages=count)
            assert needed <= table.most_needed(num_stages=count)
    limit, most = data.draw(st.integers(0, 200)), data.draw(st.integers(1, 4))
    expected = np.zeros((num, num + 1), dtype=int)
    for i, j in stages:
        fits = [memory_bytes(costs, edges[i], edges[j], k) <= limit for k in range(1, most + 1)]
        assert fits == sorted(fits, reverse=True)
        expected[i, j] = sum(fits)
    found = table.most_stages(limit, most)
    if found is None:
        assert all(expected[i, j] == most for i, j in stages)
    else:
        assert found.tolist() == expected.tolist()


@quick
@given(cost_models(max_pieces=4), clusters(), st.booleans(), st.booleans())
def test_classes_of_equal_devices_change_nothing(costs, cluster, serial, fixed_order):
    """The problem with classes has the optimum of the one that names every device."""
    built = build_problem(
        costs, cluster, range(costs.num_pieces + 1), serial=serial, fixed_order=fixed_order
    )
    by_name = _one_class_each(costs, cluster, built.problem, fixed_order)
    expected = twin.best_period(by_name)
    if math.isinf(expected):
        with pytest.raises(Infeasible):
            solve_period(built.problem)
        return
    stages = solve_period(built.problem).stages
    assert built.problem.period_s(stages) == pytest.approx(expected, rel=1e-9)


def _one_class_each(costs, cluster, problem, fixed_order):
    """The same problem from first principles: every device its own class."""
    names = [d.name for d in cluster.devices]
    num = len(names)
    variants = []
    for k, device in enumerate(cluster.devices):
        for entry in costs.seconds:
            scaled = [None if s is None else s / device.speed for s in entry.seconds]
            pieces, limit = costs.num_pieces, device.memory_bytes
            room = np.zeros((pieces, pieces + 1), dtype=int)
            for i in range(pieces):
                for j in range(i + 1, pieces + 1):
                    room[i, j] = sum(
                        limit is None or memory_bytes(costs, i, j, count) <= limit
                        for count in range(1, len(names) + 1)
                    )
            variants.append(
                Variant(
                    device_class=k,
                    backend=entry.backend,
                    seconds=np.array([math.inf if s is None else s for s in scaled]),
                    furthest=np.full(pieces, pieces),
                    room=room,
                )
            )
    rows = costs.micro_batch
    home = cluster.caller
    overhead = [
        device.overhead_s + (cluster.caller_overhead_s if device.name == home else 0)
        for device in cluster.devices
    ]

    def sent(a, b, size):
        if home is None:
            return 0.0
        if a == b:
            return overhead[names.index(home)] / 2
        return cluster.link_between(a, b).transfer_s(size * rows)

    links = [[cluster.link_between(a, b) for b in names] for a in names]
    return dataclasses.replace(
        problem,
        counts=(1,) * num,
        variants=tuple(variants),
        link_latency_s=np.array([[link.latency_s for link in row] for row in links]),
        link_s_per_byte=np.array([[1 / link.bandwidth_bytes_per_s for link in r] for r in links]),
        source_s=np.array([sent(home, name, costs.cut_bytes_per_row[0]) for name in names]),
        sink_s=np.array([sent(name, home, costs.cut_bytes_per_row[-1]) for name in names]),
        overhead_s=np.array(overhead),
        fixed_order=fixed_order,
    )


@quick
@given(clusters())
def test_a_cluster_file_reads_back_equal(cluster):
    assert cluster_from_toml(cluster_to_toml(cluster)) == cluster
