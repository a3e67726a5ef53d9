"""Whether a row's result is its own: not its neighbours', not their number's, not the last call's.

A pipeline cuts batches, in whatever way. A model that normalises, averages or ranks over its first
dimension, that treats a single row otherwise than several, or that keeps something from one call to
the next, then computes something else. No capture fails on that and no shape shows it, so it is
tried with the model itself, and the captured model is compared with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from ml_dtypes import finfo

from cutset.capture.captured import Captured, Parting, in_words, with_rows
from cutset.capture.source_lines import place_in_words
from cutset.differences import magnitude_of, wide
from cutset.dtypes import FLOATING, Arrays, dtype_name
from cutset.errors import CaptureError
from cutset.graph.ir import Graph, Operation, boundary_specs
from cutset.tensors import TensorSpec, dim_factor

_TWO = 2
TRIED_ROWS = (1, 5)
"""Numbers of rows among which each row must be what it is among two."""

_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}
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
inputs does, where that is little."""

_ROUNDING_OF_ALL = 10.0
"""A model may make differences of over `_SAME_WAY` of its input's last bits alone (random weights
without normalisation do). Rounding in its layers is then taken to do at most so many times that."""

Pairs: TypeAlias = tuple[tuple[int, int], ...]
"""Which row of one result is to equal which row of another."""


def check_rows(captured: Captured) -> None:
    """Computes a row again, beside other neighbours, and among other numbers of rows.

    Args:
        captured: the captured model, in evaluation mode; its example's first two rows are used.

    Raises:
        CaptureError: the results differ; says by how much, and after which operation they first
            do, or which line decides by the number of rows.
    """
    only = captured.micro_batch_only
    first = captured.rows(only or _TWO)
    with captured.untouched():
        usual = _check_memory(captured, first)
        if only != 1:
            _check_neighbours(captured, first, usual)
        numbers = _Numbers(captured, usual, only or _TWO)
        numbers.compare(only or _TWO, usual, _not_the_model)
        for num_rows in TRIED_ROWS if only is None else (only,):
            numbers.check(num_rows)


def _not_the_model(what: str) -> CaptureError:
    return CaptureError(
        f"what torch.export made of the model is not the model: {what}, with the example's own "
        "rows. Something that its forward does is lost there, such as t.data = other; write it "
        "with new tensors"
    )


def check_micro_batch(captured: Captured, num_rows: int) -> None:
    """Computes a row among as many as a micro-batch has, where `check_rows` did not.

    It is compared with the row alone; of a model that was captured for one number of rows there is
    nothing more to see.

    Args:
        captured: as for `check_rows`, and checked by it.
        num_rows: rows of a micro-batch, at least 1.

    Raises:
        CaptureError: the results differ; names the line that decides.
    """
    if captured.micro_batch_only is not None or num_rows in (*TRIED_ROWS, _TWO):
        return
    with captured.untouched():
        _Numbers(captured, captured.run_whole(captured.rows(1)), 1).check(num_rows)


def _check_memory(captured: Captured, rows: Arrays) -> Arrays:
    """The results for some rows, after they came twice.

    Raises:
        CaptureError: the second answer differs from the first.
    """
    one = captured.run_whole(rows)
    before = captured.kept()
    other = captured.run_whole(rows)
    pairs = zip(one, other, strict=True)
    differences = [1.0 if a.shape != b.shape else _difference(a, b) for a, b in pairs]
    if not any(differences):
        return one
    changed = [name for name, value in captured.kept().items() if before.get(name) != value]
    where = f" (in its {', '.join(map(repr, changed[:3]))})" if changed else ""
    raise CaptureError(
        f"the model remembers{where}: the same rows twice give two answers, which differ by "
        f"{max(differences):.2g} of the largest number. The stages of a pipeline keep nothing from "
        "one micro-batch to the next, and each may be sent again: make the forward begin anew at "
        "every call, or hand the state in as an input and out as a result",
        module_path=changed[0].rpartition(".")[0] or None if changed else None,
    )


def _check_neighbours(captured: Captured, rows: Arrays, usual: Arrays) -> None:
    """Computes the first and the last row beside others, and all in the opposite order.

    Args:
        captured: the captured model.
        rows: two rows or more of each input.
        usual: the model's results for them.

    Raises:
        CaptureError: a row's result is another one.
    """
    specs, last = _results(captured), len(rows[0]) - 1
    for stays in (0, last):
        others = _with_other_neighbours(rows, stays)
        by = _largest_difference(specs, usual, captured.run_whole(others), ((stays, stays),))
        if by:
            what = f"on the rows beside it (with another neighbour it differs by {by:.2g}"
            raise _mixing_error(captured, what, rows, others, ((stays, stays),))
    turned = tuple(array[::-1].copy() for array in rows)
    pairs = tuple((last - index, index) for index in range(last + 1))
    by = _largest_difference(specs, usual, captured.run_whole(turned), pairs)
    # Where a row stands decides which of a kernel's loops computes it, and so its last bits: what
    # the model makes of last bits is seen by changing those of the input.
    if by and by > _limit_elsewhere(captured, rows, usual):
        what = f"on its place among the rows (elsewhere it differs by {by:.2g}"
        raise _mixing_error(captured, what, rows, turned, pairs)


