"""Which line of a model decides by the number of rows, found by following it with two numbers.

A capture holds one way through a model's code. Where the code asks how many rows there are, another
number takes another way; `torch.export` sees that only for numbers that it takes for free, and one
row is none of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from cutset.capture.captured import ONE_NUMBER, WAY_OUT, Parting, in_words
from cutset.capture.followed_run import FollowedRun, Place, TorchCall, follow
from cutset.errors import CaptureError

_OTHER_ROWS = (1, 3, 4, 5, 8, 13, 33)
_LOOK_AHEAD = 50
_SAME = 1e-3
"""How far apart numbers of a row may lie, relative to its length, that other kernels made."""
_AFTER_FAILURE = (
    "Take the number of rows from the input (x.shape[0], or -1 in view and reshape) instead of "
    f"writing it down, or {ONE_NUMBER}"
)


def find_parting(
    model: torch.nn.Module,
    run: Callable[[int], object],
    several: int,
    other: int,
    *,
    by_lines: bool = False,
) -> Parting | None:
    """Where the model's way with one number of rows leaves that with another.

    Args:
        model: the module that `run` calls.
        run: calls it with so many rows.
        several: a number of rows with which it works.
        other: another number.
        by_lines: whether a way through other lines counts too, where torch does the same in both.

    Returns:
        The first place that decides, else the first of those that do not; None where both take the
        same way.
    """
    usual, unusual = (follow(model, run, num_rows) for num_rows in (several, other))
    at = together = [0, 0]
    harmless: Parting | None = None
    while True:
        following = _next_difference(usual.steps, unusual.steps, at, several, other)
        at, together = following, together if following == at else following
        if at == [len(usual.steps), len(unusual.steps)]:
            place = _where_lines_part(usual.lines, unusual.lines)
            if harmless is None and by_lines and place is not None:
                return _another_way(place, several, other, decides=False)
            return harmless
        parting = _parting_at(usual, unusual, at, together, several, other)
        again = _where_ways_meet(usual.steps, unusual.steps, at, several, other)
        if again is None:
            return parting
        harmless = harmless or dataclasses.replace(parting, decides=False)
        at = [at[0] + again[0], at[1] + again[1]]
        together = at if 0 not in again or again == (0, 0) else together


def _next_difference(
    usual: tuple[TorchCall, ...],
    unusual: tuple[TorchCall, ...],
    at: list[int],
    several: int,
    other: int,
) -> list[int]:
    """The first steps from `at` on that are not alike; the ends where all are."""
    first, second = at
    while first < len(usual) and second < len(unusual):
        if not _are_alike(usual[first], unusual[second], several, other):
            break
        first, second = first + 1, second + 1
    return [first, second]


def _where_ways_meet(
    usual: tuple[TorchCall, ...],
    unusual: tuple[TorchCall, ...],
    at: list[int],
    several: int,
    other: int,
) -> tuple[int, int] | None:
    """How many steps each way goes from `at` until both have the same numbers again, if soon."""
    first, second = (
        way[start : start + _LOOK_AHEAD] for way, start in zip((usual, unusual), at, strict=True)
    )
    if first and second and _gave_the_same(first[0], second[0]):
        return 1, 1
    is_one_function = first[:1] and second[:1] and first[0].name == second[0].name
    if min(at) > 0 and not is_one_function:  # one way does more, and has then what it had before
        for number, step in enumerate(first, 1):
            if _gave_the_same(usual[at[0] - 1], step):
                return number, 0
        for number, step in enumerate(second, 1):
            if _gave_the_same(unusual[at[1] - 1], step):
                return 0, number
    for one, two in itertools.product(range(len(first)), range(len(second))):
        alike = _are_alike(first[one], second[two], several, other)
        if alike and _gave_the_same(first[one], second[two]):
            return one, two
    return None


def _gave_the_same(one: TorchCall, two: TorchCall) -> bool:
    """Whether the first rows of what two steps gave are the same, but for rounding."""
    return len(one.row) == len(two.row) and all(
        max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= _SAME * max(a[0], b[0])
        for a, b in zip(one.row, two.row, strict=True)
    )


def _parting_at(
    usual: FollowedRun,
    unusual: FollowedRun,
    at: list[int],
    together: list[int],
    several: int,
    other: int,
) -> Parting:
    """The parting of two ways at `at`, where steps differ; `together` is where they last met."""
    first, second = usual.steps[at[0] :], unusual.steps[at[1] :]
    if first and second and first[0].name == second[0].name:
        return _at_a_step(first[0], second[0], several, other)
    if unusual.error is not None and not second:
        text = (str(unusual.error).strip().splitlines() or [""])[0][:200]
        last = unusual.steps[-1].place if unusual.steps else None
        place = unusual.lines[-1] if unusual.lines else last
        return Parting(
            what=f"with {in_words(other)} it fails: {type(unusual.error).__name__}: {text}",
            source=_source(place),
            module_path=_module(place),
            advice=_AFTER_FAILURE,
        )
    lines = (_lines_of(usual, together[0], at[0]), _lines_of(unusual, together[1], at[1]))
    place = _where_lines_part(*lines) or _inserted(first, second)
    return _another_way(place, several, other, decides=True)


def _another_way(place: Place | None, several: int, other: int, *, decides: bool) -> Parting:
    return Parting(
        what=f"it takes another way with {in_words(other)} than with {in_words(several)}",
        source=_source(place),
        module_path=_module(place),
        decides=decides,
    )


def _lines_of(way: FollowedRun, first: int, last: int) -> tuple[Place, ...]:
    """The lines from that of the step before `first` to that of the step `last`, or to the end."""
    begin = max(way.steps[first - 1].line - 1, 0) if first else 0
    return way.lines[begin : way.steps[last].line if last < len(way.steps) else None]


def fixed_rows_error(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], finding: str
) -> CaptureError | None:
    """Why a model cannot be captured for any number of rows: the line that decides, if it is found.

    Args:
        model: the module.
        args: positional arguments, two rows or more of each tensor.
        kwargs: keyword arguments.
        finding: what torch said of it.
    """
    flat, spec = pytree.tree_flatten((args, kwargs))
    several = next(leaf.shape[0] for leaf in flat if isinstance(leaf, torch.Tensor))

    def run(num_rows: int) -> object:
        leaves = [
            leaf[torch.arange(num_rows) % leaf.shape[0]] if isinstance(leaf, torch.Tensor) else leaf
            for leaf in flat
        ]
        some_args, some_kwargs = pytree.tree_unflatten(leaves, spec)
        return model(*some_args, **some_kwargs)

    first: Parting | None = None
    for other in _OTHER_ROWS:
        parting = find_parting(model, run, several, other, by_lines=True)
        if parting is not None and parting.decides:
            return parting.error(finding)
        first = first or parting
    return first.error(finding) if first else None


def _source(place: Place | None) -> str | None:
    return f"{Path(place.file).name}:{place.line}" if place else None


def _module(place: Place | None) -> str | None:
    return (place.module_path or None) if place else None


def _at_a_step(first: TorchCall, second: TorchCall, several: int, other: int) -> Parting:
    """The same function of torch that does something else."""
    name = first.name.rpartition(".")[2]
    advice = WAY_OUT
    if first.numbers != second.numbers:
        what = (
            f"{name} is given {_listed(second.numbers)} with {in_words(other)} and "
            f"{_listed(first.numbers)} with {in_words(several)}"
        )
    else:
        what = (
            f"{name} gives the shape {_listed(second.shapes)} with {in_words(other)} and "
            f"{_listed(first.shapes)} with {in_words(several)}"
        )
        if "squeeze" in name:
            advice = (
                "Name the dimension that goes, squeeze(1) or flatten(1), so that the rows' own "
                "stays where there is one row"
            )
    return Parting(
        what=what, source=_source(second.place), module_path=_module(second.place), advice=advice
    )


def _listed(values: tuple[Any, ...]) -> str:
    return ", ".join(str(list(v) if isinstance(v, tuple) else v) for v in values)


def _are_alike(one: TorchCall, two: TorchCall, several: int, other: int) -> bool:
    if one.name != two.name or one.numbers != two.numbers or len(one.shapes) != len(two.shapes):
        return False
    return all(
        len(a) == len(b)
        and all(
            left == right or left * other == right * several
            for left, right in zip(a, b, strict=True)
        )
        for a, b in zip(one.shapes, two.shapes, strict=True)
    )


def _where_lines_part(usual: tuple[Place, ...], unusual: tuple[Place, ...]) -> Place | None:
    """The last line of both ways before they end in different ones: it decides.

    An earlier line from which they part and meet again decides nothing that is seen in the end.
    """
    blocks = difflib.SequenceMatcher(None, usual, unusual, autojunk=False).get_matching_blocks()
    ends = [block.a + block.size for block in blocks if block.size]
    if usual == unusual or not ends:
        return None
    return usual[ends[-1] - 1]


def _inserted(usual: tuple[TorchCall, ...], unusual: tuple[TorchCall, ...]) -> Place | None:
    """The place of what only one of two ways does, where a decision and what it skips share a line.

    Args:
        usual: the steps of one way from where they differ.
        unusual: those of the other.
    """
    for more, less in ((unusual, usual), (usual, unusual)):
        goes_on = less[0].place if less else None
        if more and goes_on in [step.place for step in more[1:_LOOK_AHEAD]]:
            return more[0].place
    return next((steps[0].place for steps in (unusual, usual) if steps), None)
