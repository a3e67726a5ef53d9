from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.pieces import build_piece
from cutset.capture.torch_export import capture_model
from cutset.errors import CaptureError
from cutset.graph.cuts import find_cut_points
from models_of_trouble import Contexts


def test_operations_under_a_context_are_operations_like_others() -> None:
    model = Contexts().eval()
    captured = capture_model(model, torch.randn(2, 6))
    assert [operation.base_name for operation in captured.graph.operations] == [
        "linear",
        "relu",
        "linear",
        "relu",
        "linear",
        "relu",
        "linear",
    ]
    assert [op.modules[-1].path for op in captured.graph.operations if op.flops] == [
        "first",
        "second",
        "third",
        "last",
    ]


def test_a_model_may_be_cut_inside_a_region() -> None:
    model = Contexts().eval()
    captured = capture_model(model, torch.randn(2, 6))
    cuts = find_cut_points(captured.graph)
    assert [(point.position, point.kind) for point in cuts.points] == [
        (2, "activation"),
        (4, "activation"),
        (6, "activation"),
    ]
    rows = torch.randn(5, 6)
    with torch.no_grad():
        (middle,) = build_piece(captured, 0, cuts.points[1].position)(rows)
        (result,) = build_piece(captured, cuts.points[1].position, 7)(middle)
        assert torch.equal(result, model(rows))


def test_a_region_that_ends_the_model() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.layer(x)
            with torch.enable_grad():
                # A change through a view, so that torch rewrites the program as a whole.
                hidden[:, 0] += 1.0
                return torch.relu(hidden)

    model = Ends().eval()
    captured = capture_model(model, torch.randn(2, 4))
    rows = torch.randn(3, 4)
    with torch.no_grad():
        (result,) = build_piece(captured, 0, len(captured.graph.operations))(rows)
        assert torch.equal(result, model(rows))


def test_autocast_inside_the_model_is_refused_with_advice() -> None:
    class Casts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return torch.relu(self.layer(x))

    with pytest.raises(CaptureError, match=r"autocast to bfloat16 .*model\.bfloat16\(\)") as caught:
        capture_model(Casts(), torch.randn(2, 4))
    assert caught.value.source is not None
    assert caught.value.source.startswith("test_regions.py:")


def test_control_flow_is_refused_where_it_stands() -> None:
    class Chooses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))
            return result

    model = nn.Sequential(nn.Linear(4, 4), Chooses())
    with pytest.raises(CaptureError, match=r"control flow .*torch\.where") as caught:
        capture_model(model, torch.randn(2, 4))
    assert caught.value.module_path == "1"
    assert caught.value.operation == "cond"
