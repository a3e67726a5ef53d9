"""The number of rows in a micro-batch against a twin that tries every number, cut and device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cutset.cluster.devices import Cluster, Device, Link
from cutset.costs.cost_model import REFERENCE, CostModel, PieceSeconds, costs_from_flops
from cutset.errors import PlanError
from cutset.planning import Plan, PlanRequest, make_plan
from planner_graphs import chain

SIZES = (1, 2, 4, 8)
quick = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


Problem = tuple[tuple[CostModel, ...], Cluster, tuple[int, ...]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Costs by size, any seconds with any number of rows; unequal devices; widths of the cuts."""
    num = draw(st.integers(1, 4))
    widths = draw(st.lists(st.integers(1, 9), min_size=num, max_size=num))
    graph, cuts = chain([1] * num, widths=widths)
    models = []
    for rows in sorted(draw(st.sets(st.sampled_from(SIZES), min_size=1))):
        costs = costs_from_flops(graph, cuts, micro_batch=rows, window=2)
        seconds = st.lists(st.integers(0, 20).map(float), min_size=num, max_size=num)
        entries = tuple(
            PieceSeconds(device=REFERENCE, backend=name, seconds=tuple(draw(seconds)))
            for name in draw(st.sampled_from(["a", "ab"]))
        )
        models.append(msgspec.structs.replace(costs, seconds=entries))
    devices = tuple(
        Device(
            name=f"d{k}",
            speed=draw(st.sampled_from([0.5, 1.0, 2.0])),
            memory_bytes=draw(st.sampled_from([None, 300, 600, 1200])),
            overhead_s=draw(st.sampled_from([0.0, 0.0, 3.0])),
        )
        for k in range(draw(st.integers(1, 3)))
    )
    link = Link(
        bandwidth_bytes_per_s=draw(st.sampled_from([4.0, 40.0, math.inf])),
        latency_s=draw(st.sampled_from([0.0, 2.0])),
    )
    return tuple(models), Cluster(devices=devices, link=link), (10, *widths)


def every_plan(problem: Problem) -> Iterator[tuple[int, float, float]]:
    """Rows, period and latency of all that fit, by the words of docs/planning.md."""
    models, cluster, widths = problem
    num = len(widths) - 1
    for costs, count in itertools.product(models, range(1, num + 1)):
        rows = costs.micro_batch
        for inner in itertools.combinations(range(1, num), count - 1):
            edges = (0, *inner, num)
            for devices in itertools.permutations(cluster.devices, count):
                compute, fits = [], True
                for start, stop, device in zip(edges, edges[1:], devices, strict=False):
                    entries = [math.fsum(e.seconds[start:stop]) for e in costs.seconds]
                    compute.append(min(entries) / device.speed)
                    held = 100 * (stop - start)
                    live = [4 * (widths[k] + widths[k + 1]) for k in range(start, stop)]
                    held += rows * (max(live) + 2 * 4 * widths[start] + 4 * widths[stop])
                    fits &= device.memory_bytes is None or held <= device.memory_bytes
                if not fits:
                    continue
                moves = [
                    cluster.link.latency_s
                    + rows * 4 * widths[k] / cluster.link.bandwidth_bytes_per_s
                    for k in inner
                ]
                busy = [s + d.overhead_s for s, d in zip(compute, devices, strict=True)]
                yield rows, max(busy + moves), math.fsum(compute + moves)


def planned(problem: Problem, request: PlanRequest) -> Plan:
    models, _, widths = problem
    graph, cuts = chain([1] * (len(widths) - 1), widths=list(widths[1:]))
    return make_plan(graph, cuts, models, request, with_alternatives=False)


@quick
@given(problems(), st.sampled_from([None, 5.0, 12.0, 30.0]), st.sampled_from([None, 0.1, 0.5]))
def test_the_most_rows_a_second_within_the_limits(
    problem: Problem, max_latency_s: float | None, min_rows_per_s: float | None
) -> None:
    request = PlanRequest(
        cluster=problem[1], max_latency_s=max_latency_s, min_rows_per_s=min_rows_per_s
    )
    fit = [
        (rows, period / rows, latency)
        for rows, period, latency in every_plan(problem)
        if latency <= (max_latency_s or math.inf) * (1 + 1e-9)
        and period <= rows / (min_rows_per_s or 1e-300) * (1 + 1e-9)
    ]
    if not fit:
        with pytest.raises(PlanError) as caught:
            planned(problem, request)
        assert caught.value.is_proven or not any(every_plan(problem))
        return
    plan = planned(problem, request)
    least = min(row_s for _, row_s, _ in fit)
    assert plan.period_s / plan.micro_batch == pytest.approx(least, rel=1e-9, abs=1e-12)
    assert plan.micro_batch == min(n for n, row_s, _ in fit if row_s <= least * (1 + 1e-9))
    assert max_latency_s is None or plan.latency_s <= max_latency_s * (1 + 1e-9)
    sizes = {costs.micro_batch for costs in problem[0]}
    if len(sizes) > 1:
        assert [tried.micro_batch for tried in plan.sizes] == sorted(sizes)
        for tried in plan.sizes:
            rows_per_s = [
                1 / row_s if row_s else 1e300 for n, row_s, _ in fit if n == tried.micro_batch
            ]
            assert tried.rows_per_s == (pytest.approx(max(rows_per_s)) if rows_per_s else None)
            assert bool(tried.reason) == (not rows_per_s)
    else:
        assert plan.sizes == ()


@quick
@given(problems(), st.sampled_from([None, 0.1, 0.5]))
def test_the_least_latency_of_a_micro_batch(problem: Problem, min_rows_per_s: float | None) -> None:
    request = PlanRequest(cluster=problem[1], objective="latency", min_rows_per_s=min_rows_per_s)
    fit = [
        (rows, latency)
        for rows, period, latency in every_plan(problem)
        if period <= rows / (min_rows_per_s or 1e-300) * (1 + 1e-9)
    ]
    if not fit:
        with pytest.raises(PlanError):
            planned(problem, request)
        return
    plan = planned(problem, request)
    least = min(latency for _, latency in fit)
    assert plan.latency_s == pytest.approx(least, rel=1e-9, abs=1e-12)
    assert plan.micro_batch == min(n for n, latency in fit if latency <= least * (1 + 1e-9))
