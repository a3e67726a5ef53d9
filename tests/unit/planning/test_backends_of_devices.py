"""Devices that say what computes there get no stage that it cannot compute."""

from __future__ import annotations

import msgspec
import pytest

from cutset.cluster.devices import Cluster, Device
from cutset.costs.cost_model import REFERENCE, CostModel, PieceSeconds, costs_from_flops
from cutset.errors import PlanError
from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph
from cutset.planning import Plan, PlanRequest, make_plan
from planner_graphs import chain

FORMLESS = 1
"""The piece that only torch computes."""


def _costs() -> tuple[Graph, CutPoints, CostModel]:
    graph, cuts = chain([4, 4, 4])
    costs = costs_from_flops(graph, cuts, flops_per_s=1.0)
    onnx = tuple(None if piece == FORMLESS else 1.0 for piece in range(3))
    seconds = (
        PieceSeconds(device=REFERENCE, backend="onnxruntime", seconds=onnx),
        PieceSeconds(device=REFERENCE, backend="torch", seconds=(3.0, 3.0, 3.0)),
    )
    return graph, cuts, msgspec.structs.replace(costs, seconds=seconds)


def _plan(*backends: tuple[str, ...] | None, **options: object) -> Plan:
    devices = tuple(Device(name=f"d{k}", backends=each) for k, each in enumerate(backends))
    request = PlanRequest(cluster=Cluster(devices=devices), **options)  # type: ignore[arg-type]
    return make_plan(*_costs(), request, with_alternatives=False)


def test_a_stage_goes_to_the_device_that_can_compute_it() -> None:
    plan = _plan(("onnxruntime",), ("torch",), ("onnxruntime",), num_stages=3)
    assert [(s.device, s.backend) for s in plan.stages] == [
        ("d0", "onnxruntime"),
        ("d1", "torch"),
        ("d2", "onnxruntime"),
    ]
    assert plan.period_s == 3.0
    assert {s.backend for s in _plan(("torch",), ("torch",)).stages} == {"torch"}
    assert {s.backend for s in _plan(None, None, None, num_stages=3).stages} == {
        "onnxruntime",
        "torch",
    }


def test_a_model_that_no_device_can_compute_whole_is_told_with_the_piece() -> None:
    with pytest.raises(PlanError) as caught:
        _plan(("onnxruntime",), ("onnxruntime",))
    assert str(caught.value) == (
        "the piece up to op1 runs with torch, and the devices compute with onnxruntime; install"
        " torch on one of them, and name it among its backends in the cluster file"
    )


def test_a_device_with_nothing_that_was_measured_is_told() -> None:
    with pytest.raises(PlanError) as caught:
        _plan(("torch",), ("openvino", "other"))
    assert str(caught.value).startswith(
        "device 'd1' computes with openvino, other, but costs were measured with onnxruntime, torch"
    )
