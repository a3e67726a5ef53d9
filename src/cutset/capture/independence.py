"""Whether a row's result is its own: not its neighbours', not their number's, not the last call's.

A pipeline cuts batches, in whatever way. A model that normalises, averages or ranks over its first
dimension, that treats a single row otherwise than several, or that keeps something from one call to
the next, then computes something else. No capture fails on that and no shape shows it, so it is
tried with the model itself, and the captured model is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.utils import _pytree as pytree

from cutset.capture.captured import Captured, boundary_specs, with_rows
from cutset.capture.diagnosis import place_in_words
from cutset.capture.lowering import CapturedModel
from cutset.capture.number_of_rows import Parting, find_parting, in_words
from cutset.capture.pieces import Piece, build_piece
from cutset.errors import CaptureError
from cutset.graph.ir import Operation
from cutset.tensors import TensorSpec, dim_factor

_TWO = 2
TRIED_ROWS = (1, 5)
"""Numbers of rows whose first row must be that of two."""

_TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
_OTHERWISE = 1e-5
"""Differences that are none, relative to the largest magnitude in the tensor. As the number of
rows stays the same, so do the kernels, and there should be no difference at all."""

_ANOTHER_WAY = 10.0
_SAME_WAY = 0.05
"""With another number of rows other kernels may run, and their last bits grow on the way through a
deep model. Where the model's code takes the same way, differences up to `_SAME_WAY` of the largest
magnitude are that; where it takes another, up to `_ANOTHER_WAY` times the tolerance."""


_ROUNDING = 1000.0
"""Rounding in every layer of a model is taken to do at most so many times what rounding of its
inputs does."""

Pairs = tuple[tuple[int, int], ...]


def check_rows(captured: Captured, model: torch.nn.Module) -> None:
    """Computes a row again, beside other neighbours, and among other numbers of rows.

    Args:
        captured: the captured model; its example's first two rows are used.
        model: the module that was captured, in evaluation mode.

    Raises:
        CaptureError: the results differ; says by how much, and for a module of torch after which
            operation they first do, or which line decides by the number of rows.
    """
    only = captured.micro_batch_only
    first = tuple(tensor[: only or _TWO] for tensor in captured.example_inputs)
    with torch.inference_mode():
        usual = _check_memory(captured, model, first)
        if only != 1:
            _check_neighbours(captured, model, first, usual)
        piece = None
        if isinstance(captured, CapturedModel):
            piece = build_piece(captured, 0, len(captured.graph.operations))
            names = captured.graph.outputs
            _check_captured(piece, _copies(first), only or _TWO, names, usual, _not_the_model)
        for num_rows in TRIED_ROWS if only is None else (only,):
            _check_number(captured, model, usual, only or _TWO, num_rows, piece)


def _not_the_model(what: str) -> CaptureError:
    return CaptureError(
        f"what torch.export made of the model is not the model: {what}, with the example's own "
        "rows. Something that its forward does is lost there, such as t.data = other; write it "
        "with new tensors"
    )


def check_micro_batch(captured: Captured, model: torch.nn.Module, num_rows: int) -> None:
    """Computes a row among as many as a micro-batch has, where `check_rows` did not.

    It is compared with the row alone; of a model that was captured for one number of rows there is
    nothing more to see.

    Args:
        captured: as for `check_rows`, and checked by it.
        model: as for `check_rows`.
        num_rows: rows of a micro-batch, at least 1.

    Raises:
        CaptureError: the results differ; names the line that decides.
    """
    if captured.micro_batch_only is not None or num_rows in (*TRIED_ROWS, _TWO):
        return
    alone = _copies([tensor[:1] for tensor in captured.example_inputs])
    with torch.inference_mode():
        piece = None
        if isinstance(captured, CapturedModel):
            piece = build_piece(captured, 0, len(captured.graph.operations))
        usual = _leaves(captured.call(model, alone))
        _check_number(captured, model, usual, 1, num_rows, piece)


def _check_memory(
    captured: Captured, model: torch.nn.Module, rows: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The results for some rows, after they came twice.

    Raises:
        CaptureError: the second answer differs from the first.
    """
    one = _leaves(captured.call(model, _copies(rows)))
    before = _attributes(model)
    other = _leaves(captured.call(model, _copies(rows)))
    pairs = zip(one, other, strict=True)
    differences = [1.0 if a.shape != b.shape else _difference(a, b) for a, b in pairs]
    if not any(differences):
        return one
    changed = [name for name, value in _attributes(model).items() if before.get(name) != value]
    where = f" (in its {', '.join(map(repr, changed[:3]))})" if changed else ""
    raise CaptureError(
        f"the model remembers{where}: the same rows twice give two answers, which differ by "
        f"{max(differences):.2g} of the largest number. The stages of a pipeline keep nothing from "
        "one micro-batch to the next, and each may be sent again: make the forward begin anew at "
        "every call, or hand the state in as an input and out as a result",
        module_path=changed[0].rpartition(".")[0] or None if changed else None,
    )