def _mixing_error(
    captured: Captured, what: str, one: Arrays, other: Arrays, pairs: Pairs
) -> CaptureError:
    found = _first_mixing(captured, one, other, pairs)
    module_path = found.modules[-1].path if found.modules else None
    source = found.source or None
    place = place_in_words(module_path, source, found.target)
    return CaptureError(
        f"the model cannot be split{place}: a row's result depends {what} of the largest number), "
        "so that cutting a batch into micro-batches would change the answers. Keep what looks "
        "across rows (a mean, maximum, softmax or normalisation over the first dimension, a number "
        "for each place) outside the model that is split",
        module_path=module_path,
        source=source,
        operation=found.target,
    )


def _first_mixing(captured: Captured, one: Arrays, other: Arrays, pairs: Pairs) -> Operation:
    """The operation after which the first difference shows, found by halving."""
    operations = captured.graph.operations
    # Between an operation that gives several tensors and those that take them out is no boundary.
    ends = [end for end in range(1, len(operations)) if _is_boundary(captured.graph, end)]
    ends.append(len(operations))
    same, differ = -1, len(ends) - 1
    while differ - same > 1:
        middle = (same + differ) // 2
        run = captured.piece_run(0, ends[middle])
        ones, others = run(one), run(other)
        specs = [captured.graph.spec_of(name) for name in ones]
        if _largest_difference(specs, [*ones.values()], [*others.values()], pairs):
            differ = middle
        else:
            same = middle
    return operations[ends[same] if same >= 0 else 0]


def _is_boundary(graph: Graph, position: int) -> bool:
    try:
        boundary_specs(graph, position)
    except KeyError:
        return False
    return True


def _results(captured: Captured) -> tuple[TensorSpec, ...]:
    return tuple(captured.graph.spec_of(name) for name in captured.graph.outputs)


class _Numbers:
    """A model among other numbers of rows; a class only to hold what the comparisons need."""

    def __init__(self, captured: Captured, usual: Arrays, several: int) -> None:
        """Builds what is compared.

        Args:
            captured: the captured model.
            usual: the model's results for `several` rows.
            several: a number with which it works.
        """
        self._captured = captured
        self._usual = usual
        self._several = several
        self._most = max(several, captured.micro_batch_only or _TWO)
        self._specs = _results(captured)
        stop = len(captured.graph.operations)
        self._run = None if captured.is_what_runs else captured.piece_run(0, stop)

    def _rows(self, count: int) -> Arrays:
        pairs = zip(self._captured.rows(self._most), self._captured.graph.inputs, strict=True)
        return tuple(with_rows(array, spec, count) for array, spec in pairs)

    def _find_parting(self, num_rows: int) -> Parting | None:
        return self._captured.find_parting(self._rows, self._several, num_rows)

    def _refused(self, num_rows: int, what: str) -> CaptureError:
        return (self._find_parting(num_rows) or Parting(what=what)).error(what)

    def check(self, num_rows: int) -> None:
        """Compares each row among so many with its usual results, and with the captured model's.

        Raises:
            CaptureError: the model fails, or they differ by more than rounding.
        """
        alone = self._results(num_rows)
        self.compare(num_rows, alone, lambda what: self._refused(num_rows, what))

    def _results(self, num_rows: int) -> Arrays:
        """The model's own results, each row compared with its usual one."""
        rows = in_words(num_rows)
        try:
            alone = self._captured.run_whole(self._rows(num_rows))
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0][:200]
            what = f"with {rows} it fails: {type(error).__name__}: {text}"
            raise self._refused(num_rows, what) from error
        words = _other_shapes(self._specs, alone, num_rows)
        if words:
            raise self._refused(num_rows, f"with {rows} it {words}")
        places = ((k % self._most, k) for k in range(num_rows))
        pairs = tuple((left, right) for left, right in places if left < self._several)
        excess = [
            _largest_difference((spec,), (one,), (two,), pairs)
            for spec, one, two in zip(self._specs, self._usual, alone, strict=True)
        ]
        if any(excess):
            has_parted = self._find_parting(num_rows) is not None
            limits = [_limit(array, has_parted=has_parted) for array in alone]
            if not has_parted and any(by > limit for by, limit in zip(excess, limits, strict=True)):
                first = self._rows(self._several)
                effect = _effect_of_last_bits(self._captured, first, self._usual)
                limits = [max(limit, _ROUNDING_OF_ALL * effect) for limit in limits]
            if any(by > limit for by, limit in zip(excess, limits, strict=True)):
                what = f"a row differs by {max(excess):.2g} of the largest number between "
                raise self._refused(num_rows, f"{what}{in_words(self._several)} and {rows}")
        return alone

    def compare(
        self, num_rows: int, expected: Arrays, refused: Callable[[str], CaptureError]
    ) -> None:
        """Compares the captured model's results with the model's own, where both are two.

        Args:
            num_rows: how many rows.
            expected: the model's own results.
            refused: the error for what differs, in words.

        Raises:
            CaptureError: they differ by more than rounding.
        """
        if self._run is None:
            return
        rows = in_words(num_rows)
        try:
            by_name = self._run(self._rows(num_rows))
            got = [by_name[name] for name in self._captured.graph.outputs]
            words = _other_shapes(self._specs, got, num_rows)
        except Exception as error:
            text = (str(error).strip().splitlines() or [""])[0][:200]
            raise refused(f"captured with 2 rows or more, it fails with {rows}: {text}") from error
        if words or any(
            _difference(one, other) > _limit(one, has_parted=True)
            for one, other in zip(expected, got, strict=True)
        ):
            raise refused(f"captured with 2 rows or more, it computes {rows} otherwise")


