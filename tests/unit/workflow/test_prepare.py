from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cutset.capture.torch_export import capture_model
from cutset.errors import CaptureError, ModelError
from cutset.models import FoundModel
from cutset.workflow import PreparedModel, prepare_found, prepare_model
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

    def run_named(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        answer: dict[str, Tensor] = self.twin(x)
        return answer


def test_a_model_that_decides_on_values_is_refused_with_the_parts_that_could_be_had() -> None:
    with pytest.raises(CaptureError, match="depends on the values") as refused:
        prepare_found(_found(Detector()))
    text = str(refused.value)
    assert "if you name it (--part backbone): backbone (99.3% of the work). Its results" in text
    ((path, share),) = refused.value.parts
    assert (path, round(share, 4)) == ("backbone", 0.9934)


def test_a_part_is_prepared_where_it_is_named() -> None:
    prepared = prepare_found(_found(Detector()), part="backbone")
    assert prepared.part is not None
    assert prepared.part.path == "backbone"
    assert prepared.name == "mine, part backbone (99.3% of the work)"
    assert prepared.module is prepared.found.model.backbone
    entry = prepared.part_entry
    assert entry is not None
    assert (entry.path, round(entry.work_share, 4)) == ("backbone", 0.9934)


def test_a_part_of_a_model_that_could_be_captured_whole() -> None:
    prepared = prepare_found(_found(Pyramid()), part="block")
    assert prepared.name.startswith("mine, part block (")
    assert prepared.module is prepared.found.model.block


def test_a_module_is_prepared_with_example_inputs() -> None:
    model = Pyramid().train()
    prepared = prepare_model(model, torch.randn(2, 3, 8, 8))
    assert prepared.name == "Pyramid"
    assert prepared.module is model
    assert model.training is False
    assert [spec.name for spec in prepared.captured.graph.inputs] == ["x"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((Pyramid(),), r"Pyramid\) does not tell what it takes; give example inputs"),
        ((Pyramid(), "x"), "example inputs of Pyramid are str; expected a tensor"),
        ((Pyramid(), (1, 2)), "are tuple of int, int; expected a tensor"),
        ((3,), r"int is no model: expected a torch\.nn\.Module with example inputs"),
        (("resnet18", torch.zeros(2)), "'resnet18' comes with its own example inputs"),
        ((_found(Pyramid()),), "give it to prepare_found"),
    ],
)
def test_what_is_no_model_is_refused_in_words(given: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        prepare_model(*given)


class _Empty(torch.nn.Module):
    def __init__(self, returned: str) -> None:
        super().__init__()
        self.returned, self.linear = returned, torch.nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        results = {"input": x, "twice": (x, x), "nothing": None, "empty": {}, "unused": x}
        self.linear(x)
        return results[self.returned]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("input", "the model computes nothing, what it returns are its inputs"),
        ("twice", "the model computes nothing, what it returns are its inputs"),
        ("unused", "the model computes nothing, what it returns are its inputs"),
        ("nothing", "the model returns no tensor"),
        ("empty", "the model returns no tensor"),
    ],
)
def test_a_model_of_which_nothing_can_be_split(returned: str, message: str) -> None:
    with pytest.raises(CaptureError, match=f"there is nothing to split: {message}"):
        prepare_found(_found(_Empty(returned)))


def test_preparing_leaves_no_trace_in_the_model() -> None:
    class Grid(Pyramid):
        """Keeps a grid for the shape that it saw last."""

        def __init__(self) -> None:
            super().__init__()
            self.shape: torch.Size | None = None

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            if self.shape != x.shape:
                self.grid, self.shape = torch.arange(x.shape[-1]).type_as(x), x.shape
            return super().forward(x * self.grid)

    model = Grid()
    for _ in range(2):
        assert len(prepare_found(_found(model)).cuts.points) > 0
        assert model.shape is None
        assert not hasattr(model, "grid")


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
    prepared = prepare_found(_found(Detector()), part="backbone")
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
    prepared = prepare_found(_found(Detector()), part="backbone")
    session: Any = _Session(prepared)
    session.bundle.manifest.output_names = ("0", "1")
    with pytest.raises(ModelError, match="holds 'mine, part backbone "), prepared.part_in(session):
        pass
