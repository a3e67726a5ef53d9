from __future__ import annotations

import pytest
import torch
from torch import nn

from cutset.capture.torch_export import capture_graph
from cutset.graph.cuts import CutPoints, find_cut_points
from models_of_trouble import ForkAtTheRoot, ReadsTheBatchSize, SelfGated, residual_net


@pytest.fixture(scope="module")
def residual_cuts() -> CutPoints:
    return find_cut_points(capture_graph(residual_net(), torch.randn(2, 3, 8, 8)))


def _cuts(model: nn.Module, *shape: int, **options: int) -> CutPoints:
    return find_cut_points(capture_graph(model, torch.randn(2, *shape)), **options)


def _reasons(cuts: CutPoints) -> dict[str, str]:
    return {point.after: point.reason for point in cuts.refused}


def test_candidates_and_their_kinds(residual_cuts: CutPoints) -> None:
    assert [(point.after, point.kind) for point in residual_cuts.points] == [
        ("2", "activation"),
        ("3", "pool"),
        ("4", "block"),
        ("5", "block"),
        ("6", "block"),
        ("7", "block"),
        ("8", "block"),
        ("11", "pool"),
        ("13", "head"),
    ]


def test_what_crosses(residual_cuts: CutPoints) -> None:
    by_name = {point.after: point for point in residual_cuts.points}
    assert by_name["3"].tensors[0].shape == ("batch", 8, 4, 4)
    assert by_name["3"].bytes_per_sample == 8 * 4 * 4 * 4
    assert by_name["11"].tensors[0].shape == ("batch", 12)


def test_sums_grow_along_the_model(residual_cuts: CutPoints) -> None:
    stem_flops = 8 * 8 * 8 * 3 * 9
    block_flops = 2 * 4 * 4 * 8 * 8 * 9
    by_name = {point.after: point for point in residual_cuts.points}
    assert by_name["2"].cumulative_flops == stem_flops
    assert by_name["4"].cumulative_flops == stem_flops + block_flops
    # A weight and a bias of the convolution, a weight and a bias of the normalisation.
    assert by_name["2"].cumulative_parameters == 8 * 3 * 9 + 8 + 8 + 8


def test_every_position_is_judged_once(residual_cuts: CutPoints) -> None:
    graph = capture_graph(residual_net(), torch.randn(2, 3, 8, 8))
    positions = [p.position for p in (*residual_cuts.points, *residual_cuts.refused)]
    assert sorted(positions) == list(range(1, len(graph.operations)))
    names = [p.after for p in (*residual_cuts.points, *residual_cuts.refused)]
    assert len(set(names)) == len(names)


def test_reasons_are_words_a_person_can_use(residual_cuts: CutPoints) -> None:
    reasons = _reasons(residual_cuts)
    assert reasons["0"] == "batch_norm of 1 stays with conv2d of 0, whose output it normalises"
    assert reasons["1"] == "relu of 2 stays with batch_norm of 1, whose output it activates"
    assert reasons["4.first"] == "inside 4 (ResidualBlock): 2 tensors live"
    assert reasons["8.left"] == "inside 8 (Branches): 2 tensors live"
    assert reasons["9"].endswith("whose output it only rearranges")


def test_a_block_that_begins_with_a_normalisation_can_be_cut_off_before_it() -> None:
    class PreActivation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(4)
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(torch.relu(self.norm(x)))

    cuts = _cuts(nn.Sequential(PreActivation(), PreActivation()), 4, 6, 6)
    assert [(point.after, point.kind) for point in cuts.points] == [
        ("relu", "activation"),
        ("0", "block"),
        ("relu_1", "activation"),
    ]


def test_an_activation_written_by_hand_stays_with_its_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), SelfGated(), nn.Linear(4, 4), SelfGated())
    cuts = _cuts(model, 4)
    assert [point.after for point in cuts.points] == ["1"]
    assert "activates" in _reasons(cuts)["0"]


def test_a_number_of_rows_that_is_used_later_is_not_live() -> None:
    cuts = _cuts(ReadsTheBatchSize(), 8)
    assert all(len(point.tensors) == 1 for point in cuts.points)
    shapes = [point.tensors[0].shape for point in cuts.points]
    assert ("batch*4", 2) in shapes


def test_several_tensors_may_cross_where_allowed() -> None:
    one = _cuts(ForkAtTheRoot(), 6)
    two = _cuts(ForkAtTheRoot(), 6, max_tensors=2)
    assert [point.after for point in one.points] == ["cat"]
    assert [point.after for point in two.points] == [
        "left.1",
        "left.3",
        "right.1",
        "right.3",
        "cat",
    ]
    assert _reasons(one)["left.3"] == (
        "2 tensors live, at most 1 may cross (max_tensors=2 would allow it)"
    )
    at_right = next(point for point in two.points if point.after == "right.1")
    assert len(at_right.tensors) == 2
    assert at_right.bytes_per_sample == 2 * 6 * 4


class ForkAfterAStem(nn.Module):
    """A stem, then a fork and its join, none of which is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
        self.deep = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
        self.join = nn.Sequential(nn.Linear(18, 6), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.stem(x).chunk(2, 1)
        return self.join(torch.cat([a, b, self.deep(b)], 1))


@pytest.mark.parametrize("max_tensors", [1, 3])
def test_between_a_fork_and_its_join_nothing_is_divided(max_tensors: int) -> None:
    cuts = _cuts(nn.Sequential(ForkAfterAStem(), ForkAfterAStem()), 6, max_tensors=max_tensors)
    assert [point.after for point in cuts.points] == ["0.stem.1", "cat", "0", "1.stem.1", "cat_1"]
    assert _reasons(cuts)["1.deep.1"] == (
        "between a fork and its join inside 1 (ForkAfterAStem): 3 tensors live "
        "(divide=ForkAfterAStem with max_tensors=3 would allow it)"
    )


def test_what_is_said_to_open_a_fork_opens_it() -> None:
    graph = capture_graph(nn.Sequential(ForkAfterAStem(), ForkAfterAStem()), torch.randn(2, 6))
    cuts = find_cut_points(graph, divide=("ForkAfterAStem",), max_tensors=3)
    assert {"0.deep.1", "1.deep.1"} <= {point.after for point in cuts.points}


def test_less_than_one_tensor_cannot_cross() -> None:
    with pytest.raises(ValueError, match="max_tensors is 0"):
        _cuts(ForkAtTheRoot(), 6, max_tensors=0)


def test_a_perceptron_is_all_body() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [point.kind for point in _cuts(model, 4).points] == ["activation", "activation"]


def test_what_prepares_the_input_stays_with_the_first_layer() -> None:
    class Prepares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(torch.cat([x[:, :2] * 0.5, x[:, 2:] + 1.0], 1))

    cuts = _cuts(Prepares(), 4)
    assert [point.after for point in cuts.points] == ["layers.1"]
    assert _reasons(cuts)["cat"] == (
        "what comes before only prepares the input; it stays with the first layer"
    )
