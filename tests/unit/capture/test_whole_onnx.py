"""One ONNX form of a model, out of which its stages and its measured pieces are cut."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from cutset.bundles.open import open_bundle
from cutset.bundles.write.export import export_bundle
from cutset.capture import whole_onnx
from cutset.capture.torch_export import capture_model
from cutset.costs.cost_model import costs_from_flops
from cutset.errors import EngineError
from cutset.graph.cuts import find_cut_points
from cutset.measure.profiling import piece_backends
from cutset.planning import PlanRequest, make_plan


class Odd(nn.Module):
    """What ONNX has no words for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.i1(x)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that whole models were exported to."""
    paths: list[Path] = []
    export = whole_onnx.export_onnx

    def counted(exported: torch.export.ExportedProgram, path: Path, **names: list[str]) -> str:
        paths.append(path)
        return export(exported, path, **names)

    monkeypatch.setattr(whole_onnx, "export_onnx", counted)
    return paths


def test_what_is_measured_and_what_is_written_are_cut_out_of_one_export(
    exports: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    captured = capture_model(model, torch.randn(2, 4))
    graph, cuts = captured.graph, find_cut_points(captured.graph)
    piece_backends(captured, cuts, num_threads=1)
    plan = make_plan(graph, cuts, costs_from_flops(graph, cuts), PlanRequest(num_stages=3))
    # A stage that were exported by itself would have no ONNX model.
    monkeypatch.setattr("cutset.capture.piece_files.export_onnx", lambda *_a, **_k: "by itself")
    path = export_bundle(model, plan, tmp_path / "b.cutset", captured=captured)
    stages = open_bundle(path).manifest.stages
    assert [stage.model for stage in stages] == [f"stage-{k}/model.onnx" for k in range(3)]
    assert len(exports) == 1


def test_other_ends_than_before_are_exported_anew(exports: list[Path]) -> None:
    captured = capture_model(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4))
    first = whole_onnx.whole_onnx(captured, ())
    assert whole_onnx.whole_onnx(captured, captured.graph.inputs) is first
    between = captured.graph.spec_of(captured.graph.operations[0].name)
    assert whole_onnx.whole_onnx(captured, (between,)) is not first
    assert len(exports) == 2


def test_a_stage_that_onnx_has_words_for_is_exported_by_itself(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 4), Odd())
    captured = capture_model(model, torch.randn(2, 4))
    graph, cuts = captured.graph, find_cut_points(captured.graph)
    plan = make_plan(graph, cuts, costs_from_flops(graph, cuts), PlanRequest(num_stages=2))
    path = export_bundle(model, plan, tmp_path / "b.cutset", captured=captured)
    first, last = open_bundle(path).manifest.stages
    assert first.model == "stage-0/model.onnx"
    assert last.model is None
    assert "i1" in last.model_missing


def test_why_there_is_no_form_is_said_again_and_keeps_no_model_alive(exports: list[Path]) -> None:
    captured = capture_model(nn.Sequential(nn.Linear(4, 4), Odd()), torch.randn(2, 4))
    for _ in range(2):
        with pytest.raises(EngineError, match=r"the model has no ONNX form: .*i1"):
            whole_onnx.whole_onnx(captured, ())
    assert len(exports) == 1
    here = weakref.ref(captured)
    del captured
    gc.collect()
    assert here() is None


class TwiceAsMany(nn.Module):
    """Takes each row and its mirror image as two, and adds what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.relu(self.first(torch.cat([x, x.flip(-1)])))
        one, other = torch.relu(self.last(both)).chunk(2)
        return one + other


def test_a_length_that_the_exporter_does_not_describe_is_worked_out(tmp_path: Path) -> None:
    model = TwiceAsMany().eval()
    captured = capture_model(model, torch.randn(2, 4))
    graph, cuts = captured.graph, find_cut_points(captured.graph)
    plan = make_plan(graph, cuts, costs_from_flops(graph, cuts), PlanRequest(num_stages=2))
    path = export_bundle(model, plan, tmp_path / "b.cutset", captured=captured)
    assert [stage.model_missing for stage in open_bundle(path).manifest.stages] == ["", ""]
