from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
import torch
from onnx import TensorProto, helper, save
from torch import nn

from cutset.backends.base import Computation
from cutset.backends.onnxruntime import OnnxruntimeBackend
from cutset.backends.torch_eager import EagerBackend
from cutset.capture.arguments import ExampleInputs
from cutset.capture.captured import Captured
from cutset.capture.onnx.lengths import _length_nodes
from cutset.capture.onnx.onnx_file import read_onnx_file
from cutset.capture.onnx.onnx_graph import capture_onnx
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.capture.torch_export import capture_model
from cutset.errors import EngineError
from cutset.graph.cuts import find_cut_points
from cutset.measure import profiling
from cutset.measure.profiling import piece_backends, profile_costs
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


class Slow(OnnxruntimeBackend):
    """Takes its time to load, so it says."""

    name = "slow"
    is_quick = False
    loaded: ClassVar[list[tuple[int, int]]] = []

    def load_piece(
        self, captured: Captured, start: int, stop: int, *, num_threads: int
    ) -> Computation:
        self.loaded.append((start, stop))
        return super().load_piece(captured, start, stop, num_threads=num_threads)


def test_of_a_slow_backend_the_whole_alone_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pieces cost the shares of the whole that they cost in the first backend."""
    usable = (EagerBackend(), Slow())
    monkeypatch.setattr(profiling, "usable_backends", lambda: usable)
    monkeypatch.setattr(profiling, "get_backend", lambda name: {b.name: b for b in usable}[name])
    captured = capture_model(residual_net(), torch.randn(2, 3, 8, 8))
    cuts = find_cut_points(captured.graph)
    assert list(piece_backends(captured, cuts, num_threads=1)) == ["torch"]
    Slow.loaded.clear()
    backends = piece_backends(captured, cuts, num_threads=1, also={"slow"})
    assert list(backends) == ["torch", "slow"]
    profile = profile_costs(captured, cuts, num_runs=5, backends=backends)
    assert set(Slow.loaded) == {(0, len(captured.graph.operations))}
    assert all(piece.timings["slow"].median_s > 0 for piece in profile.pieces)


def test_without_backends_the_first_that_can_is_measured(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "m", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 18)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")
    captured = capture_onnx(read_onnx_file(tmp_path / "m.onnx"))
    cuts = find_cut_points(captured.graph)
    assert list(profile_costs(captured, cuts, num_runs=5).whole) == ["onnxruntime"]
    with pytest.raises(EngineError, match="an ONNX file has no torch program for torch-compiled"):
        piece_backends(captured, cuts, num_threads=1, also={"torch-compiled"})
