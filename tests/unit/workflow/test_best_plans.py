from __future__ import annotations

from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from cutset.cluster.devices import Cluster, Device, Link
from cutset.costs.profile import PieceProfile, Profile, SizedTimings, Timing
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


def with_sizes(profile: Profile, **rows_to_seconds: float) -> Profile:
    """The profile with other numbers of rows too, each piece as many times as long."""
    sizes = tuple(
        SizedTimings(
            micro_batch=int(rows[1:]),
            timings=tuple(
                {name: timing.scaled(factor) for name, timing in piece.timings.items()}
                for piece in profile.pieces
            ),
        )
        for rows, factor in rows_to_seconds.items()
    )
    return msgspec.structs.replace(profile, sizes=sizes)


def test_the_number_of_rows_that_gives_the_most_is_chosen(prepared: PreparedModel) -> None:
    costs = with_sizes(profile_of(prepared, 1.0, 1.0, 4.0), n2=1.5, n4=4.0)
    plan = plan_model(prepared, TWO, costs=costs)
    assert (plan.micro_batch, plan.period_s, plan.latency_s) == (2, 6.0, 9.0)
    assert [(each.micro_batch, each.rows_per_s, each.latency_s) for each in plan.sizes] == [
        (1, 0.25, 6.0),
        (2, pytest.approx(1 / 3), 9.0),
        (4, 0.25, 24.0),
    ]
    assert plan.claim == "proven the best with one device a stage and 1, 2 or 4 rows a micro-batch"
    in_time = msgspec.structs.replace(TWO, max_latency_s=7.0)
    plan = plan_model(prepared, in_time, costs=costs)
    assert plan.micro_batch == 1
    assert plan.sizes[1].reason == (
        "no plan takes at most 7 s for one micro-batch: the least is 9 s"
    )
    least = msgspec.structs.replace(TWO, objective="latency")
    assert plan_model(prepared, least, costs=costs).micro_batch == 1
    fast = msgspec.structs.replace(least, min_rows_per_s=0.3)
    assert plan_model(prepared, fast, costs=costs).micro_batch == 2
    too_fast = msgspec.structs.replace(TWO, min_rows_per_s=0.5)
    with pytest.raises(PlanError, match=r"with 1 row a micro-batch: no plan gives .* with 2 rows:"):
        plan_model(prepared, too_fast, costs=costs)


def test_the_number_of_rows_that_is_given_is_kept(prepared: PreparedModel) -> None:
    costs = with_sizes(profile_of(prepared, 1.0, 1.0, 4.0), n2=1.5, n4=4.0)
    plan = plan_model(prepared, TWO, costs=costs, batch_size=4)
    assert (plan.micro_batch, plan.period_s, plan.sizes) == (4, 16.0, ())
    with pytest.raises(PlanError, match="of 1, 2 or 4 rows, not the 3 that were asked for"):
        plan_model(prepared, TWO, costs=costs, batch_size=3)


def test_devices_choose_among_the_numbers_of_rows_that_all_have(prepared: PreparedModel) -> None:
    one = profile_of(prepared, 1.0, 1.0, 4.0)
    devices = (Device(name="a", profile="a.json"), Device(name="b", profile="b.json"))
    request = PlanRequest(cluster=Cluster(devices=devices), num_stages=2)
    costs = {"a.json": with_sizes(one, n2=1.5, n4=1.6), "b.json": with_sizes(one, n2=1.5)}
    plan = plan_model(prepared, request, costs=costs)
    assert [each.micro_batch for each in plan.sizes] == [1, 2]
    assert plan.micro_batch == 2
    apart = {"a.json": one, "b.json": costs["b.json"].at(2)}
    with pytest.raises(PlanError, match=r"no micro-batch in common: .* 1 row; .* 2 rows; profile"):
        plan_model(prepared, request, costs=apart)


def test_a_front_has_the_plans_of_every_number_of_rows_that_none_beats(
    prepared: PreparedModel,
) -> None:
    costs = with_sizes(profile_of(prepared, 1.0, 1.0, 4.0), n2=1.5, n4=4.0)
    front = plan_front(prepared, TWO, costs=costs)
    assert [(plan.micro_batch, plan.period_s, plan.latency_s) for plan in front] == [
        (2, 6.0, 9.0),
        (1, 4.0, 6.0),
    ]
    with pytest.raises(PlanError, match="there is no cut point after 'nowhere'"):
        plan_front(prepared, PlanRequest(cut_names=("nowhere",)), costs=costs)
