"""Which line of a model decides by the number of rows, found by following it with two numbers.

A capture holds one way through a model's code. Where the code asks how many rows there are, another
number takes another way; `torch.export` sees that only for numbers that it takes for free, and one
row is none of them.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

from cutset.capture.diagnosis import place_in_words
from cutset.capture.source_lines import is_library_file
from cutset.errors import CaptureError

_OTHER_ROWS = (1, 3, 4, 5, 8, 13, 33)
_LOOK_AHEAD = 50
_MOST_EVENTS = 1_000_000
_STANDARD = Path(sysconfig.get_path("stdlib"))
_MAKE_LENGTHS = frozenset({"arange", "range", "linspace", "logspace"})
_OPERATORS = {
    "__radd__": "add",
    "__rmul__": "mul",
    "__rsub__": "sub",
    "__truediv__": "div",
    "__itruediv__": "div",
    "__rtruediv__": "div",
    "__floordiv__": "floor_divide",
    "__rpow__": "pow",
    "__rdiv__": "div",
    "__iadd__": "add",
    "__imul__": "mul",
    "__isub__": "sub",
}
"""The functions behind Python's operators, where the name alone does not say."""
ONE_NUMBER = "capture it for one number alone: --micro-batch-only N (micro_batch_only=N)"
WAY_OUT = f"Make the forward the same for every number of rows, or {ONE_NUMBER}"
_AFTER_FAILURE = (
    "Take the number of rows from the input (x.shape[0], or -1 in view and reshape) instead of "
    f"writing it down, or {ONE_NUMBER}"
)


@dataclasses.dataclass(frozen=True)
class _Place:
    """A line of the model's own code.

    Attributes:
        file: its name.
        line: its number.
        module_path: of the module whose method it is in; None where it is in none.
    """

    file: str
    line: int
    module_path: str | None


@dataclasses.dataclass(frozen=True)
class _Step:
    """One call of a function of torch.

    Attributes:
        name: the function's.
        numbers: what it was given that is no tensor and no length, in order.
        shapes: of the tensors that it gave.
        place: where the model called it.
    """

    name: str
    numbers: tuple[object, ...]
    shapes: tuple[tuple[int, ...], ...]
    place: _Place | None


@dataclasses.dataclass(frozen=True)
class _Way:
    """The way that a model took.

    Attributes:
        steps: calls of torch, in order.
        lines: of the model's own code, in order.
        error: what it ended with, or None.
    """

    steps: tuple[_Step, ...]
    lines: tuple[_Place, ...]
    error: Exception | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parting:
    """Where two ways part.

    Attributes:
        what: in words.
        source: ``"model.py:12"``, or None.
        module_path: of the module, or None.
        advice: what to do there.
    """

    what: str
    source: str | None = None
    module_path: str | None = None
    advice: str = WAY_OUT

    def error(self, finding: str) -> CaptureError:
        """The refusal; `finding` says what was seen of it from outside."""
        place = place_in_words(self.module_path, self.source, None)
        words = finding if finding == self.what else f"{self.what} ({finding})"
        return CaptureError(
            f"the model computes a row otherwise by how many there are{place}: {words}, so that "
            f"cutting a batch into micro-batches would change the answers. {self.advice}",
            module_path=self.module_path,
            source=self.source,
        )


def find_parting(
    model: torch.nn.Module, run: Callable[[int], object], several: int, other: int
) -> Parting | None:
    """Where the model's way with one number of rows leaves that with another.

    Args:
        model: the module that `run` calls.
        run: calls it with so many rows.
        several: a number of rows with which it works.
        other: another number.

    Returns:
        The place, or None where both take the same way.
    """
    usual, unusual = (_follow(model, run, num_rows) for num_rows in (several, other))
    step = next(
        (
            index
            for index, (one, two) in enumerate(zip(usual.steps, unusual.steps, strict=False))
            if not _are_alike(one, two, several, other)
        ),
        None,
    )
    if step is None and len(usual.steps) == len(unusual.steps):
        return None
    first = usual.steps[step] if step is not None else None
    second = unusual.steps[step] if step is not None else None
    if first is not None and second is not None and first.name == second.name:
        return _at_a_step(first, second, several, other)
    place = _where_lines_part(usual.lines, unusual.lines) or _inserted(
        usual.steps[len(usual.steps) if step is None else step :],
        unusual.steps[len(unusual.steps) if step is None else step :],
    )
    if unusual.error is not None and step is None:
        text = (str(unusual.error).strip().splitlines() or [""])[0][:200]
        what = f"with {in_words(other)} it fails: {type(unusual.error).__name__}: {text}"
        last = unusual.steps[-1].place if unusual.steps else None
        place = unusual.lines[-1] if unusual.lines else last
        return Parting(
            what=what, source=_source(place), module_path=_module(place), advice=_AFTER_FAILURE
        )
    what = f"it takes another way with {in_words(other)} than with {in_words(several)}"
    return Parting(what=what, source=_source(place), module_path=_module(place))


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

    for other in _OTHER_ROWS:
        parting = find_parting(model, run, several, other)
        if parting is not None:
            return parting.error(finding)
    return None


