from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from cutset.cluster.devices import Cluster, Device, Link, equal_cluster
from cutset.errors import PlanError
from cutset.planning import PlanRequest

TWO = Cluster(devices=(Device(name="a"), Device(name="b")))


@pytest.mark.parametrize("name", ["max_latency_s", "min_rows_per_s", "time_limit_s"])
@pytest.mark.parametrize("value", [0, 0.0, -1.0, math.nan, math.inf, -math.inf])
def test_a_limit_is_above_0_and_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0 and finite, or None"):
        PlanRequest(**{name: value})
    assert getattr(PlanRequest(**{name: None}), name) is None


@pytest.mark.parametrize(
    ("wish", "error", "words"),
    [
        ({"objective": "pareto"}, ValueError, "'throughput' or 'latency', got 'pareto'"),
        ({"objective": None}, ValueError, "'throughput' or 'latency', got None"),
        ({"num_stages": 0}, ValueError, "num_stages must be at least 1, got 0"),
        ({"num_stages": -3}, ValueError, "num_stages must be at least 1, got -3"),
        ({"cut_names": "layer2"}, TypeError, "a tuple of names, got the text 'layer2'"),
        (
            {"cut_names": ("a", "b"), "num_stages": 2},
            PlanError,
            "2 cuts make 3 stages, not the 2 that were asked for",
        ),
    ],
)
def test_what_contradicts_itself_is_refused_where_it_is_said(
    wish: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        PlanRequest(**wish)


@pytest.mark.parametrize(
    ("wish", "num_stages", "cluster"),
    [
        (PlanRequest(), 1, equal_cluster(1)),
        (PlanRequest(num_stages=3), 3, equal_cluster(3)),
        (PlanRequest(cut_names=("a", "b")), 3, equal_cluster(3)),
        (PlanRequest(cut_names=("a", "a")), 2, equal_cluster(2)),
        (PlanRequest(cluster=TWO), None, TWO),
        (PlanRequest(cluster=TWO, num_stages=1), 1, TWO),
        (PlanRequest(cluster=TWO, cut_names=("a",)), 2, TWO),
    ],
)
def test_what_is_left_open_is_resolved(
    wish: PlanRequest, num_stages: int | None, cluster: Cluster
) -> None:
    resolved = wish.resolved()
    assert (resolved.num_stages, resolved.cluster) == (num_stages, cluster)
    assert wish.devices_and_links == cluster
    assert resolved.resolved() == resolved


def test_json_takes_it_and_is_checked_too() -> None:
    link = Link(bandwidth_bytes_per_s=1e6)
    cluster = Cluster(devices=TWO.devices, link=link, caller="a")
    wish = PlanRequest(cluster=cluster, objective="latency", cut_names=("layer2",))
    assert msgspec.json.decode(msgspec.json.encode(wish), type=PlanRequest) == wish
    for wrong in ('{"objective": "pareto"}', '{"num_stages": 0}', '{"stages": 2}'):
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(wrong, type=PlanRequest)


def test_what_is_left_of_the_time() -> None:
    assert PlanRequest(time_limit_s=60).within(7).time_limit_s == 7
    assert PlanRequest(time_limit_s=60).within(0).time_limit_s == 1e-3
    assert PlanRequest(time_limit_s=None).within(7).time_limit_s is None
