"""Says where a capture stopped and why: module path, source line, operation, what to do."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from cutset.capture.constants import NumberError
from cutset.capture.source_lines import is_library_file, place_in_words, source_line
from cutset.errors import CaptureError

_MOST_CHARACTERS = 240
_ADVICE = "Make the forward free of decisions on tensor values and of a fixed number of rows"
_RUNS = "The model itself runs on its example; this is what torch.export cannot follow in it"
_ON_VALUES = re.compile(
    r"data.?dependent|depends on the values|unbacked|\bu\d+\b|zuf\d|nonzero"
    r"|convert.*to a (?:Python )?(?:scalar|bool)",
    re.IGNORECASE,
)
_SPECIALISED = re.compile(r"specialized it to be a constant \((\d+)\)")
_CONDITION = re.compile(r"satisfy the generated guard (.+?)\.(?:\s|$)")
_UNKNOWN_RESULT = re.compile(r"Found (<class '[^']+'>) in output")
_OPERATION = re.compile(r"\b(?:aten|prims|torchvision)[.:]+\w+(?:\.\w+)?")
_TRIED_ROWS = (2, 3, 4, 5, 7, 8, 13, 16, 64, 1000)
"""Numbers of rows with which conditions are tried. One row is left out: torch sets it apart."""

_FROM_A_SEED = torch.Tag.nondeterministic_seeded


def error_at(node: Node, why: str, *, operation: str | None = None) -> CaptureError:
    """An error that names the module and the source line of a node of a captured program."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module_path = str(stack[-1][0]) if stack else ""
    source = source_line(node)
    operation = operation or str(node.target)
    return CaptureError(
        f"the model cannot be split{place_in_words(module_path, source, operation)}: {why}",
        module_path=module_path or None,
        source=source or None,
        operation=operation,
    )


