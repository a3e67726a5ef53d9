from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from cutset.backends.pieces import OnnxPieces, piece_backends
from cutset.errors import EngineError
from cutset.graph.arguments import ExampleInputs
from cutset.graph.capture import capture_model
from cutset.graph.cuts import find_cut_points
from models_of_trouble import ManyInsAndOuts, residual_net


@pytest.mark.parametrize(
    ("model", "example", "max_tensors"),
    [
        (residual_net(), torch.randn(2, 3, 8, 8), 1),
        (ManyInsAndOuts(), {"image": torch.randn(2, 6), "extra": torch.randn(2, 3)}, 2),
    ],
)
def test_pieces_cut_out_of_one_onnx_model_give_the_models_numbers(
    model: nn.Module, example: ExampleInputs, max_tensors: int
) -> None:
    captured = capture_model(model, example)
    cuts = find_cut_points(captured.graph, max_tensors=max_tensors)
    pieces = OnnxPieces(captured, cuts, num_threads=1)
    inputs = tuple(torch.randn(5, *t.shape[1:]) for t in captured.example_inputs)
    edges = [0, *(point.position for point in cuts.points), len(captured.graph.operations)]
    values = inputs
    for start, stop in pairwise(edges):
        values = pieces(start, stop)(values)
    whole = captured.call(model.eval(), inputs)
    expected = tuple(whole.values()) if isinstance(whole, dict) else (whole,)
    for value, tensor in zip(values, expected, strict=True):
        torch.testing.assert_close(value, tensor, rtol=1e-4, atol=1e-5)


def test_what_onnx_cannot_express_is_not_measured_there() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i1(x)

    captured = capture_model(nn.Sequential(nn.Linear(4, 4), Odd()), torch.randn(2, 4))
    cuts = find_cut_points(captured.graph)
    assert list(piece_backends(captured, cuts, num_threads=1)) == ["torch"]
    with pytest.raises(EngineError, match="i1"):
        OnnxPieces(captured, cuts, num_threads=1)