def _other_shapes(specs: Sequence[TensorSpec], results: Sequence[np.ndarray], num_rows: int) -> str:
    """How results have other shapes than promised, or ``""``."""
    if len(specs) != len(results):
        return f"returns {len(results)} tensors instead of {len(specs)}"
    for spec, array in zip(specs, results, strict=True):
        if array.shape != spec.concrete_shape(num_rows):
            return f"returns a result of shape {list(array.shape)}, expected {spec}"
    return ""


def _limit(array: np.ndarray, *, has_parted: bool) -> float:
    """The largest difference that may still be rounding."""
    name = dtype_name(array.dtype)
    if has_parted:
        return _ANOTHER_WAY * _TOLERANCES.get(name or "", _OTHERWISE)
    return _SAME_WAY if name in FLOATING else float("inf")


def _with_other_neighbours(rows: Arrays, stays: int) -> Arrays:
    """One row of each input, and beside it only itself; changed where it was there already."""
    others = []
    for array in rows:
        changed = np.repeat(array[stays : stays + 1], len(array), axis=0)
        if np.array_equal(changed, array) and _is_floating(array):
            changed = (changed * 0.5 + 0.25).astype(array.dtype)
            changed[stays] = array[stays]
        others.append(changed)
    return tuple(others)


def _limit_elsewhere(captured: Captured, rows: Arrays, usual: Arrays) -> float:
    """The largest difference between places among the rows that may still be rounding."""
    if any(map(_is_floating, rows)):
        effect = _effect_of_last_bits(captured, rows, usual)
        return max(min(_SAME_WAY, _ROUNDING * effect), _ROUNDING_OF_ALL * effect)
    # Whole numbers, of which tokens are made, have no last bits.
    return max(_limit(array, has_parted=True) for array in usual)


def _effect_of_last_bits(captured: Captured, rows: Arrays, usual: Arrays) -> float:
    """By how much results differ, relative to the largest, when an input's last bits do."""
    changed = tuple(
        (array * (1 + _eps(array))).astype(array.dtype) if _is_floating(array) else array
        for array in rows
    )
    every = tuple((index, index) for index in range(len(rows[0])))
    others = captured.run_whole(changed)
    return _largest_difference(_results(captured), usual, others, every, tolerance=0.0)


def _eps(array: np.ndarray) -> float:
    """The distance from 1 to the next number of an array's dtype."""
    return float(finfo(array.dtype).eps)  # type: ignore[no-untyped-call]


def _is_floating(array: np.ndarray) -> bool:
    return dtype_name(array.dtype) in FLOATING


def _largest_difference(
    specs: Sequence[TensorSpec],
    ones: Sequence[np.ndarray],
    others: Sequence[np.ndarray],
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


def _row(spec: TensorSpec, array: np.ndarray, index: int) -> np.ndarray:
    """What of an array belongs to one row."""
    for dim, length in enumerate(spec.shape):
        factor = dim_factor(length)
        if factor is not None:
            array = array[(slice(None),) * dim + (slice(index * factor, (index + 1) * factor),)]
    return array


def _difference(one: np.ndarray, other: np.ndarray, tolerance: float | None = None) -> float:
    """By how much numbers differ, relative to the largest; 0 where that is at most `tolerance`.

    Args:
        one: a result.
        other: another of the same shape.
        tolerance: where None, what is little for the dtype.
    """
    if np.array_equal(one, other):
        return 0.0
    with np.errstate(invalid="ignore"):  # of infinities, which count as nothing
        off_by = magnitude_of(wide(one) - wide(other))
    ratio = off_by / max(magnitude_of(one), 1e-30)
    if tolerance is None:
        tolerance = _TOLERANCES.get(dtype_name(one.dtype) or "", _OTHERWISE)
    return ratio if ratio > tolerance else 0.0
