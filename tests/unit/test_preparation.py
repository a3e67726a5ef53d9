from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cutset.errors import CaptureError, ModelError
from cutset.graph.capture import capture_model
from cutset.models import FoundModel
from cutset.preparation import PreparedModel, prepare_found
from models_of_trouble import Detector, Pyramid


def _found(model: torch.nn.Module) -> FoundModel:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return FoundModel(model=model.eval(), name="mine", weights="", example_inputs=(images,))


class _Session:
    """Answers as a session of a bundle of `prepared` does, from the module itself."""

    def __init__(self, prepared: PreparedModel) -> None:
        captured = prepared.captured
        self.bundle = SimpleNamespace(
            manifest=SimpleNamespace(
                graph=captured.graph, output_names=captured.output_names, model=prepared.name
            )
        )
        self.twin = Pyramid().eval()
        self.twin.load_state_dict(prepared.module.state_dict())
        self.calls = 0

    def run(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        answer: dict[str, Tensor] = self.twin(x)
        return answer


def test_a_model_that_decides_on_values_is_prepared_by_its_part() -> None:
    prepared = prepare_found(_found(Detector()))
    assert prepared.part is not None
    assert prepared.part.path == "backbone"
    assert prepared.name == "mine, part backbone"
    assert prepared.module is prepared.found.model.backbone
    assert "depends on the values" in prepared.refusal


def test_a_model_that_can_be_captured_has_no_part() -> None:
    prepared = prepare_found(_found(Pyramid()))
    assert prepared.part is None
    assert prepared.module is prepared.found.model
    session: Any = None
    with pytest.raises(ModelError, match="split whole"), prepared.part_in(session):
        pass


def test_without_a_part_that_can_be_cut_the_whole_model_s_reason_is_given() -> None:
    class Decides(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    model = torch.nn.Sequential(Decides())
    with pytest.raises(CaptureError) as whole:
        capture_model(model, torch.randn(2, 3, 8, 8))
    with pytest.raises(CaptureError) as prepared:
        prepare_found(_found(model))
    assert str(prepared.value) == str(whole.value)


def test_a_session_does_the_part_s_work_within_the_caller_s_own_object() -> None:
    prepared = prepare_found(_found(Detector()))
    session: Any = _Session(prepared)
    model = prepared.found.model
    rows = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = model(rows)
        with prepared.part_in(session) as whole:
            assert whole is model
            found = model(rows)
    assert session.calls == 1
    assert len(expected) > 0
    assert torch.equal(found, expected)


def test_a_session_of_another_bundle_is_refused() -> None:
    prepared = prepare_found(_found(Detector()))
    session: Any = _Session(prepared)
    session.bundle.manifest.output_names = ("0", "1")
    with pytest.raises(ModelError, match="holds 'mine, part backbone'"), prepared.part_in(session):
        pass
