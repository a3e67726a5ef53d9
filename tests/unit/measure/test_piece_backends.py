from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
import torch
from onnx import helper
from torch import nn

from cutset.capture.arguments import ExampleInputs
from cutset.capture.onnx.lengths import _length_nodes
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.capture.torch_export import capture_model
from cutset.errors import EngineError
from cutset.graph.cuts import find_cut_points
from cutset.measure.profiling import piece_backends
from cutset.tensors import TensorSpec
from models_of_trouble import ManyInsAndOuts, residual_net


class WithTokens(nn.Module):
    """Expands a token to the rows of its input, early and late; windows are rows as well.

    The token's place is a tensor that the exporter folds, under the name of a cut's tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.late = nn.Parameter(torch.randn(1, 1, 8))
        self.place = nn.Parameter(torch.randn(1, 5, 8))
        self.first, self.second, self.last = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        place = torch.cat([torch.zeros(1, 1, 8), self.place], 1)
        x = torch.cat([self.token.expand(rows, -1, -1), self.embed(x)], 1) + place
        x = torch.relu(self.first(x.view(rows * 2, 3, 8)))
        x = torch.relu(self.second(x))
        x = torch.cat([x.view(rows, 6, 8), self.late.expand(rows, -1, -1)], 1)
        return self.last(torch.relu(x))


@pytest.mark.parametrize(
    ("model", "example", "max_tensors"),
    [
        (residual_net(), torch.randn(2, 3, 8, 8), 1),
        (ManyInsAndOuts(), {"image": torch.randn(2, 6), "extra": torch.randn(2, 3)}, 2),
        (WithTokens(), torch.randn(2, 5, 8), 1),
    ],
)
def test_pieces_cut_out_of_one_onnx_model_give_the_models_numbers(
    model: nn.Module, example: ExampleInputs, max_tensors: int
) -> None:
    captured = capture_model(model, example)
    cuts = find_cut_points(captured.graph, max_tensors=max_tensors)
    pieces = piece_backends(captured, cuts, num_threads=1)["onnxruntime"]
    inputs = tuple(torch.randn(5, *t.shape[1:]) for t in captured.example_inputs)
    edges = [0, *(point.position for point in cuts.points), len(captured.graph.operations)]
    values = tuple(map(as_array, inputs))
    for start, stop in pairwise(edges):
        values = pieces(start, stop)(values)
    whole = captured.call(model.eval(), inputs)
    expected = tuple(whole.values()) if isinstance(whole, dict) else (whole,)
    for value, tensor in zip(values, expected, strict=True):
        torch.testing.assert_close(as_tensor(value), tensor, rtol=1e-4, atol=1e-5)


def test_what_onnx_cannot_express_is_not_measured_there() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i1(x)

    captured = capture_model(nn.Sequential(nn.Linear(4, 4), Odd()), torch.randn(2, 4))
    cuts = find_cut_points(captured.graph)
    assert list(piece_backends(captured, cuts, num_threads=1)) == ["torch"]
    assert "i1" in captured.no_models(())


def test_a_piece_that_gets_no_rows_says_so() -> None:
    node = helper.make_node("Shape", ["x"], ["lengths"], start=0, end=1)
    graph = capture_model(nn.Linear(4, 4), torch.randn(2, 4)).graph
    fixed = TensorSpec(name="table", shape=(3, 4), dtype="float32")
    (given,) = graph.inputs
    graph = msgspec.structs.replace(graph, inputs=(msgspec.structs.replace(given, name="x"),))
    with pytest.raises(EngineError, match="gets no tensor that tells it"):
        list(_length_nodes(node, graph, (fixed,)))
    with pytest.raises(EngineError, match="reads lengths of nobody"):
        list(_length_nodes(helper.make_node("Shape", ["nobody"], ["n"]), graph, (fixed,)))
