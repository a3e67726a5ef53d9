"""Codecs that the user allowed: used where they pay and keep the answers, else refused in words."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from cutset.bundles.agreement import AgreementEntry
from cutset.cluster.devices import Cluster, Device, Link
from cutset.errors import BundleError, MissingExtra, ModelError, PlanError
from cutset.planning import PlanRequest
from cutset.planning.deadline import TIME_LIMIT_S
from cutset.workflow import (
    AnswerLimits,
    PreparedModel,
    plan_model,
    plan_within,
    prepare_model,
    split_model,
)

SLOW = Cluster(
    devices=tuple(Device(name=name) for name in "ab"),
    link=Link(latency_s=0.0, bandwidth_bytes_per_s=4e4),
)
"""A message of 64 numbers takes 6.4 ms as they are, and 3.2 as fp16."""


class _Wide(nn.Module):
    """Two equal halves; between them numbers that a factor makes large."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 10)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)) * self.factor)


def prepared_with(factor: float = 1.0) -> PreparedModel:
    torch.manual_seed(0)
    return prepare_model(_Wide(factor).eval(), (torch.randn(2, 64),))


@pytest.fixture(scope="module")
def prepared() -> PreparedModel:
    return prepared_with()


def request(*allow: str) -> PlanRequest:
    return PlanRequest(num_stages=2, cluster=SLOW, allow=allow)


def codecs_of(plan) -> list[str]:
    return [stage.codec for stage in plan.stages]


def test_nothing_is_used_that_was_not_allowed(prepared: PreparedModel) -> None:
    plan, agreement = plan_within(prepared, request(), AnswerLimits(), costs="flops")
    assert codecs_of(plan) == ["none", "none"]
    assert agreement is None
    assert plan.period_s == pytest.approx(256 / 4e4)


def test_what_is_allowed_and_pays_is_used(prepared: PreparedModel) -> None:
    plan, agreement = plan_within(prepared, request("fp16"), AnswerLimits(), costs="flops")
    assert codecs_of(plan) == ["fp16", "none"]
    # 64 bytes of order and parameters, 128 of numbers.
    assert plan.stages[0].travelling_bytes == 192
    assert plan.period_s == pytest.approx(192 / 4e4)
    assert plan.is_proven
    assert agreement == AgreementEntry(
        num_rows=2,
        num_same=2,
        max_abs_error=pytest.approx(0.0, abs=1e-2),  # type: ignore[arg-type]
        calibrated=False,
    )


def test_what_does_not_pay_is_left_off(prepared: PreparedModel) -> None:
    fast = msgspec.structs.replace(SLOW, link=Link(latency_s=0.0, bandwidth_bytes_per_s=1e12))
    wanted = msgspec.structs.replace(request("fp16", "int8"), cluster=fast)
    plan = plan_model(prepared, wanted, costs="flops")
    assert codecs_of(plan) == ["none", "none"]
    assert "fp16 and int8: allowed and not used, as no better plan has it" in plan.notes


def test_numbers_that_are_too_large_refuse_the_codec_with_their_size() -> None:
    large = prepared_with(1e8)
    plan, agreement = plan_within(large, request("fp16"), AnswerLimits(), costs="flops")
    assert codecs_of(plan) == ["none", "none"]
    assert agreement is None
    assert (
        "fp16 is allowed and not used: codec fp16: it writes numbers up to 65504"
        in (plan.notes[-1])
    )


def test_the_milder_codec_takes_the_place_of_one_that_changes_too_much(
    prepared: PreparedModel,
) -> None:
    limits = AnswerLimits(max_error=2e-4)
    plan, agreement = plan_within(prepared, request("fp16", "int8"), limits, costs="flops")
    assert codecs_of(plan) == ["fp16", "none"]
    assert agreement is not None
    assert agreement.max_abs_error <= 2e-4
    assert plan.notes[-1].startswith("int8 is allowed and not used: outputs differ by up to 0.0")
    assert plan.notes[-1].endswith("at most 0.0002 is wanted")
    limits = AnswerLimits(max_error=0.0)
    plan, agreement = plan_within(prepared, request("fp16", "int8"), limits, costs="flops")
    assert codecs_of(plan) == ["none", "none"]
    assert len([note for note in plan.notes if "allowed and not used" in note]) == 2


@pytest.mark.parametrize(
    ("num_same", "least", "has_labels", "words"),
    [
        (97, None, True, ""),
        (96, None, True, "96 of 100 rows keep their top label (96.0%), at least 97.0% is wanted"),
        (96, None, False, ""),
        (99, 0.995, False, "99 of 100 rows keep their top label (99.0%), at least 99.5% is wanted"),
        (100, 1.0, True, ""),
    ],
)
def test_how_many_labels_must_stay(
    num_same: int, least: float | None, has_labels: bool, words: str
) -> None:
    found = AgreementEntry(num_rows=100, num_same=num_same, max_abs_error=0.5, calibrated=True)
    assert AnswerLimits(min_agreement=least).refusal(found, has_labels=has_labels) == words


