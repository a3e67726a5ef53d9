"""Following a model's call: the lines of its own code, and what it asks of torch on the way."""

from __future__ import annotations

import dataclasses
import functools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

from cutset.capture.source_lines import is_library_file

_MOST_EVENTS = 1_000_000
_STANDARD = Path(sysconfig.get_path("stdlib"))
_MAKE_LENGTHS = frozenset({"arange", "range", "linspace", "logspace"})
_MOST_ELEMENTS = 1 << 16
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


@dataclasses.dataclass(frozen=True)
class Place:
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
class TorchCall:
    """One call of a function of torch.

    Attributes:
        name: the function's.
        numbers: what it was given that is no tensor and no length, in order.
        shapes: of the tensors that it gave.
        place: where the model called it.
        line: how many lines of the model had begun by then.
        row: two numbers of the first row of each tensor that it gave: its length, and its product
            with a fixed vector.
    """

    name: str
    numbers: tuple[object, ...]
    shapes: tuple[tuple[int, ...], ...]
    place: Place | None
    line: int
    row: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True)
class FollowedRun:
    """The way that a model took.

    Attributes:
        steps: calls of torch, in order.
        lines: of the model's own code, in order.
        error: what it ended with, or None.
    """

    steps: tuple[TorchCall, ...]
    lines: tuple[Place, ...]
    error: Exception | None


def follow(model: torch.nn.Module, run: Callable[[int], object], num_rows: int) -> FollowedRun:
    """Runs the model and notes its lines and what it calls of torch."""
    paths = {id(module): path for path, module in model.named_modules()}
    lines: list[Place] = []
    steps = _Steps(paths, lines)
    error: Exception | None = None

    def on_call(frame: types.FrameType, _event: str, _argument: object) -> Any:
        if len(lines) >= _MOST_EVENTS or not _is_of_a_model(frame.f_code.co_filename):
            return None
        owner = paths.get(id(frame.f_locals.get("self")))

        def on_line(here: types.FrameType, event: str, _argument: object) -> Any:
            if event == "line" and len(lines) < _MOST_EVENTS:
                lines.append(Place(here.f_code.co_filename, here.f_lineno, owner))
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
    return FollowedRun(tuple(steps.steps), tuple(lines), error)


@functools.cache
def _is_of_a_model(file: str) -> bool:
    """Whether a file is neither torch's, nor ours, nor of Python's own library."""
    path = Path(file)
    is_standard = path.is_relative_to(_STANDARD) and "site-packages" not in path.parts
    return not is_standard and not is_library_file(file)


class _Steps(TorchFunctionMode):
    """Notes each function of torch that Python calls, as the model wrote it."""

    def __init__(self, paths: Mapping[int, str], lines: Sequence[Place]) -> None:
        super().__init__()
        self.steps: list[TorchCall] = []
        self._lines = lines
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
            row = tuple(map(_of_first_row, _tensors(result)))
            place, line = self._caller(), len(self._lines)
            self.steps.append(TorchCall(name, numbers, shapes, place, line, row))
        return result

    def _caller(self) -> Place | None:
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None and not _is_of_a_model(frame.f_code.co_filename):
            if frame.f_code is follow.__code__:
                return None
            frame = frame.f_back
        if frame is None:
            return None
        owner = self._paths.get(id(frame.f_locals.get("self")))
        return Place(frame.f_code.co_filename, frame.f_lineno, owner)


def _of_first_row(tensor: torch.Tensor) -> tuple[float, float]:
    """The length of the first row as a vector, and its product with a fixed one."""
    row = (tensor[:1] if tensor.dim() else tensor).detach().flatten()[:_MOST_ELEMENTS]
    numbers = torch.view_as_real(row.resolve_conj()).flatten() if row.is_complex() else row
    numbers = torch.nan_to_num(numbers.to(torch.float64))
    fixed = torch.cos(torch.arange(len(numbers), dtype=torch.float64))
    return float(numbers.norm()), float(numbers @ fixed)


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
