"""Random networks of modules: every legal cut keeps the numbers, every refusal is true."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cutset.capture.pieces import build_piece
from cutset.capture.torch_export import capture_model
from cutset.graph.calls import PLAIN_CONTAINERS, call_regions
from cutset.graph.cuts import CutPoints, find_cut_points
from cutset.graph.ir import Graph

WIDTH = 4


class Skip(nn.Module):
    """A residual around a chain."""

    def __init__(self, body: list[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + x


class Fork(nn.Module):
    """Parallel branches over one input, added up."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x) for branch in self.branches]).sum(0)


class Repeat(nn.Module):
    """One module, called twice."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.tanh(self.body(x)))


class LateSkip(nn.Module):
    """The first part's output is needed again at the end; the model returns two tensors."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = x = self.parts[0](x)
        for part in self.parts[1:]:
            x = part(x)
        return x + first, first


leaves = st.sampled_from(
    [
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda: nn.ReLU(inplace=True),
        lambda: nn.LayerNorm(WIDTH),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()),
        lambda: nn.Dropout(0.3),
        lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Unflatten(1, (2, 2)), nn.Flatten()),
    ]
).map(lambda make: make())

modules = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: nn.Sequential(*parts)),
        st.lists(inner, min_size=2, max_size=3).map(Skip),
        st.lists(inner, min_size=2, max_size=3).map(Fork),
        inner.map(Repeat),
    ),
    max_leaves=6,
)

networks = st.one_of(
    st.lists(modules, min_size=2, max_size=4).map(
        lambda parts: nn.Sequential(nn.Linear(WIDTH, WIDTH), *parts)
    ),
    st.lists(modules, min_size=2, max_size=3).map(
        lambda parts: LateSkip([nn.Linear(WIDTH, WIDTH), *parts])
    ),
)

slow_capture = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def _live_count(graph: Graph, position: int) -> int:
    """How many activations are made before a position and used after it, counted afresh."""
    made = {spec.name for spec in graph.inputs} | {op.name for op in graph.operations[:position]}
    later = {name for op in graph.operations[position:] for name in op.inputs}
    return len(made & (later | set(graph.outputs)))


def _forked(graph: Graph) -> set[int]:
    """Positions where a module that is no container still needs several values, counted afresh."""
    found: set[int] = set()
    for region in call_regions(graph.operations):
        if region.depth == 0 or region.call.class_name in PLAIN_CONTAINERS:
            continue
        for position in range(region.start + 1, region.stop):
            later = graph.operations[position : region.stop]
            made = {op.name for op in later}
            if len({name for op in later for name in op.inputs} - made) > 1:
                found.add(position)
    return found


def _judge(graph: Graph, cuts: CutPoints) -> None:
    inside = {p for unit in cuts.units for p in range(unit.start + 1, unit.stop)}
    for point in cuts.points:
        assert _live_count(graph, point.position) <= cuts.max_tensors
        assert point.position not in inside
    for point in cuts.refused:
        assert (
            point.position in inside
            or _live_count(graph, point.position) > cuts.max_tensors
            or " stays with " in point.reason
            or point.position in _forked(graph)
        )


@slow_capture
@given(model=networks, data=st.data())
def test_splitting_at_random_legal_places_equals_the_whole(
    model: nn.Module, data: st.DataObject
) -> None:
    with torch.no_grad():
        captured = capture_model(model, torch.randn(2, WIDTH))
        max_tensors = data.draw(st.integers(1, 3), label="max_tensors")
        cuts = find_cut_points(captured.graph, max_tensors=max_tensors)
        _judge(captured.graph, cuts)
        chosen = data.draw(
            st.sets(st.sampled_from(cuts.points), max_size=4) if cuts.points else st.just(set()),
            label="cuts",
        )
        edges = [0, *sorted(p.position for p in chosen), len(captured.graph.operations)]
        rows = torch.randn(data.draw(st.integers(1, 4), label="rows"), WIDTH)
        whole = model(rows.clone())
        values: tuple[Tensor, ...] = (rows,)
        for start, stop in pairwise(edges):
            values = build_piece(captured, start, stop)(*values)
        expected = whole if isinstance(whole, tuple) else (whole,)
        by_name = dict(zip(dict.fromkeys(captured.graph.outputs), values, strict=True))
        for name, tensor in zip(captured.graph.outputs, expected, strict=True):
            assert torch.equal(by_name[name], tensor)
