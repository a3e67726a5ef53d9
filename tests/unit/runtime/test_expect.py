from __future__ import annotations

import pytest
import torch

from cutset.backends.pieces import piece_backends
from cutset.costs.model import costs_from_profile
from cutset.costs.profile import profile_costs
from cutset.devices import equal_cluster
from cutset.errors import PlanError
from cutset.graph.capture import capture_model
from cutset.graph.cuts import find_cut_points
from cutset.planning.make import make_plan
from cutset.planning.plan import plan_from_json, plan_to_json
from cutset.runtime import expect
from cutset.runtime.expect import expect_here
from cutset.runtime.hop import measure_hop
from models_of_trouble import residual_net


def test_a_plan_gets_its_stages_as_wholes_and_its_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    captured = capture_model(residual_net(), torch.randn(2, 3, 8, 8))
    cuts = find_cut_points(captured.graph)
    backends = piece_backends(captured, cuts, num_threads=1)
    profile = profile_costs(captured, cuts, micro_batch=2, num_runs=5, backends=backends)
    costs = costs_from_profile(captured.graph, cuts, profile)
    plan = make_plan(captured.graph, cuts, costs, equal_cluster(2), num_stages=2)
    assert plan.expected_period_s == plan.period_s
    sizes: list[int] = []

    def hop(num_bytes: int) -> float:
        sizes.append(num_bytes)
        return 4.0 + len(sizes)

    monkeypatch.setattr(expect, "measure_hop", hop)
    for num_cores in (2, 1):
        sizes.clear()
        monkeypatch.setattr(expect, "num_usable_cores", lambda n=num_cores: n)
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
        by_cores = {2: max(first + 5.5, second + 6.5, (first + second + 18) / 2)}
        assert expected.period_s == pytest.approx(by_cores.get(num_cores, expected.latency_s))
        assert found.expected_period_s == expected.period_s
    assert found.period_s == plan.period_s
    assert plan_from_json(plan_to_json(found)) == found
    with pytest.raises(PlanError, match="what can be measured is none"):
        expect_here(captured, plan, {"none": backends["torch"]})


def test_a_larger_message_costs_more() -> None:
    assert 0 < measure_hop(0) < measure_hop(64 * 2**20)
