"""A strict grammar for the formulas in a stage program, checked without evaluating anything.

`torch.export` writes a symbolic length as a formula (``"2*s77"``, in newer versions
``"Symbol('s77', positive=True, integer=True)"``), and reads it back with `sympy.sympify`, which
evaluates the text as Python. Cutset's loader needs no formula (it computes lengths from the tensors
that arrive) and evaluates none. They are checked all the same, so that a bundle that Cutset
accepted holds nothing that another reader would run.

The text is parsed by `ast.parse`, which executes nothing, and each node of the tree must be one of
these: integers, floats, truth values, symbols (``s0``, ``u3``, ``zf1``), ``+ - * / // % **``,
comparisons, and calls of the functions that torch's printer writes. A power has a written-out
exponent, and what a formula may come to has some thousand digits at most (``9**9**9`` has more than
fit anywhere).
"""

from __future__ import annotations

import ast
import math
import re

_MAX_LENGTH = 4096
_MAX_NODES = 512
_MAX_BITS = 1 << 16
_SYMBOL_BITS = 64
_MAX_PRECISION = 1024
_POWERS = frozenset({"Pow", "FloatPow", "PowByNatural"})
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
    if _bits(tree) > _MAX_BITS:
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


def _bits(tree: ast.AST) -> float:
    """No fewer than the binary digits of the largest number that evaluating `tree` would make.

    A power counts as one only with a written-out exponent, the digits of any other are endless.
    """
    bits: dict[int, float] = {}
    for node in reversed(list(ast.walk(tree))):  # children come before their parents
        below = [bits[id(child)] for child in ast.iter_child_nodes(node)]
        own: float
        if isinstance(node, ast.Constant):
            own = node.value.bit_length() if isinstance(node.value, int) else _SYMBOL_BITS
        elif isinstance(node, ast.Name):
            own = _SYMBOL_BITS
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
            own = _power_bits(below[0], node.right)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in _POWERS:
            own = _power_bits(max(below), node.args[1]) if len(node.args) == 2 else math.inf
        else:
            # Sums and products of n numbers have no more digits than these have in all.
            own = sum(below)
        bits[id(node)] = own
    return bits[id(tree)]


def _power_bits(base_bits: float, exponent: ast.AST) -> float:
    """Digits of a power, with a whole number as its exponent, also as torch writes one."""
    if isinstance(exponent, ast.Call) and getattr(exponent.func, "id", "") == "Integer":
        exponent = exponent.args[0] if exponent.args else exponent
    if isinstance(exponent, ast.UnaryOp) and isinstance(exponent.op, ast.USub):
        exponent = exponent.operand
    if not isinstance(exponent, ast.Constant) or not isinstance(exponent.value, (int, float)):
        return math.inf
    if not abs(exponent.value) <= _MAX_BITS:
        return math.inf
    return max(base_bits * math.ceil(abs(exponent.value)), 1.0)


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
            if isinstance(value, str) and not _NUMBER.fullmatch(value):
                return ()
            numbers.append(argument)
    precision = all(
        k.arg == "precision"
        and isinstance(k.value, ast.Constant)
        and isinstance(k.value.value, int)
        and 0 < k.value.value <= _MAX_PRECISION
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
