from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from cutset.capture.captured_model import CapturedModel
from cutset.capture.pieces import build_piece, export_piece
from cutset.capture.torch_export import capture_model
from cutset.graph.cuts import find_cut_points
from models_of_trouble import (
    ManyInsAndOuts,
    ReadsTheBatchSize,
    StandsOnWeights,
    TiedWeights,
    residual_net,
)

MODELS: list[tuple[nn.Module, Any]] = [
    (residual_net(), torch.randn(2, 3, 8, 8)),
    (TiedWeights(), torch.randn(2, 6)),
    (ReadsTheBatchSize(), torch.randn(2, 8)),
    (StandsOnWeights(), torch.randn(2, 6)),
    (ManyInsAndOuts(), {"image": torch.randn(2, 6), "extra": torch.randn(2, 3)}),
]


def _chain(captured: CapturedModel, inputs: tuple[torch.Tensor, ...], max_tensors: int) -> Any:
    cuts = find_cut_points(captured.graph, max_tensors=max_tensors)
    edges = [0, *(point.position for point in cuts.points), len(captured.graph.operations)]
    assert len(edges) > 2
    values = inputs
    with torch.no_grad():
        for start, stop in pairwise(edges):
            values = build_piece(captured, start, stop)(*values)
    return values


@pytest.mark.parametrize(("model", "example"), MODELS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_the_pieces_equal_the_whole(model: nn.Module, example: Any, num_rows: int) -> None:
    captured = capture_model(model, example)
    inputs = tuple(torch.randn(num_rows, *t.shape[1:]) for t in captured.example_inputs)
    whole = captured.call(model, inputs)
    expected = list(whole.values()) if isinstance(whole, dict) else [whole]
    for piece_value, value in zip(_chain(captured, inputs, 2), expected, strict=True):
        assert torch.equal(piece_value, value)


def test_a_piece_holds_its_own_weights_only() -> None:
    captured = capture_model(residual_net(), torch.randn(2, 3, 8, 8))
    cut = next(p for p in find_cut_points(captured.graph).points if p.after == "3")
    piece = build_piece(captured, 0, cut.position)
    assert piece.weight_names == (
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "1.running_mean",
        "1.running_var",
    )
    assert set(piece.state_dict()) == set(piece.weight_names)


def test_an_exported_piece_takes_any_number_of_rows_and_names_no_files() -> None:
    captured = capture_model(ReadsTheBatchSize(), torch.randn(2, 8))
    cut = next(
        p for p in find_cut_points(captured.graph).points if p.tensors[0].shape[0] == "batch*4"
    )
    piece = build_piece(captured, cut.position, len(captured.graph.operations))
    assert piece.input_specs[0].shape == ("batch*4", 2)
    exported = export_piece(piece, (torch.randn(8, 2),))
    rows = torch.randn(20, 2)
    assert torch.equal(exported.module()(rows)[0], piece(rows)[0])
    assert not [node for node in exported.graph.nodes if __file__ in str(node.meta)]