def _attributes(model: torch.nn.Module) -> dict[str, object]:
    """What could change between two calls: plain attributes, and versions of tensors, by path."""
    found: dict[str, object] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, value in (*vars(module).items(), *module.named_buffers(recurse=False)):
            if isinstance(value, torch.Tensor):
                version = 0 if value.is_inference() else value._version
                found[prefix + name] = (id(value), version)
            elif isinstance(value, (int, float, str, type(None))):
                found[prefix + name] = value
            elif isinstance(value, (tuple, list)):
                found[prefix + name] = tuple(map(id, value))
    return found


def _check_neighbours(
    captured: Captured,
    model: torch.nn.Module,
    rows: Sequence[torch.Tensor],
    usual: Sequence[torch.Tensor],
) -> None:
    """Computes the first and the last row beside others, and all in the opposite order.

    Args:
        captured: the captured model.
        model: the module itself.
        rows: two rows or more of each input.
        usual: its results for them.

    Raises:
        CaptureError: a row's result is another one.
    """
    specs = tuple(captured.graph.spec_of(name) for name in captured.graph.outputs)
    last = len(rows[0]) - 1

    def run(given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return _leaves(captured.call(model, _copies(given)))

    for stays in (0, last):
        others = _with_other_neighbours(rows, stays)
        by = _largest_difference(specs, usual, run(others), ((stays, stays),))
        if by:
            what = f"on the rows beside it (with another neighbour it differs by {by:.2g}"
            raise _mixing_error(captured, what, rows, others, ((stays, stays),))
    turned = tuple(tensor.flip(0) for tensor in rows)
    pairs = tuple((last - index, index) for index in range(last + 1))
    by = _largest_difference(specs, usual, run(turned), pairs)
    # Where a row stands decides which of a kernel's loops computes it, and so its last bits: what
    # the model makes of last bits is seen by changing those of the input.
    if by and by > min(_SAME_WAY, _ROUNDING * _effect_of_last_bits(run, specs, rows, usual)):
        what = f"on its place among the rows (elsewhere it differs by {by:.2g}"
        raise _mixing_error(captured, what, rows, turned, pairs)


def _mixing_error(
    captured: Captured,
    what: str,
    one: Sequence[torch.Tensor],
    other: Sequence[torch.Tensor],
    pairs: Pairs,
) -> CaptureError:
    found = None
    if isinstance(captured, CapturedModel):
        found = _first_mixing(captured, one, other, pairs)
    module_path = found.modules[-1].path if found and found.modules else None
    source = found.source if found else None
    operation = found.target if found else None
    place = place_in_words(module_path, source, operation)
    return CaptureError(
        f"the model cannot be split{place}: a row's result depends {what} of the largest number), "
        "so that cutting a batch into micro-batches would change the answers. Keep what looks "
        "across rows (a mean, maximum, softmax or normalisation over the first dimension, a number "
        "for each place) outside the model that is split",
        module_path=module_path,
        source=source,
        operation=operation,
    )


def _check_number(
    captured: Captured,
    model: torch.nn.Module,
    usual: Sequence[torch.Tensor],
    several: int,
    num_rows: int,
    piece: Piece | None,
) -> None:
    """Compares a row among `num_rows` with it among `several`, and with the captured model's.

    Args:
        captured: the captured model.
        model: the module itself.
        usual: its results for `several` rows.
        several: a number with which it works.
        num_rows: another number.
        piece: the captured model as a module, or None where it is `model` itself.

    Raises:
        CaptureError: they differ by more than rounding; names the line that decides.
    """
    specs = tuple(captured.graph.spec_of(name) for name in captured.graph.outputs)
    most = max(several, captured.micro_batch_only or _TWO)

    def rows_of(count: int) -> tuple[torch.Tensor, ...]:
        pairs = zip(captured.example_inputs, captured.graph.inputs, strict=True)
        return _copies([with_rows(tensor[:most], spec, count) for tensor, spec in pairs])

    def run(count: int) -> list[torch.Tensor]:
        return _leaves(captured.call(model, rows_of(count)))

    def refused(what: str) -> CaptureError:
        parting = find_parting(model, run, several, num_rows) or Parting(what=what)
        return parting.error(what)

    rows = in_words(num_rows)
    try:
        alone = run(num_rows)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0][:200]
        raise refused(f"with {rows} it fails: {type(error).__name__}: {text}") from error
    words = _other_shapes(specs, alone, num_rows)
    if words:
        raise refused(f"with {rows} it {words}")
    pairs = tuple((k % most, k) for k in range(num_rows) if k % most < several)
    excess = [
        _largest_difference((spec,), (one,), (two,), pairs)
        for spec, one, two in zip(specs, usual, alone, strict=True)
    ]
    if any(excess):
        has_parted = find_parting(model, run, several, num_rows) is not None
        limits = [_limit(tensor, has_parted=has_parted) for tensor in alone]
        if any(by > limit for by, limit in zip(excess, limits, strict=True)):
            raise refused(
                f"a row differs by {max(excess):.2g} of the largest number between "
                f"{in_words(several)} and {rows}"
            )
    if piece is not None:
        names = captured.graph.outputs
        _check_captured(piece, rows_of(num_rows), num_rows, names, alone, refused)


