"""What may be written over, what may not, and that nobody can tell from the results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx
from torch.utils import _pytree as pytree

from cutset.capture.reuse import _FRESH, reuse_dead_tensors

aten = torch.ops.aten

Build = Callable[[fx.Graph, fx.Node], object]


def _module(build: Build) -> fx.GraphModule:
    """One input ``x``; `build` adds calls and says what is returned."""
    graph = fx.Graph()
    graph.output(build(graph, graph.placeholder("x")))
    return fx.GraphModule({"weight": torch.randn(3, 3, 3, 3)}, graph)


def _checked(build: Build, x: torch.Tensor) -> int:
    """How much was exchanged; the results are the same, twice, and the input is left alone."""
    module = _module(build)
    expected = module(x)
    given = x.clone()
    num_exchanged = reuse_dead_tensors(module)
    with torch.inference_mode():
        for _ in range(2):
            results = module(x)
            for result, wanted in zip(_flat(results), _flat(expected), strict=True):
                assert result.dtype == wanted.dtype
                assert result.stride() == wanted.stride()
                assert torch.equal(result, wanted)
    assert torch.equal(x, given)
    return num_exchanged


def _flat(results: object) -> tuple[torch.Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)  # type: ignore[return-value]


def _image() -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _conv(graph: fx.Graph, value: fx.Node) -> fx.Node:
    weight = graph.get_attr("weight")
    return graph.call_function(aten.conv2d.default, (value, weight, None, [1, 1], [1, 1]))


@pytest.mark.parametrize(
    "operation",
    [
        aten.elu.default,
        aten.gelu.default,
        aten.hardsigmoid.default,
        aten.hardswish.default,
        aten.hardtanh.default,
        aten.leaky_relu.default,
        aten.relu.default,
        aten.relu6.default,
        aten.silu.default,
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_activation_is_written_over_a_convolution(
    operation: Callable[..., torch.Tensor], memory_format: torch.memory_format
) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> object:
        return graph.call_function(operation, (_conv(graph, x),))

    assert _checked(build, _image().contiguous(memory_format=memory_format)) == 1


def test_arguments_of_the_operation_are_kept() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> object:
        return graph.call_function(aten.hardtanh.default, (_conv(graph, x), 0.0, 0.5))

    assert _checked(build, _image()) == 1


def test_a_residual_block_is_computed_in_place_but_its_input_lives() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> object:
        identity = graph.call_function(aten.relu.default, (x,))  # over an input: not exchanged
        inner = graph.call_function(aten.relu.default, (_conv(graph, identity),))
        total = graph.call_function(aten.add.Tensor, (_conv(graph, inner), identity))
        return graph.call_function(aten.relu.default, (total,))

    assert _checked(build, _image()) == 3


def test_what_is_returned_or_read_again_is_not_written_over() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> object:
        returned, read_again = _conv(graph, x), _conv(graph, x)
        first = graph.call_function(aten.relu.default, (returned,))
        second = graph.call_function(aten.relu.default, (read_again,))
        total = graph.call_function(aten.mul.Tensor, (second, read_again))
        return returned, first, total

    assert _checked(build, _image()) == 0


def test_nothing_is_written_through_a_view_or_over_a_weight() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> object:
        viewed = _conv(graph, x)
        flat = graph.call_function(aten.flatten.using_ints, (viewed, 1))
        over_view = graph.call_function(aten.relu.default, (flat,))
        kept = graph.call_function(aten.dropout.default, (viewed, 0.5, False))
        over_itself = graph.call_function(aten.relu.default, (kept,))
        over_weight = graph.call_function(aten.relu.default, (graph.get_attr("weight"),))
        return viewed, over_view, over_itself, over_weight

    assert _checked(build, _image()) == 0


@pytest.mark.parametrize("alpha", [1, 0.5])
def test_a_sum_is_scaled_as_before(alpha: float) -> None:
    def build(graph: fx.Graph, x: fx.Node) -> object:
        return graph.call_function(aten.add.Tensor, (_conv(graph, x), x), {"alpha": alpha})

    assert _checked(build, _image()) == 1


def test_a_sum_of_another_shape_dtype_or_layout_is_a_new_tensor() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> object:
        pooled = graph.call_function(aten.adaptive_avg_pool2d.default, (x, [1, 1]))
        small = graph.call_function(aten.relu.default, (_pointwise(graph, pooled),))
        wider = graph.call_function(aten.add.Tensor, (small, x))
        double = graph.call_function(aten.to.dtype, (x, torch.float64))
        finer = graph.call_function(aten.add.Tensor, (_conv(graph, x), double))
        turned = graph.call_function(aten.permute.default, (x, [0, 1, 3, 2]))
        laid_out = graph.call_function(aten.add.Tensor, (_conv(graph, x), turned))
        shifted = graph.call_function(aten.add.Tensor, (_conv(graph, x), 2.0))
        return wider, finer, laid_out, shifted

    assert _checked(build, _image()) == 5


def _pointwise(graph: fx.Graph, value: fx.Node) -> fx.Node:
    return graph.call_function(aten.mul.Tensor, (value, 3.0))


def test_a_tensor_is_added_to_itself() -> None:
    def build(graph: fx.Graph, x: fx.Node) -> object:
        made = _conv(graph, x)
        return graph.call_function(aten.add.Tensor, (made, made))

    assert _checked(build, _image()) == 1


ONE = torch.randn(2, 4, 6, 6)
NO_OPERATION: dict[object, tuple[object, ...]] = {
    aten.add.Tensor: (ONE, torch.zeros(())),
    aten.mul.Tensor: (ONE, torch.ones(())),
    aten.cat.default: ([ONE], 0),
    aten.batch_norm.default: (
        *(ONE, None, None, torch.zeros(4), torch.ones(4)),
        *(False, 0.1, 0.0, False),
    ),
    aten.group_norm.default: (ONE, 1),
    aten.layer_norm.default: (ONE, [6]),
    aten.linear.default: (ONE, torch.eye(6)),
    aten.conv1d.default: (ONE[0], torch.eye(6)[:, :, None]),
    aten.conv2d.default: (ONE, torch.eye(4)[:, :, None, None]),
    aten.conv2d.padding: (ONE, torch.eye(4)[:, :, None, None], None, [1, 1], "valid"),
    aten.conv3d.default: (ONE[None], torch.eye(2)[:, :, None, None, None]),
    aten.convolution.default: (
        *(ONE, torch.eye(4)[:, :, None, None], None),
        *([1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    ),
    aten.hardtanh.default: (ONE, -1e9, 1e9),
    aten.leaky_relu.default: (ONE, 1.0),
}
"""Arguments with which an operation changes nothing, and might return what it was given."""


@pytest.mark.parametrize("operation", sorted(_FRESH, key=str), ids=str)
def test_results_said_to_be_fresh_share_no_storage(operation: Any) -> None:
    arguments = NO_OPERATION.get(operation, (ONE.abs(),))
    result = operation(*arguments)
    tensors = [t for t in pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor)]
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert result.untyped_storage().data_ptr() not in places
