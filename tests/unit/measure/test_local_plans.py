from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import msgspec
import pytest
import torch

from cutset.backends.base import Computation
from cutset.capture.captured_model import CapturedModel
from cutset.capture.torch_export import capture_model
from cutset.cluster.devices import equal_cluster
from cutset.costs.cost_model import costs_from_profile
from cutset.costs.profile import Profile, Timing, with_backend
from cutset.errors import EngineError, PlanError
from cutset.graph.cuts import CutPoints, find_cut_points
from cutset.measure import local_plans
from cutset.measure.local_plans import expect_here, plan_here
from cutset.measure.messages import measure_hop
from cutset.measure.piece_times import PieceBackend
from cutset.measure.profiling import piece_backends, profile_costs
from cutset.planning import PlanRequest
from cutset.planning.make import make_plan
from cutset.planning.plan import Expected, Plan, plan_from_json, plan_to_json
from models_of_trouble import residual_net


def test_a_plan_gets_its_stages_as_wholes_and_its_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured = capture_model(residual_net(), torch.randn(2, 3, 8, 8))
    cuts = find_cut_points(captured.graph)
    backends = piece_backends(captured, cuts, num_threads=1)
    profile = profile_costs(captured, cuts, micro_batch=2, num_runs=5, backends=backends)
    costs = costs_from_profile(captured.graph, cuts, profile)
    plan = make_plan(
        captured.graph, cuts, costs, PlanRequest(cluster=equal_cluster(2), num_stages=2)
    )
    assert plan.expected_period_s == plan.period_s
    sizes: list[int] = []

    def hop(num_bytes: int) -> float:
        sizes.append(num_bytes)
        return 4.0 + len(sizes)

    monkeypatch.setattr(local_plans, "measure_hop", hop)
    for num_cores in (2.0, 1.5, 1.0, 0.5):
        sizes.clear()
        monkeypatch.setattr(local_plans, "usable_cores", lambda n=num_cores: n)
        found = expect_here(captured, plan, backends, num_runs=5)
        expected = found.expected
        assert expected is not None
        first, second = expected.compute_s
        assert 0 < first < 1
        assert 0 < second < 1
        assert sizes == [2 * 3 * 8 * 8 * 4, 2 * plan.stages[0].output_bytes_per_sample,
                         2 * plan.stages[1].output_bytes_per_sample]  # fmt: skip
        assert expected.message_s == (5.0, 6.0, 7.0)
        assert expected.latency_s == pytest.approx(first + second + 18)
        by_cores = {
            cores: max(first + 5.5, second + 6.5, (first + second + 18) / cores)
            for cores in (2.0, 1.5)
        }
        assert expected.period_s == pytest.approx(by_cores.get(num_cores, expected.latency_s))
        assert found.expected_period_s == expected.period_s
    assert found.period_s == plan.period_s
    assert plan_from_json(plan_to_json(found)) == found
    with pytest.raises(PlanError, match="what can be measured is none"):
        expect_here(captured, plan, {"none": backends["torch"]})


class _Prepared(NamedTuple):
    captured: CapturedModel
    cuts: CutPoints
    backends: Mapping[str, PieceBackend]
    profile: Profile

    def make(self, profile: Profile) -> Plan:
        costs = costs_from_profile(self.captured.graph, self.cuts, profile)
        return make_plan(
            self.captured.graph,
            self.cuts,
            costs,
            PlanRequest(cluster=equal_cluster(2), num_stages=2),
        )


@pytest.fixture
def prepared() -> _Prepared:
    """A chain of four equal layers: by its profile in torch, the best cut is in the middle."""
    layers = [torch.nn.Linear(8, 8) for _ in range(4)]
    captured = capture_model(torch.nn.Sequential(*layers), torch.randn(2, 8))
    cuts = find_cut_points(captured.graph)
    backends = {"torch": piece_backends(captured, cuts, num_threads=1)["torch"]}
    profile = profile_costs(captured, cuts, num_runs=5, backends=backends)
    second = Timing(median_s=1.0, p10_s=1.0, p90_s=1.0, num_runs=5)
    pieces = tuple(
        msgspec.structs.replace(piece, timings={"torch": second}) for piece in profile.pieces
    )
    return _Prepared(captured, cuts, backends, msgspec.structs.replace(profile, pieces=pieces))