def export_error(model: torch.nn.Module, error: Exception) -> CaptureError:
    """What stopped `torch.export`, in words, with the place found in the error's traceback."""
    module_path, source = place_of(model, error)
    text = str(error).strip()
    scripted = [p for p, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    fixed = _SPECIALISED.search(text)
    condition = _CONDITION.search(text)
    match = _OPERATION.search(text)
    operation = match[0] if match else None
    if scripted:
        module_path = scripted[0]
        why = (
            "TorchScript modules cannot be captured; build the model from its original classes "
            "and load the weights into them"
        )
    elif isinstance(error, NumberError):
        why = text
    elif condition:
        why = (
            f"a decision in it holds for some numbers of rows only ({condition[1]}). Make the "
            "forward the same for every number of rows"
        )
    elif fixed:
        why = (
            f"an operation in it works for {fixed[1]} rows only, the number in the example. Take "
            "the number of rows from the input (x.shape[0], or -1 in view and reshape) instead of "
            "writing it down"
        )
    elif unknown := _UNKNOWN_RESULT.search(text):
        why = (
            f"it returns an object of {unknown[1]}, which torch does not know to hold tensors. "
            "Return a tensor, tuple or dict, or tell torch of a dataclass with "
            "torch.export.register_dataclass before the model is captured"
        )
    else:
        line = (text.splitlines() or [type(error).__name__])[0].partition(" See http")[0]
        on_values = _ON_VALUES.search(f"{type(error).__name__} {text}")
        # A condition on ninety symbols names each.
        why = f"{shortened(line, _MOST_CHARACTERS).rstrip('.')}. {_ADVICE if on_values else _RUNS}"
    place = place_in_words(module_path, source, operation)
    what = (
        "the model cannot be split"
        if isinstance(error, NumberError)
        else "torch.export cannot trace the model"
    )
    return CaptureError(
        f"{what}{place}: {why}",
        module_path=module_path,
        source=source,
        operation=operation,
    )


def is_held_at_a_number(error: Exception) -> bool:
    """Whether torch says that a length became a number."""
    return _SPECIALISED.search(str(error)) is not None


def is_about_values(error: CaptureError) -> bool:
    """Whether a capture failed for what only values can tell or show (``t.data``), as it seems."""
    words = f"{type(error.__cause__ or error).__name__} {error.__cause__ or error}"
    return _ON_VALUES.search(words) is not None or "constant's list" in words


def shortened(text: str, most: int) -> str:
    """The beginning of a text, `most` characters or a little more: whole sentences or words."""
    if len(text) <= most:
        return text
    head = text[: most + 1]
    end = head.rfind(". ")
    if end > 0:
        return head[: end + 1]
    return f"{head[: max(head.rfind(' '), 0)] or head[:-1]} ..."


def place_of(model: torch.nn.Module, error: Exception) -> tuple[str | None, str | None]:
    """Path of the innermost module of the model in the traceback, and the user's line there."""
    paths = {id(module): path for path, module in model.named_modules()}
    module_path = source = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if id(owner) in paths:
            module_path = paths[id(owner)]
        if not is_library_file(frame.f_code.co_filename):
            source = f"{Path(frame.f_code.co_filename).name}:{line}"
    return module_path, source


def check_program(exported: ExportedProgram) -> None:
    """Refuses programs that could be captured but not run as a pipeline with equal numbers.

    Raises:
        CaptureError: an operation draws random numbers, or a tensor's length or a number depends
            on the values of tensors.
    """
    for node in exported.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if _FROM_A_SEED in node.target.tags and not _hands_through(node):
            raise error_at(
                node,
                "it draws random numbers, so that no two runs agree and nothing can be verified. "
                "Take the noise as an input, or switch it off in evaluation mode",
            )
        if any(_depends_on_values(length) for length in _lengths(node.meta.get("val"))):
            raise error_at(
                node,
                "its result's shape, or a number that it hands to Python, depends on the values "
                "in a tensor, so that what crosses a boundary has no fixed shape. Keep such a "
                "step (selection by a mask, nonzero, item) outside the model that is split",
            )


def check_conditions(exported: ExportedProgram, refusal: CaptureError, cause: Exception) -> None:
    """Tries the conditions on the number of rows under which a program was traced.

    Args:
        exported: traced with `torch.export.Dim.AUTO`.
        refusal: raised where a condition does not hold, or the number became fixed.
        cause: what torch itself said.
    """
    symbols = rows_symbols(exported)
    if len(symbols) == 0 or not all(map(_is_free, _numbers_of_rows(exported))):
        raise refusal from cause
    for guard in _shape_environment(exported).guards:
        for num_rows in _TRIED_ROWS:
            # SymPy's own comparisons and torch's alike become true or false on numbers.
            if guard.expr.xreplace(dict.fromkeys(symbols, sympy.Integer(num_rows))) == sympy.false:
                raise refusal from cause


def rows_symbols(exported: ExportedProgram) -> frozenset[Any]:
    """The symbols that stand for the number of rows of each input; mostly the same one."""
    return frozenset(length.node.expr for length in _numbers_of_rows(exported) if _is_free(length))


def _numbers_of_rows(exported: ExportedProgram) -> tuple[Any, ...]:
    """The first length of every input, symbolic or fixed."""
    names = set(exported.graph_signature.user_inputs)
    values = [
        node.meta.get("val")
        for node in exported.graph.nodes
        if node.op == "placeholder" and node.name in names
    ]
    return tuple(v.shape[0] for v in values if isinstance(v, torch.Tensor) and v.dim())


def _is_free(length: Any) -> bool:
    return isinstance(length, torch.SymInt) and not length.node.expr.is_Integer


def _shape_environment(exported: ExportedProgram) -> Any:
    return next(v.node.shape_env for v in _numbers_of_rows(exported) if _is_free(v))


def _hands_through(node: Node) -> bool:
    """Whether the operation is random in training alone, and is not asked to train."""
    schema = node.target._schema  # type: ignore[union-attr]
    given = {a.name: node.kwargs.get(a.name, a.default_value) for a in schema.arguments}
    given |= {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)}
    return given.get("train") is False or any(
        given.get(name) in (False, 0.0) for name in ("training", "dropout_p") if name in given
    )


def _lengths(value: object) -> Iterable[object]:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(length for item in value for length in _lengths(item))
    return (value,)


def _depends_on_values(length: object) -> bool:
    """Whether a symbolic number stands for something that only a run can tell."""
    if not isinstance(length, (torch.SymInt, torch.SymFloat)):
        return False
    expression: Any = length.node.expr
    # torch calls the symbols of lengths s0, s1, ...; those that only a run can tell u0, zuf0, ...
    return any(str(symbol).startswith(("u", "zuf")) for symbol in expression.free_symbols)
