from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from cutset.capture.torch_export import capture_graph
from cutset.graph.cuts import find_cut_points
from cutset.graph.evenness import slowest_over_even, suggest_max_tensors
from models_of_trouble import ForkAtTheRoot, UShape


def _chain(*widths: int) -> nn.Module:
    """Layers whose multiply-adds are the products of neighbouring widths."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("num_stages", "expected"),
    # Layers of 8, 24, 24, 8, 16: in all 80.
    [(1, 1.0), (2, 48 * 2 / 80), (3, 32 * 3 / 80), (5, 24 * 5 / 80), (9, 24 * 9 / 80)],
)
def test_the_least_slowest_stage(num_stages: int, expected: float) -> None:
    graph = capture_graph(_chain(2, 4, 6, 4, 2, 8), torch.randn(2, 2))
    cuts = find_cut_points(graph)
    assert slowest_over_even(graph, cuts, num_stages) == pytest.approx(expected)


def test_at_least_one_stage() -> None:
    graph = capture_graph(_chain(2, 4), torch.randn(2, 2))
    with pytest.raises(ValueError, match="num_stages is 0"):
        slowest_over_even(graph, find_cut_points(graph), 0)


def test_two_towers_need_two_tensors() -> None:
    graph = capture_graph(ForkAtTheRoot(), torch.randn(2, 6))
    suggestion = suggest_max_tensors(graph, find_cut_points(graph), 2)
    assert suggestion is not None
    # Four layers of 36 and one of 36: three of five in the slower half.
    assert suggestion.max_tensors == 2
    assert suggestion.slowest_now == pytest.approx(4 * 36 * 2 / 180)
    assert suggestion.slowest_then == pytest.approx(3 * 36 * 2 / 180)
    assert str(suggestion) == (
        "max_tensors=2 would make the slowest stage 25% smaller "
        "(1.20 of an even one instead of 1.60)"
    )


def test_a_chain_gains_nothing() -> None:
    graph = capture_graph(_chain(2, 4, 4, 4), torch.randn(2, 2))
    assert suggest_max_tensors(graph, find_cut_points(graph), 2) is None


def test_more_places_are_no_gain_where_one_layer_has_most_of_the_work() -> None:
    graph = capture_graph(UShape(), torch.randn(2, 3, 16, 16))
    cuts = find_cut_points(graph)
    assert len(find_cut_points(graph, max_tensors=4).points) > len(cuts.points)
    # The last layer has the full size and both halves of the channels.
    assert slowest_over_even(graph, cuts, 4) > 2
    assert suggest_max_tensors(graph, cuts, 4) is None
