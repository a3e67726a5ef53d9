from __future__ import annotations

import pytest
import torch
from torch import nn

from cutset.capture.torch_export import capture_graph
from cutset.errors import PlanError
from cutset.graph.ir import Graph
from cutset.graph.units import find_units
from models_of_trouble import CalledTwice, ForkAtTheRoot, residual_net


@pytest.fixture(scope="module")
def residual_graph() -> Graph:
    return capture_graph(residual_net(), torch.randn(2, 3, 8, 8))


def _paths(graph: Graph, **options: object) -> list[str]:
    return [unit.path for unit in find_units(graph, **options)]  # type: ignore[arg-type]


def test_skips_branches_and_their_whole_class_are_units(residual_graph: Graph) -> None:
    # 7 has no skip, but 6 is of the same class and has one.
    assert _paths(residual_graph) == ["4", "5", "6", "7", "8"]


def test_units_span_all_their_operations(residual_graph: Graph) -> None:
    unit = find_units(residual_graph)[0]
    inside = residual_graph.operations[unit.start : unit.stop]
    assert [operation.base_name for operation in inside] == [
        "conv2d",
        "relu",
        "conv2d",
        "add",
        "relu",
    ]
    assert unit.class_name == "models_of_trouble.ResidualBlock"


def test_a_module_called_twice_is_judged_call_by_call() -> None:
    graph = capture_graph(CalledTwice(), torch.randn(2, 3, 4, 4))
    assert _paths(graph) == ["block", "block#2"]


def test_a_plain_chain_has_no_units() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert _paths(capture_graph(model, torch.randn(2, 4))) == []


def test_the_root_is_no_unit_even_where_it_forks() -> None:
    assert _paths(capture_graph(ForkAtTheRoot(), torch.randn(2, 6))) == []


def test_the_outermost_unit_wins() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CalledTwice()
            self.skip = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + self.skip(x)

    model = nn.Sequential(Outer(), nn.ReLU(), nn.Conv2d(4, 4, 1))
    assert _paths(capture_graph(model, torch.randn(2, 3, 4, 4))) == ["0"]


def test_keep_makes_a_class_a_unit(residual_graph: Graph) -> None:
    model = nn.Sequential(long := nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    del long
    graph = capture_graph(model, torch.randn(2, 4))
    assert _paths(graph, keep=["Linear"]) == ["0.0", "1"]
    assert _paths(residual_graph, keep=["torch.nn.modules.pooling.MaxPool2d"])[0] == "3"


def test_divide_takes_a_class_out(residual_graph: Graph) -> None:
    assert _paths(residual_graph, divide=["ResidualBlock"]) == ["6", "7", "8"]


@pytest.mark.parametrize("option", ["keep", "divide"])
def test_a_class_that_is_not_called_is_named(residual_graph: Graph, option: str) -> None:
    with pytest.raises(PlanError, match=rf"{option}=Botleneck: .*ResidualBlock"):
        find_units(residual_graph, **{option: ["Botleneck"]})


def test_keep_and_divide_exclude_each_other(residual_graph: Graph) -> None:
    with pytest.raises(PlanError, match="both to keep and to divide"):
        find_units(residual_graph, keep=["Branches"], divide=["Branches"])