def _check_captured(
    piece: Piece,
    given: tuple[torch.Tensor, ...],
    num_rows: int,
    names: Sequence[str],
    expected: Sequence[torch.Tensor],
    refused: Callable[[str], CaptureError],
) -> None:
    """Compares the captured model's results, by the names of the graph's outputs, with the model's.

    Raises:
        CaptureError: they differ by more than rounding.
    """
    rows = in_words(num_rows)
    try:
        got = list(piece(*given))
        words = _other_shapes(piece.output_specs, got, num_rows)
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0][:200]
        raise refused(f"captured with 2 rows or more, it fails with {rows}: {text}") from error
    by_name = {spec.name: tensor for spec, tensor in zip(piece.output_specs, got, strict=True)}
    if words or any(
        _difference(one, by_name[name]) > _limit(one, has_parted=True)
        for one, name in zip(expected, names, strict=True)
    ):
        raise refused(f"captured with 2 rows or more, it computes {rows} otherwise")


def _other_shapes(
    specs: Sequence[TensorSpec], results: Sequence[torch.Tensor], num_rows: int
) -> str:
    """How results have other shapes than promised, or ``""``."""
    if len(specs) != len(results):
        return f"returns {len(results)} tensors instead of {len(specs)}"
    for spec, tensor in zip(specs, results, strict=True):
        if tuple(tensor.shape) != spec.concrete_shape(num_rows):
            return f"returns a result of shape {list(tensor.shape)}, expected {spec}"
    return ""


def _limit(tensor: torch.Tensor, *, has_parted: bool) -> float:
    """The largest difference that may still be rounding."""
    if has_parted:
        return _ANOTHER_WAY * _TOLERANCES.get(tensor.dtype, _OTHERWISE)
    return _SAME_WAY if tensor.is_floating_point() or tensor.is_complex() else float("inf")


