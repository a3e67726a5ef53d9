"""Counts multiply-adds per operation, with torch's own formulas, on shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph as FxGraph
from torch.fx import Node
from torch.utils.flop_counter import FlopCounterMode

from cutset.capture.source_lines import source_line
from cutset.errors import CaptureError


def count_flops(
    program: FxGraph, weights: Mapping[str, tuple[str, torch.Tensor]]
) -> dict[str, int]:
    """Multiply-adds of every node for one row, by torch's own formulas on fake tensors.

    Raises:
        CaptureError: an operation cannot be evaluated on shapes alone.
    """
    counts: dict[str, int] = {}
    values: dict[Node, Any] = {}
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
    ):
        for node in program.nodes:
            if node.op == "placeholder":
                values[node] = _one_row(node, weights)
            elif node.op == "call_function":
                before = counter.get_total_flops()
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                assert callable(node.target)
                try:
                    values[node] = node.target(*args, **kwargs)
                except Exception as error:
                    raise CaptureError(
                        f"{node.name} ({node.target}): its cost cannot be worked out from shapes: "
                        f"{error}",
                        operation=str(node.target),
                        source=source_line(node),
                    ) from error
                # torch counts a multiply-add as two.
                counts[node.name] = (counter.get_total_flops() - before) // 2
            elif node.op == "get_attr":
                raise CaptureError(
                    f"{node.name}: control flow inside the model ({node.target}) cannot be split",
                    operation=str(node.target),
                )
    return counts


def _one_row(node: Node, weights: Mapping[str, tuple[str, torch.Tensor]]) -> Any:
    """A fake tensor that looks like the placeholder with one row."""
    if node.name in weights:
        tensor = weights[node.name][1]
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return value
    shape = [length if type(length) is int else 1 for length in value.shape]
    return torch.empty(shape, dtype=value.dtype)
