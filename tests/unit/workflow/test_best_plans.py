from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cutset.cluster.devices import Cluster, Device, Link
from cutset.costs.profile import PieceProfile, Profile, Timing
from cutset.errors import EngineError, PlanError
from cutset.planning import PlanRequest
from cutset.workflow import (
    MeasuredCosts,
    PreparedModel,
    best_plans,
    measure_costs,
    plan_front,
    plan_model,
    plan_stages,
    plan_with_gain,
    prepare_model,
)

TWO = PlanRequest(num_stages=2)
LINK = Link(bandwidth_bytes_per_s=1e9)


@pytest.fixture(scope="module")
def prepared() -> PreparedModel:
    """Three linear layers, the last as much work as the others together."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 16))
    return prepare_model(model, torch.randn(2, 8))


def profile_of(prepared: PreparedModel, *seconds: float, num_threads: int = 1) -> Profile:
    names = [*(point.after for point in prepared.cuts.points), "output"]
    assert len(names) == len(seconds)
    return Profile(
        format="cutset-profile/1",
        model=prepared.name,
        device="made up",
        micro_batch=1,
        num_threads=num_threads,
        pieces=tuple(
            PieceProfile(
                last=name,
                flops=1,
                timings={"torch": Timing(median_s=each, p10_s=each, p90_s=each, num_runs=5)},
            )
            for name, each in zip(names, seconds, strict=True)
        ),
        software={},
    )


def test_multiply_adds_are_what_plan_stages_plans_with(prepared: PreparedModel) -> None:
    plan = plan_model(prepared, TWO, costs="flops")
    assert plan == plan_stages(prepared, num_stages=2)
    assert plan.expected is None
    assert plan.notes[-1].endswith("nothing was measured")
    assert [stage.flops for stage in plan.stages] == [128, 128]


def test_without_a_word_it_measures_and_times_the_stages_as_wholes(prepared: PreparedModel) -> None:
    steps: list[str] = []
    plan = plan_model(prepared, TWO, backend="torch", progress=steps.append)
    assert plan.expected is not None
    assert len(plan.expected.compute_s) == 2
    assert {stage.backend for stage in plan.stages} == {"torch"}
    assert steps[0].startswith("profiling ")
    assert "planning, at most 60 s" in steps
    assert steps[-1].startswith("measuring the stages of plan ")


def test_what_was_measured_serves_again(prepared: PreparedModel) -> None:
    measured = measure_costs(prepared, backend="torch", num_runs=5)
    assert list(measured.backends) == ["torch"]
    for num_stages in (1, 2):
        plan = plan_model(prepared, PlanRequest(num_stages=num_stages), costs=measured)
        assert len(plan.stages) == num_stages
        assert plan.expected is not None
    with pytest.raises(PlanError, match="onnxruntime"):
        plan_model(prepared, TWO, costs=measured, backend="onnxruntime")
    with pytest.raises(PlanError, match="measured with 1 thread, not the 2 of --threads"):
        plan_model(prepared, TWO, costs=measured, num_threads=2)


def test_a_profile_from_elsewhere_is_planned_with_and_nothing_is_measured(
    prepared: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(best_plans, "measure_costs", None)
    monkeypatch.setattr(best_plans, "plan_here", None)
    costs = profile_of(prepared, 1.0, 1.0, 4.0)
    plan = plan_model(prepared, TWO, costs=costs)
    assert [stage.compute_s for stage in plan.stages] == [2.0, 4.0]
    (front,) = plan_front(prepared, TWO, costs=costs)
    assert (front.period_s, front.latency_s) == (4.0, 6.0)
    again, gain = plan_with_gain(prepared, TWO, costs=costs)
    assert again == plan
    assert gain == 0.0


def test_a_device_without_a_profile_is_scaled_from_what_is_measured_now(
    prepared: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def measure(_: PreparedModel, **options: Any) -> MeasuredCosts:
        asked.append(options)
        reference = profile_of(prepared, 1.0, 1.0, 1.0)
        return MeasuredCosts(profile=reference, backends={}, num_threads=1, num_runs=5)

    monkeypatch.setattr(best_plans, "measure_costs", measure)
    devices = (Device(name="own", profile="own.json"), Device(name="half", speed=0.5))
    request = PlanRequest(cluster=Cluster(devices=devices, link=LINK), num_stages=2)
    own = {"own.json": profile_of(prepared, 4.0, 4.0, 4.0)}
    plan = plan_model(prepared, request, costs=own)
    assert {stage.device: stage.compute_s for stage in plan.stages} == {"own": 4.0, "half": 4.0}
    assert [each["num_threads"] for each in asked] == [1]
    assert plan.expected is None
    alone = Cluster(devices=devices[:1], link=LINK)
    assert plan_model(prepared, PlanRequest(cluster=alone), costs=own).period_s == 12.0
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"costs": "guessed"}, ValueError, "'measured' or 'flops' or profiles, got 'guessed'"),
        ({"costs": "flops", "backend": "torch"}, ValueError, "the same for all"),
        ({"costs": "flops", "num_threads": 2}, ValueError, "the same for all"),
        ({"backend": "tensorrt"}, EngineError, "tensorrt"),
    ],
)
@pytest.mark.parametrize("make", [plan_model, plan_front, plan_with_gain])
def test_what_has_no_use_is_refused(
    prepared: PreparedModel, make: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        make(prepared, TWO, **options)


def test_a_request_says_the_number_itself(prepared: PreparedModel) -> None:
    with pytest.raises(TypeError, match="give a request or num_stages"):
        plan_stages(prepared, TWO, num_stages=3)