def in_words(number: int) -> str:
    """``"1 row"``, ``"2 rows"``."""
    return f"{number} {'row' if number == 1 else 'rows'}"


def _source(place: _Place | None) -> str | None:
    return f"{Path(place.file).name}:{place.line}" if place else None


def _module(place: _Place | None) -> str | None:
    return (place.module_path or None) if place else None


def _at_a_step(first: _Step, second: _Step, several: int, other: int) -> Parting:
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


def _are_alike(one: _Step, two: _Step, several: int, other: int) -> bool:
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


def _where_lines_part(usual: tuple[_Place, ...], unusual: tuple[_Place, ...]) -> _Place | None:
    """The last line before the first that differs: it decides."""
    before: _Place | None = None
    for one, two in zip(usual, unusual, strict=False):
        if one != two:
            return before
        before = one
    return before if len(usual) != len(unusual) else None


def _inserted(usual: tuple[_Step, ...], unusual: tuple[_Step, ...]) -> _Place | None:
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


def _follow(model: torch.nn.Module, run: Callable[[int], object], num_rows: int) -> _Way:
    """Runs the model and notes its lines and what it calls of torch."""
    paths = {id(module): path for path, module in model.named_modules()}
    lines: list[_Place] = []
    steps = _Steps(paths)
    error: Exception | None = None

    def on_call(frame: types.FrameType, _event: str, _argument: object) -> Any:
        if len(lines) >= _MOST_EVENTS or not _is_of_a_model(frame.f_code.co_filename):
            return None
        owner = paths.get(id(frame.f_locals.get("self")))

        def on_line(here: types.FrameType, event: str, _argument: object) -> Any:
            if event == "line" and len(lines) < _MOST_EVENTS:
                lines.append(_Place(here.f_code.co_filename, here.f_lineno, owner))
            return on_line

        return on_line

    # What makes the rows is no part of the model.
    hook = model.register_forward_pre_hook(lambda *_: steps.begin())
    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        with torch.no_grad(), steps:
            run(num_rows)
    except Exception as raised:  # noqa: BLE001 - a model may fail in any way
        error = raised
    finally:
        sys.settrace(before)
        hook.remove()
    return _Way(tuple(steps.steps), tuple(lines), error)


@functools.cache
def _is_of_a_model(file: str) -> bool:
    """Whether a file is neither torch's, nor ours, nor of Python's own library."""
    path = Path(file)
    is_standard = path.is_relative_to(_STANDARD) and "site-packages" not in path.parts
    return not is_standard and not is_library_file(file)


class _Steps(TorchFunctionMode):
    """Notes each function of torch that Python calls, as the model wrote it."""

    def __init__(self, paths: Mapping[int, str]) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self._paths = paths
        self._has_begun = False

    def begin(self) -> None:
        """From now on calls are noted."""
        self._has_begun = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function, and notes it where it gives tensors."""
        result = func(*args, **(kwargs or {}))
        shapes = tuple(tuple(t.shape) for t in _tensors(result))
        if shapes and self._has_begun and len(self.steps) < _MOST_EVENTS:
            name = resolve_name(func) or getattr(func, "__name__", str(func))
            given = (*args, *(kwargs or {}).values())
            numbers = tuple(_numbers(given, whole=_computes_with_numbers(name)))
            self.steps.append(_Step(name, numbers, shapes, self._caller()))
        return result

    def _caller(self) -> _Place | None:
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None and not _is_of_a_model(frame.f_code.co_filename):
            if frame.f_code is _follow.__code__:
                return None
            frame = frame.f_back
        if frame is None:
            return None
        owner = self._paths.get(id(frame.f_locals.get("self")))
        return _Place(frame.f_code.co_filename, frame.f_lineno, owner)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        for item in value:
            yield from _tensors(item)


def _numbers(values: Any, *, whole: bool) -> Iterator[object]:
    """What is given beside tensors and is no length.

    Args:
        values: arguments.
        whole: whether whole numbers count too; of most functions they are lengths or dimensions.
    """
    for value in values:
        if isinstance(value, (bool, float, complex, str)) or (whole and isinstance(value, int)):
            yield value


@functools.cache
def _computes_with_numbers(name: str) -> bool:
    """Whether a function computes with a number that it is given (``x * 2``), by its schemas."""
    base = name.rpartition(".")[2]
    if base.startswith("__"):
        base = _OPERATORS.get(base, base.strip("_"))
    packet = getattr(torch.ops.aten, base.rstrip("_"), None)
    if packet is None or base in _MAKE_LENGTHS:
        return False
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return any(str(argument.type) == "number" for s in schemas for argument in s.arguments)
