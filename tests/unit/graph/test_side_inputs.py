from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.torch_export import capture_graph
from cutset.graph.cuts import CutPoints, find_cut_points
from cutset.graph.side_inputs import side_inputs

WIDTH = 8


class Layer(nn.Module):
    """A residual layer that reads something beside its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return x + self.last(torch.relu(self.first(x) * side))


class Plain(nn.Module):
    """The same without a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x) * side))


class Stack(nn.Module):
    """Layers, each of which reads what the one before made, and the side input."""

    def __init__(self, kind: type[nn.Module] = Layer, num: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind() for _ in range(num))

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, side)
        return x


class Prepares(Stack):
    """Makes the side input of its children from its own."""

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return super().forward(x, (1.0 - side) * -0.5)


class Injects(Stack):
    """Every layer reads the stack's own input beside the stream."""

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        y = x
        for layer in self.layers:
            y = layer(y, x)
        return y * side


class AddsAgain(Stack):
    """The side input joins the stream at the end: it is none."""

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return super().forward(x, side) + side


class Branches(nn.Module):
    """Two inputs, both read by both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Plain(), Plain()

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return torch.cat([self.left(x, side), self.right(x, side)], -1)


class Attends(nn.Module):
    """The memory is read twice, by nothing that reads the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        scores = self.query(x) @ self.key(memory).transpose(-1, -2)
        return self.out(scores.softmax(-1) @ self.value(memory))


class Dense(nn.Module):
    """Every layer reads all results before it; the last joins them."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = Plain(), Plain(), Joins()

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        a = self.one(x, side)
        b = self.two(a, x)
        return self.three(x, a, b)


class Joins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, *each: Tensor) -> Tensor:
        return self.last(torch.cat(each, -1))


class Whole(nn.Module):
    """Something before and after a body of two inputs."""

    def __init__(self, body: nn.Module, width: int = WIDTH) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(WIDTH, WIDTH), body, nn.Linear(width, 4)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x), side).mean(1))


def _cuts(model: nn.Module, side: tuple[int, ...] = (5, WIDTH), **options: Any) -> CutPoints:
    graph = capture_graph(model.eval(), (torch.randn(2, 5, WIDTH), torch.rand(2, *side)))
    return find_cut_points(graph, **options)


def _after(cuts: CutPoints) -> list[str]:
    return [point.after for point in cuts.points]


@pytest.mark.parametrize("kind", [Layer, Plain])
@pytest.mark.parametrize("body", [Stack, Prepares])
def test_a_side_input_does_not_bind_layers_together(
    body: type[Stack], kind: type[nn.Module]
) -> None:
    cuts = _cuts(Whole(body(kind)), max_tensors=1)
    assert [unit.path for unit in cuts.units] == ["body.layers.0", "body.layers.1", "body.layers.2"]
    assert [name for name in _after(cuts) if name.startswith("body")] == [
        "body.layers.0",
        "body.layers.1",
        "body.layers.2",
    ]
    between = next(point for point in cuts.points if point.after == "body.layers.1")
    assert len(between.tensors) == 2  # it travels along, and counts in bytes
    assert between.bytes_per_sample == 2 * 5 * WIDTH * 4


@pytest.mark.parametrize("body", [Injects, AddsAgain, Dense])
def test_what_forks_stays_one_unit(body: type[nn.Module]) -> None:
    assert [unit.path for unit in _cuts(Whole(body())).units] == ["body"]
    assert not [name for name in _after(_cuts(Whole(body()), max_tensors=4)) if "body." in name]


def test_parallel_branches_stay_one_unit() -> None:
    assert [unit.path for unit in _cuts(Whole(Branches(), 2 * WIDTH)).units] == ["body"]


def test_a_memory_that_is_projected_twice_is_no_side_input_of_the_attention() -> None:
    cuts = _cuts(Whole(Attends()))
    assert [unit.path for unit in cuts.units] == ["body"]


def test_the_memory_of_a_decoder_is_one() -> None:
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 16, batch_first=True, norm_first=True)
    graph = capture_graph(
        nn.TransformerDecoder(layer, 3).eval(),
        (torch.randn(2, 5, WIDTH), torch.randn(2, 7, WIDTH)),
    )
    assert side_inputs(graph) == {"memory"}
    assert _after(find_cut_points(graph)) == ["layers.0", "layers.1"]


def test_the_mask_of_an_encoder_is_one() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True, norm_first=True)
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=mask)

    graph = capture_graph(
        Masked().eval(), (torch.randn(2, 5, WIDTH), torch.zeros(2, 5, dtype=torch.bool))
    )
    found = [name for name in _after(find_cut_points(graph)) if "layers" in name]
    assert found == ["encoder.layers.0", "encoder.layers.1"]


def test_a_stream_without_anything_beside_it_has_none() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    assert side_inputs(capture_graph(Chain(), torch.randn(2, WIDTH))) == frozenset()