def _stages_take(
    monkeypatch: pytest.MonkeyPatch, seconds: Mapping[tuple[str, ...], tuple[float, ...]]
) -> list[tuple[str, ...]]:
    """Has stages that end so take so long; the list tells what was measured."""
    asked: list[tuple[str, ...]] = []

    def measure(_captured: object, plan: Plan, *_: object, **__: object) -> Plan:
        lasts = tuple(stage.last for stage in plan.stages)
        asked.append(lasts)
        expected = Expected(
            where="this machine",
            compute_s=seconds[lasts],
            message_s=(0.0, 0.0, 0.0),
            period_s=max(seconds[lasts]),
            latency_s=sum(seconds[lasts]),
        )
        return msgspec.structs.replace(plan, expected=expected)

    monkeypatch.setattr(local_plans, "expect_here", measure)
    return asked


def test_it_is_planned_again_with_what_the_stages_took(
    monkeypatch: pytest.MonkeyPatch, prepared: _Prepared
) -> None:
    # As wholes the second half takes three times what its pieces promise, so the cut moves on.
    seconds = {("1", "output"): (2.0, 6.0), ("2", "output"): (4.5, 4.0)}
    asked = _stages_take(monkeypatch, seconds)
    said: list[str] = []
    plan = plan_here(
        prepared.captured, prepared.make, prepared.profile, prepared.backends, progress=said.append
    )
    assert asked == [("1", "output"), ("2", "output")]
    assert plan.expected_period_s == 4.5
    assert [stage.last for stage in plan.stages] == ["2", "output"]
    assert said == [f"measuring the stages of plan {number} as wholes" for number in (1, 2)]


def test_of_the_plans_that_were_measured_the_best_is_kept(
    monkeypatch: pytest.MonkeyPatch, prepared: _Prepared
) -> None:
    seconds = {("1", "output"): (2.0, 6.0), ("2", "output"): (9.0, 4.0)}
    asked = _stages_take(monkeypatch, seconds)
    plan = plan_here(prepared.captured, prepared.make, prepared.profile, prepared.backends)
    assert len(asked) == 2
    assert plan.expected_period_s == 6.0


def test_what_cannot_be_planned_again_keeps_the_first_plan(
    monkeypatch: pytest.MonkeyPatch, prepared: _Prepared
) -> None:
    _stages_take(monkeypatch, {("1", "output"): (2.0, 6.0)})
    plans = iter([prepared.make(prepared.profile)])

    def make(_: Profile) -> Plan:
        for plan in plans:
            return plan
        raise PlanError("such a latency cannot be kept")

    plan = plan_here(prepared.captured, make, prepared.profile, prepared.backends)
    assert plan.expected_period_s == 6.0
    with pytest.raises(PlanError, match="such a latency"):
        plan_here(prepared.captured, make, prepared.profile, prepared.backends)


def test_a_larger_message_costs_more() -> None:
    assert 0 < measure_hop(0) < measure_hop(64 * 2**20)


def test_a_stage_that_a_backend_cannot_run_as_a_whole_is_planned_without_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    captured = capture_model(residual_net(), torch.randn(2, 3, 8, 8))
    cuts = find_cut_points(captured.graph)
    eager = piece_backends(captured, cuts, num_threads=1)["torch"]
    pieces = [0, *(point.position for point in cuts.points), len(captured.graph.operations)]
    allowed = {*pairwise(pieces), (0, pieces[-1])}

    def pieces_only(start: int, stop: int) -> Computation:
        if (start, stop) not in allowed:
            raise LookupError("too large")
        return eager(start, stop)

    backends: dict[str, PieceBackend] = {"torch": eager, "onnxruntime": pieces_only}
    profile = profile_costs(captured, cuts, num_runs=5, backends=backends)

    def make(profile: Profile) -> Plan:
        if "onnxruntime" in profile.pieces[0].timings:
            profile = with_backend(profile, "onnxruntime")
        costs = costs_from_profile(captured.graph, cuts, profile)
        return make_plan(
            captured.graph, cuts, costs, PlanRequest(cluster=equal_cluster(2), num_stages=2)
        )

    plan = plan_here(captured, make, profile, backends, num_runs=5)
    assert [stage.backend for stage in plan.stages] == ["torch", "torch"]
    assert "planned for torch alone: the stages of the plan do not run with onn" in caplog.text
    with pytest.raises(EngineError, match="do not run with onnxruntime: too large"):
        plan_here(captured, make, profile, {"onnxruntime": pieces_only}, num_runs=5)
