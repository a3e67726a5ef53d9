"""Whether a row's result is its own: a pipeline cuts batches, so rows must not see each other.

A model that normalises, averages or ranks over its first dimension computes something else for
every way in which a batch is cut. No capture fails on that and no shape shows it, so it is tried.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils import _pytree as pytree

from cutset.errors import CaptureError
from cutset.graph.captured import Captured
from cutset.graph.diagnosis import place_in_words
from cutset.graph.ir import Operation
from cutset.graph.lowering import CapturedModel
from cutset.graph.pieces import build_piece
from cutset.tensors import TensorSpec, dim_factor

_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
_OTHERWISE = 1e-5
"""Differences that are none, relative to the largest magnitude in the tensor. As the number of
rows stays the same, so do the kernels, and there should be no difference at all."""


def check_rows(captured: Captured, model: torch.nn.Module) -> None:
    """Computes a row beside one neighbour and beside another, and compares.

    Args:
        captured: the captured model; its example's first two rows are used.
        model: the module that was captured, in evaluation mode.

    Raises:
        CaptureError: the results differ; says by how much, and for a module of torch after which
            operation they first do.
    """
    first = tuple(tensor[:2] for tensor in captured.example_inputs)
    second = _with_another_neighbour(first)
    specs = tuple(captured.graph.spec_of(name) for name in captured.graph.outputs)
    with torch.inference_mode():
        results = [_leaves(captured.call(model, _copies(rows))) for rows in (first, second)]
        difference = max(map(_difference, specs, *results), default=0.0)
        if difference == 0.0:
            return
        is_of_torch = isinstance(captured, CapturedModel)
        found = _first_mixing(captured, first, second) if is_of_torch else None
    module_path = found.modules[-1].path if found and found.modules else None
    source = found.source if found else None
    operation = found.target if found else None
    place = place_in_words(module_path, source, operation)
    raise CaptureError(
        f"the model cannot be split{place}: a row's result depends on the rows beside it (with "
        f"another neighbour it differs by {difference:.2g} of the largest number), so that cutting "
        "a batch into micro-batches would change the answers. Keep what looks across rows (a mean, "
        "maximum, softmax or normalisation over the first dimension) outside the model that is "
        "split",
        module_path=module_path,
        source=source,
        operation=operation,
    )


def _copies(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies, since a model may write to its inputs."""
    return tuple(tensor.clone() for tensor in rows)


def _leaves(results: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]


def _with_another_neighbour(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The first row of each input, and beside it itself; changed where it was there already."""
    others = []
    for tensor in rows:
        row = tensor[:1]
        if torch.equal(row, tensor[1:2]) and row.is_floating_point():
            others.append(torch.cat([row, row * 0.5 + 0.25]))
        else:
            others.append(torch.cat([row, row]))
    return tuple(others)


def _difference(spec: TensorSpec, one: torch.Tensor, other: torch.Tensor) -> float:
    """By how much the first row's numbers differ, relative to the largest; 0 where it is little."""
    for dim, length in enumerate(spec.shape):
        if dim_factor(length) is not None:
            num_first = one.shape[dim] // 2
            one, other = one.narrow(dim, 0, num_first), other.narrow(dim, 0, num_first)
    if one.numel() == 0 or torch.equal(one, other):
        return 0.0
    wide = torch.complex128 if one.is_complex() else torch.float64
    error = torch.nan_to_num((one.to(wide) - other.to(wide)).abs(), nan=0.0, posinf=0.0)
    magnitude = torch.nan_to_num(one.to(wide).abs(), nan=0.0, posinf=0.0)
    ratio = float(error.max() / magnitude.max().clamp(1e-30))
    return ratio if ratio > _TOLERANCES.get(one.dtype, _OTHERWISE) else 0.0


def _first_mixing(
    captured: Captured, first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]
) -> Operation:
    """The operation after which the first difference shows, found by halving."""
    assert isinstance(captured, CapturedModel)
    operations = captured.graph.operations
    same, differ = 0, len(operations)
    while differ - same > 1:
        middle = (same + differ) // 2
        piece = build_piece(captured, 0, middle)
        results = [piece(*_copies(rows)) for rows in (first, second)]
        if any(map(_difference, piece.output_specs, *results)):
            differ = middle
        else:
            same = middle
    return operations[differ - 1]
