"""A strict grammar for the formulas in a stage program, checked without evaluating anything.

`torch.export` writes a symbolic length as a formula (``"2*s77"``, in newer versions
``"Symbol('s77', positive=True, integer=True)"``), and reads it back with `sympy.sympify`, which
evaluates the text as Python. Cutset's loader needs no formula (it computes lengths from the tensors
that arrive) and evaluates none. They are checked all the same, so that a bundle that Cutset
accepted holds nothing that another reader would run.

The text is parsed by `ast.parse`, which executes nothing, and each node of the tree must be one of
these: integers, floats, truth values, symbols (``s0``, ``u3``, ``zf1``), ``+ - * / // % **``,
comparisons, and calls of the functions that torch's printer writes.
"""

from __future__ import annotations

import ast
import re

_MAX_LENGTH = 4096
_MAX_NODES = 512
_SYMBOL = re.compile(r"(s|u|z|zf|zuf|f)[0-9]{1,9}")
_FUNCTIONS = frozenset(
    """
    Add Mul Pow Min Max Mod PythonMod FloorDiv CleanDiv CeilDiv ModularIndexing Where Identity
    CeilToInt FloorToInt TruncToInt TruncToFloat RoundToInt RoundDecimal ToFloat FloatTrueDiv
    IntTrueDiv FloatPow PowByNatural IsNonOverlappingAndDenseIndicator Eq Ne Lt Le Gt Ge And Or Not
    Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan
    OpaqueUnaryFn_sqrt floor ceiling Abs
    """.split()  # noqa: SIM905
)
_NUMBER = re.compile(r"-?[0-9.]{1,40}(e[+-]?[0-9]{1,3})?")
_LITERALS = frozenset({"Integer", "Rational", "Float"})
_ASSUMPTIONS = frozenset(
    {"positive", "integer", "nonnegative", "real", "finite", "zero", "nonzero", "negative"}
)
_GUARD_ATTRIBUTES = frozenset({"size", "stride", "storage_offset", "dim"})
_NODES = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
)
_REFUSED_NODES = (ast.MatMult, ast.In, ast.NotIn, ast.LShift, ast.RShift)


def is_safe_expression(text: str) -> bool:
    """Whether `text` is a formula of lengths, by the grammar above."""
    return _check(text, guard=False)


def is_safe_guard(text: str) -> bool:
    """Whether `text` is a comparison of lengths of a program's inputs, never evaluated here.

    Beside formulas it may read ``L['x'].size()[0]`` and ``L['x']._base.size()[0]``, as torch writes
    the guards of an export.
    """
    return _check(text, guard=True)


def _check(text: str, *, guard: bool) -> bool:
    if len(text) > _MAX_LENGTH:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    nodes = list(ast.walk(tree))
    # Parts of accepted calls and reads are accepted with them, and only with them.
    accepted: set[int] = set()
    if len(nodes) > _MAX_NODES:
        return False
    for node in nodes:  # parents come before their children
        if id(node) in accepted or (
            isinstance(node, _NODES) and not isinstance(node, _REFUSED_NODES)
        ):
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            continue
        if isinstance(node, ast.Name) and (
            _SYMBOL.fullmatch(node.id) or node.id in ("True", "False", "int_oo", "oo")
        ):
            continue
        parts = _accepted_call(node) or (_accepted_read(node) if guard else ())
        if not parts:
            return False
        accepted.update(id(part) for part in parts)
    return True


def _accepted_call(node: ast.AST) -> tuple[ast.AST, ...]:
    """The parts of a permitted call that need no further check, or nothing if it is refused."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        return ()
    name, parts = node.func.id, (node.func, *node.keywords)
    if name == "Symbol":
        texts = [a.value for a in node.args if isinstance(a, ast.Constant)]
        is_symbol = (
            len(texts) == len(node.args) == 1
            and isinstance(texts[0], str)
            and _SYMBOL.fullmatch(texts[0]) is not None
            and all(
                k.arg in _ASSUMPTIONS
                and isinstance(k.value, ast.Constant)
                and isinstance(k.value.value, bool)
                for k in node.keywords
            )
        )
        return (*parts, *node.args) if is_symbol else ()
    if name in _LITERALS:
        return _accepted_literal(node, parts)
    if name not in _FUNCTIONS:
        return ()
    evaluate = all(
        k.arg == "evaluate"
        and isinstance(k.value, ast.Constant)
        and isinstance(k.value.value, bool)
        for k in node.keywords
    )
    return parts if evaluate else ()


def _accepted_literal(node: ast.Call, parts: tuple[ast.AST, ...]) -> tuple[ast.AST, ...]:
    """Like `_accepted_call`, for ``Integer(2)``, ``Rational(1, 2)``, ``Float('0.5', 15)``."""
    numbers: list[ast.AST] = []
    for argument in node.args:
        if isinstance(argument, ast.Constant):
            value = argument.value
            if isinstance(value, str) and not re.fullmatch(
                r"-?[0-9.]{1,40}(e[+-]?\d{1,3})?", value
            ):
                return ()
            numbers.append(argument)
    precision = all(
        k.arg == "precision"
        and isinstance(k.value, ast.Constant)
        and isinstance(k.value.value, int)
        for k in node.keywords
    )
    return (*parts, *numbers) if precision else ()


def _accepted_read(node: ast.AST) -> tuple[ast.AST, ...]:
    """Like `_accepted_call`, for ``L['x']``, ``L['x'].size()`` and ``...[0]`` in guards."""
    if isinstance(node, ast.Subscript):
        if isinstance(node.value, ast.Name) and node.value.id == "L":
            key = node.slice
            named = isinstance(key, ast.Constant) and isinstance(key.value, (str, int))
            return (node.value, key) if named else ()
        is_index = isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int)
        return (
            (node.slice,) if is_index and isinstance(node.value, (ast.Subscript, ast.Call)) else ()
        )
    if (
        isinstance(node, ast.Call)
        and not node.args
        and not node.keywords
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in _GUARD_ATTRIBUTES
        and isinstance(node.func.value, (ast.Subscript, ast.Attribute))
    ):
        return (node.func,)
    # The tensor that an input is a view of; what it is an attribute of is checked in turn.
    if isinstance(node, ast.Attribute) and node.attr == "_base":
        return (node.ctx,) if isinstance(node.value, ast.Subscript) else ()
    return ()
