from __future__ import annotations

import pytest
import torch
from torch import nn

from cutset.capture.torch_export import capture_graph, capture_model
from cutset.errors import CaptureError
from models_of_trouble import (
    CalledTwice,
    ChangesAView,
    ManyInsAndOuts,
    ReadsTheOldName,
    StandsOnWeights,
    TiedWeights,
    residual_net,
)


def test_operations_know_their_modules_calls_and_sources() -> None:
    graph = capture_graph(CalledTwice(), torch.randn(2, 3, 4, 4))
    calls = [(op.modules[-1].path, op.modules[-1].call) for op in graph.operations]
    assert ("block.first", 0) in calls
    assert ("block.first", 1) in calls
    assert graph.operations[0].modules[0].path == ""
    assert graph.operations[0].source.startswith("models_of_trouble.py:")


def test_no_operation_changes_a_tensor() -> None:
    graph = capture_graph(residual_net(), torch.randn(2, 3, 8, 8))
    names = [operation.base_name for operation in graph.operations]
    assert "relu" in names
    assert not [name for name in names if name.endswith("_")]


@pytest.mark.parametrize("model_class", [ChangesAView, ReadsTheOldName])
def test_in_place_changes_keep_their_meaning(model_class: type[nn.Module]) -> None:
    model = model_class().eval()
    captured = capture_model(model, torch.randn(2, 6))
    rows = torch.randn(5, 6)
    module = torch.fx.GraphModule({}, captured.program)
    weights = [tensor for _, tensor in captured.weights.values()]
    (result,) = module(*weights, rows)
    assert torch.equal(result, model(rows))
    assert not [op for op in captured.graph.operations if op.base_name.endswith("_")]


def test_flops_and_parameters_are_those_of_a_row() -> None:
    graph = capture_graph(nn.Sequential(nn.Linear(5, 7), nn.ReLU()), torch.randn(4, 5))
    assert graph.flops == 5 * 7
    assert graph.num_parameters == 5 * 7 + 7
    assert graph.operations[0].parameters == ("0.weight", "0.bias")


def test_tied_weights_go_by_their_first_name() -> None:
    graph = capture_graph(TiedWeights(), torch.randn(2, 6))
    readers = [op.modules[-1].path for op in graph.operations if "encode.weight" in op.parameters]
    assert readers == ["encode", "again"]
    assert "again.weight" not in {parameter.name for parameter in graph.parameters}


def test_values_that_stand_on_weights_alone_are_no_operations() -> None:
    graph = capture_graph(StandsOnWeights(), torch.randn(2, 6))
    assert "softmax" not in {operation.base_name for operation in graph.operations}
    readers = [op.base_name for op in graph.operations if "table" in op.parameters]
    assert readers == ["add", "add"]


def test_keyword_inputs_and_named_outputs() -> None:
    captured = capture_model(
        ManyInsAndOuts(), {"image": torch.randn(2, 6), "extra": torch.randn(2, 3)}
    )
    assert [spec.name for spec in captured.graph.inputs] == ["image", "extra"]
    assert captured.output_names == ("features", "scores")
    model = ManyInsAndOuts().eval()
    result = captured.call(model, (torch.ones(3, 6), torch.ones(3, 3)))
    assert torch.equal(result["scores"], model(torch.ones(3, 6), extra=torch.ones(3, 3))["scores"])


def test_parameters_that_inference_never_reads_are_listed() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.Linear(3, 3)
            self.extra = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.main(x)
            return self.extra(out) if self.training else out

    graph = capture_graph(Auxiliary(), torch.randn(2, 3))
    assert [p.name for p in graph.parameters][2:] == ["extra.weight", "extra.bias"]
    assert {name for op in graph.operations for name in op.parameters} == {
        "main.weight",
        "main.bias",
    }


def test_one_row_is_too_few_to_leave_the_number_open() -> None:
    with pytest.raises(CaptureError, match="at least two rows"):
        capture_graph(nn.Linear(3, 3), torch.randn(1, 3))


def test_a_decision_on_values_is_located() -> None:
    class Decides(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Decides()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    with pytest.raises(CaptureError) as caught:
        capture_graph(Holder(), torch.randn(2, 3))
    assert caught.value.module_path == "inner"
    assert caught.value.source is not None
    assert caught.value.source.startswith("test_torch_export.py:")


def test_a_result_without_rows_is_refused() -> None:
    class Loss(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum()

    with pytest.raises(CaptureError, match="no row per sample"):
        capture_graph(Loss(), torch.randn(2, 3))


def test_a_model_that_keeps_state_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x * self.count

    with pytest.raises(CaptureError, match="'count'"):
        capture_graph(Counts(), torch.randn(2, 3))