def test_limits_that_do_not_fit_are_told() -> None:
    found = AgreementEntry(num_rows=2, num_same=None, max_abs_error=0.5, calibrated=True)
    with pytest.raises(PlanError, match="limit what outputs may differ: max_error"):
        AnswerLimits(min_agreement=0.9).refusal(found, has_labels=False)
    endless = msgspec.structs.replace(found, max_abs_error=float("inf"))
    assert "infinite" in AnswerLimits().refusal(endless, has_labels=False)
    for limits in ({"min_agreement": 1.1}, {"max_error": -1.0}, {"max_error": float("inf")}):
        with pytest.raises(ValueError, match="got"):
            AnswerLimits(**limits)
    with pytest.raises(ValueError, match="codec 'zip' is unknown"):
        PlanRequest(num_stages=2, allow=("zip",))
    with pytest.raises(TypeError, match="allow is a tuple of names"):
        PlanRequest(num_stages=2, allow="fp16")  # type: ignore[arg-type]


def test_rows_for_calibration_come_from_files(prepared: PreparedModel, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 64)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    limits = AnswerLimits(calibration=(tmp_path / "rows.npy",))
    _, agreement = plan_within(prepared, request("int8"), limits, costs="flops", batch_size=3)
    assert agreement is not None
    assert agreement.num_rows == 7
    assert agreement.calibrated
    with pytest.raises(ModelError, match="does not exist"):
        plan_within(
            prepared,
            request("int8"),
            AnswerLimits(calibration=(tmp_path / "none.npy",)),
            costs="flops",
        )


def test_a_bundle_of_such_a_plan_is_proven(prepared: PreparedModel, tmp_path: Path) -> None:
    plan = plan_model(prepared, request("int8"), costs="flops")
    bundle = split_model(prepared, plan, tmp_path / "b.cutset")
    assert bundle.verification.ok
    assert bundle.manifest.format == "cutset-bundle/3"
    assert bundle.manifest.stages[0].output_codecs == ("int8",)
    assert bundle.verification.agreement == bundle.manifest.agreement


def test_a_plan_whose_codecs_do_not_fit_the_model_is_not_written(tmp_path: Path) -> None:
    large = prepared_with(1e8)
    plan = plan_model(large, request("fp16"), costs="flops")
    with pytest.raises(BundleError, match="the plan's codecs do not fit the model: codec fp16"):
        split_model(large, plan, tmp_path / "b.cutset")
    assert list(tmp_path.iterdir()) == []


def test_codecs_are_measured_and_take_time(prepared: PreparedModel) -> None:
    wanted = msgspec.structs.replace(request("int8"), time_limit_s=TIME_LIMIT_S)
    plan, _ = plan_within(prepared, wanted, AnswerLimits())
    first, second = plan.stages
    assert first.codec == "int8"
    assert 0 < first.encode_s <= first.overhead_s
    assert 0 < second.decode_s <= second.overhead_s
    assert plan.latency_s == pytest.approx(
        sum(s.compute_s + s.coding_s for s in plan.stages) + first.send_s
    )


class _Sparse(nn.Module):
    """Between its halves mostly zeros, one number in eight apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 512), nn.Linear(512, 10)
        with torch.no_grad():
            self.first.bias[torch.arange(512) % 8 != 0] = -100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


def test_packing_is_planned_by_what_it_makes_of_the_models_own_numbers(tmp_path: Path) -> None:
    pytest.importorskip("zstandard", reason="needs zstandard: pip install 'cutset[zstd]'")
    torch.manual_seed(0)
    prepared = prepare_model(_Sparse().eval(), (torch.randn(2, 64),))
    plain, _ = plan_within(prepared, request(), AnswerLimits(), costs="flops")
    plan, agreement = plan_within(prepared, request("zstd"), AnswerLimits(), costs="flops")
    assert codecs_of(plan) == ["zstd", "none"]
    assert agreement is None
    assert plain.stages[0].travelling_bytes == 2048
    assert plan.stages[0].travelling_bytes < 600
    assert plan.period_s < 0.3 * plain.period_s
    both, agreement = plan_within(
        prepared, request("zstd", "int8"), AnswerLimits(max_error=1.0), costs="flops"
    )
    assert codecs_of(both) == ["int8+zstd", "none"]
    assert agreement is not None
    assert both.stages[0].travelling_bytes < plan.stages[0].travelling_bytes
    # Whoever refuses int8 keeps what is lossless.
    kept, agreement = plan_within(
        prepared, request("zstd", "int8"), AnswerLimits(max_error=0.0), costs="flops"
    )
    assert codecs_of(kept) == ["zstd", "none"]
    assert agreement is None
    assert any(note.startswith("int8 is allowed and not used") for note in kept.notes)
    bundle = split_model(prepared, plan, tmp_path / "packed.cutset")
    assert bundle.manifest.format == "cutset-bundle/3"
    assert not bundle.manifest.is_coded
    assert bundle.verification.bit_exact


def test_what_packs_and_is_not_installed_is_said_in_a_line(
    prepared: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtra, match=r"codec zstd needs .*: pip install 'cutset\[zstd\]'"):
        plan_model(prepared, request("zstd"), costs="flops")
