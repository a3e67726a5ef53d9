from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from cutset.errors import CaptureError
from cutset.graph.capture import capture_model
from cutset.graph.cuts import find_cut_points
from cutset.graph.parts import CapturedPart, capture_largest_part
from cutset.graph.pieces import build_piece
from models_of_trouble import Detector


def _chain(part: CapturedPart, max_tensors: int) -> object:
    captured = part.captured
    cuts = find_cut_points(captured.graph, max_tensors=max_tensors)
    edges = [0, *(point.position for point in cuts.points), len(captured.graph.operations)]
    assert len(edges) > 2
    pieces = [build_piece(captured, start, stop) for start, stop in pairwise(edges)]

    def run(values: tuple[Tensor, ...]) -> Sequence[Tensor]:
        for piece in pieces:
            values = piece(*values)
        return values

    return run


def test_the_largest_part_that_decides_nothing_is_found() -> None:
    with pytest.raises(CaptureError, match="depends on the values"):
        capture_model(Detector(), torch.randn(2, 3, 8, 8))
    part = capture_largest_part(Detector(), torch.randn(2, 3, 8, 8))
    assert part.path == "backbone"
    assert part.captured.output_names == ("fine", "coarse")


def test_the_model_is_itself_but_for_who_computes_the_part() -> None:
    model = Detector().eval()
    part = capture_largest_part(model, torch.randn(2, 3, 8, 8))
    rows = torch.randn(5, 3, 8, 8)
    calls = 0
    chain = _chain(part, 2)

    def run(values: tuple[Tensor, ...]) -> Sequence[Tensor]:
        nonlocal calls
        calls += 1
        results: Sequence[Tensor] = chain(values)  # type: ignore[operator]
        return results

    with torch.no_grad():
        expected = model(rows)
        with part.run_elsewhere(model, run):
            found = model(rows)
        after = model(rows)
    assert calls == 1
    assert len(expected) > 0
    assert torch.equal(found, expected)
    assert torch.equal(after, expected)


def test_the_model_is_itself_again_after_a_failure() -> None:
    model = Detector().eval()
    part = capture_largest_part(model, torch.randn(2, 3, 8, 8))

    def fail(_values: tuple[Tensor, ...]) -> Sequence[Tensor]:
        raise ConnectionError

    with pytest.raises(ConnectionError), part.run_elsewhere(model, fail):
        model(torch.randn(2, 3, 8, 8))
    assert "forward" not in vars(model.backbone)


def test_a_model_without_such_a_part() -> None:
    class Decides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0]

    with pytest.raises(CaptureError, match="neither the model nor a module in it"):
        capture_largest_part(nn.Sequential(Decides()), torch.randn(2, 4))


def test_a_part_may_be_named() -> None:
    part = capture_largest_part(Detector(), torch.randn(2, 3, 8, 8), path="backbone.block")
    assert part.path == "backbone.block"
    with pytest.raises(CaptureError, match="neither the model nor a module in it"):
        capture_largest_part(Detector(), torch.randn(2, 3, 8, 8), path="neck")


def test_a_part_that_can_be_cut_comes_first() -> None:
    class HeavyHead(Detector):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Conv2d(8, 1, 63, padding=31)

    model = HeavyHead()
    # The score's work is larger, but it is called for every level, and is one operation only.
    assert capture_largest_part(model, torch.randn(2, 3, 8, 8)).path == "backbone"