def _copies(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies, since a model may write to its inputs."""
    return tuple(tensor.clone() for tensor in rows)


def _leaves(results: object) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, torch.Tensor)]


def _with_other_neighbours(rows: Sequence[torch.Tensor], stays: int) -> tuple[torch.Tensor, ...]:
    """One row of each input, and beside it only itself; changed where it was there already."""
    others = []
    for tensor in rows:
        row = tensor[stays : stays + 1]
        changed = row.expand_as(tensor).clone()
        if torch.equal(changed, tensor) and row.is_floating_point():
            changed = changed * 0.5 + 0.25
            changed[stays] = row[0]
        others.append(changed)
    return tuple(others)


def _effect_of_last_bits(
    run: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    specs: Sequence[TensorSpec],
    rows: Sequence[torch.Tensor],
    usual: Sequence[torch.Tensor],
) -> float:
    """By how much results differ, relative to the largest, when an input's last bits do."""
    changed = tuple(
        tensor * (1 + torch.finfo(tensor.dtype).eps) if tensor.is_floating_point() else tensor
        for tensor in rows
    )
    every = tuple((index, index) for index in range(len(rows[0])))
    return _largest_difference(specs, usual, run(changed), every, tolerance=0.0)


def _largest_difference(
    specs: Sequence[TensorSpec],
    ones: Sequence[torch.Tensor],
    others: Sequence[torch.Tensor],
    pairs: Pairs,
    *,
    tolerance: float | None = None,
) -> float:
    """By how much rows of some results differ from rows of others; see `_difference`.

    Args:
        specs: of the results.
        ones: results.
        others: others of the same shapes but for the number of rows.
        pairs: which row of one is to equal which row of the other.
        tolerance: as for `_difference`.
    """
    return max(
        (
            _difference(_row(spec, one, left), _row(spec, other, right), tolerance)
            for spec, one, other in zip(specs, ones, others, strict=True)
            for left, right in pairs
        ),
        default=0.0,
    )


def _row(spec: TensorSpec, tensor: torch.Tensor, index: int) -> torch.Tensor:
    """What of a tensor belongs to one row."""
    for dim, length in enumerate(spec.shape):
        factor = dim_factor(length)
        if factor is not None:
            tensor = tensor.narrow(dim, index * factor, factor)
    return tensor


def _difference(one: torch.Tensor, other: torch.Tensor, tolerance: float | None = None) -> float:
    """By how much numbers differ, relative to the largest; 0 where that is at most `tolerance`.

    Args:
        one: a result.
        other: another of the same shape.
        tolerance: where None, what is little for the dtype.
    """
    if one.numel() == 0 or torch.equal(one, other):
        return 0.0
    wide = torch.complex128 if one.is_complex() else torch.float64
    error = torch.nan_to_num((one.to(wide) - other.to(wide)).abs(), nan=0.0, posinf=0.0)
    magnitude = torch.nan_to_num(one.to(wide).abs(), nan=0.0, posinf=0.0)
    ratio = float(error.max() / magnitude.max().clamp(1e-30))
    if tolerance is None:
        tolerance = _TOLERANCES.get(one.dtype, _OTHERWISE)
    return ratio if ratio > tolerance else 0.0


def _first_mixing(
    captured: CapturedModel,
    one: Sequence[torch.Tensor],
    other: Sequence[torch.Tensor],
    pairs: Pairs,
) -> Operation:
    """The operation after which the first difference shows, found by halving."""
    operations = captured.graph.operations
    # Between an operation that gives several tensors and those that take them out is no boundary.
    ends = [end for end in range(1, len(operations)) if _is_boundary(captured, end)]
    ends.append(len(operations))
    same, differ = -1, len(ends) - 1
    while differ - same > 1:
        middle = (same + differ) // 2
        piece = build_piece(captured, 0, ends[middle])
        ones, others = (list(piece(*_copies(rows))) for rows in (one, other))
        if _largest_difference(piece.output_specs, ones, others, pairs):
            differ = middle
        else:
            same = middle
    return operations[ends[same] if same >= 0 else 0]


def _is_boundary(captured: Captured, position: int) -> bool:
    try:
        boundary_specs(captured, position)
    except KeyError:
        return False
    return True
