from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.arguments import Arguments
from cutset.capture.parts import CapturedPart, capture_part, find_parts
from cutset.capture.pieces import build_piece
from cutset.capture.torch_export import capture_model
from cutset.errors import CaptureError, ModelError
from cutset.graph.cuts import find_cut_points
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


def test_the_parts_that_decide_nothing_are_offered_with_their_share_of_the_work() -> None:
    with pytest.raises(CaptureError, match="depends on the values"):
        capture_model(Detector(), torch.randn(2, 3, 8, 8))
    (offer,) = find_parts(Detector(), torch.randn(2, 3, 8, 8))
    # A pixel of 64: 3 x 9 x 8 + 2 x 8 x 9 x 8 multiply-adds, and of the 16 coarse ones 8 x 9 x 8;
    # the score takes 8 of each.
    backbone = 64 * (216 + 1152) + 16 * 576
    assert offer.path == "backbone"
    assert offer.work_share == pytest.approx(backbone / (backbone + 80 * 8))
    assert str(offer) == "backbone (99.3% of the work)"
    part = capture_part(Detector(), torch.randn(2, 3, 8, 8), "backbone")
    assert part.captured.output_names == ("fine", "coarse")
    assert part.work_share == offer.work_share


def test_the_model_is_itself_but_for_who_computes_the_part() -> None:
    model = Detector().eval()
    part = capture_part(model, torch.randn(2, 3, 8, 8), "backbone")
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
    part = capture_part(model, torch.randn(2, 3, 8, 8), "backbone")

    def fail(_values: tuple[Tensor, ...]) -> Sequence[Tensor]:
        raise ConnectionError

    with pytest.raises(ConnectionError), part.run_elsewhere(model, fail):
        model(torch.randn(2, 3, 8, 8))
    assert "forward" not in vars(model.backbone)


class Decides(nn.Module):
    """Keeps what is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


def _layers(width: int, last: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()).append(
        nn.Linear(8, last)
    )


class TwoWays(nn.Module):
    """One of two parts, by the values, after one that always runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.other = _layers(4, 4), _layers(4, 2), _layers(4, 2)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        y = self.first(x) * scale
        return self.one(y) if x.sum() > 0 else self.other(y)


class Routed(nn.Module):
    """Each of two experts gets the rows that are for it."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(_layers(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for sign, expert in zip((1, -1), self.experts, strict=True):
            rows = torch.where(x[:, 0] * sign >= 0)[0]
            y = y.index_add(0, rows, expert(x[rows]))
        return y


def test_a_model_without_such_a_part() -> None:
    assert find_parts(nn.Sequential(Decides()), torch.randn(2, 4)) == ()


def test_a_part_that_the_data_choose_is_not_offered() -> None:
    example = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    assert [offer.path for offer in find_parts(TwoWays(), example)] == ["first"]
    assert find_parts(Routed(), torch.tensor([[1.0, 2, 3, 4], [-1, 2, 3, 4]])) == ()


def test_a_part_that_the_data_choose_is_taken_where_it_is_named_and_that_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    example = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [-1, 2, 3, 4]])
    part = capture_part(Routed(), example, "experts.0")
    assert part.work_share == pytest.approx(2 / 3)
    assert "its rows are not the model's" in caplog.text
    assert "on the example 2" in caplog.text
    caplog.clear()
    capture_part(TwoWays(), Arguments(args=(example,), kwargs={"scale": 2.0}), "one")
    assert "whether the model calls it depends on the values" in caplog.text


def test_a_part_with_random_numbers_around_it_is_offered_as_what_it_is() -> None:
    class LeftOn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = _layers(4, 8), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(nn.functional.dropout(self.body(x), 0.5))

    (offer,) = find_parts(LeftOn(), torch.randn(2, 4))
    assert (offer.path, offer.work_share) == ("body", pytest.approx((32 + 64 + 64) / 168))


def test_a_part_may_lie_within_another() -> None:
    part = capture_part(Detector(), torch.randn(2, 3, 8, 8), "backbone.block")
    assert part.path == "backbone.block"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("neck", "no module 'neck' that could be a part; its outermost are first, one, other"),
        ("", "no module '' that could be a part"),
        ("unused", "the model calls it not at all"),
    ],
)
def test_a_part_that_cannot_be_one(path: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        capture_part(TwoWays(), torch.ones(2, 4), path)


def test_a_part_that_is_called_several_times_cannot_be_one() -> None:
    with pytest.raises(ModelError, match="calls it 2 times"):
        capture_part(Detector(), torch.randn(2, 3, 8, 8), "score")


def test_looking_for_parts_leaves_no_trace() -> None:
    class Counts(TwoWays):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.last: Tensor | None = None

        def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
            self.calls += 1
            self.last = x
            return super().forward(x, scale=scale)

    model = Counts()
    find_parts(model, torch.ones(2, 4))
    assert model.calls == 0
    assert model.last is None
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_part_that_cannot_be_cut_is_not_offered() -> None:
    class HeavyHead(Detector):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Conv2d(8, 1, 63, padding=31)

    # The score's work is larger, but it is called for every level, and is one operation only.
    offers = find_parts(HeavyHead(), torch.randn(2, 3, 8, 8))
    assert [offer.path for offer in offers] == ["backbone"]


def test_a_part_that_gets_other_rows_than_the_model_is_not_offered() -> None:
    class Proposals(nn.Module):
        """Three proposals a row go through the heavier part."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = _layers(4, 12), _layers(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores = self.head(torch.relu(self.body(x)).reshape(-1, 4))
            return scores[scores > 0]

    offers = find_parts(Proposals(), torch.randn(2, 4))
    assert [offer.path for offer in offers] == ["body"]
