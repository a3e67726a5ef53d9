from __future__ import annotations

import pytest

from cutset.bundles.reading.torch.expressions import is_safe_expression, is_safe_guard


@pytest.mark.parametrize(
    "text",
    [
        "s77",
        "2*s77",
        "s0//2 + 1",
        "-s0",
        "u3",
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(2), Symbol('s77', positive=True, integer=True))",
        "FloorDiv(s0, 2)",
        "Max(1, s0)",
        "Eq(s0, 2)",
        "True",
        "Float('0.5', precision=53)",
        "Pow(s0, Integer(2), evaluate=False)",
        "Pow(s0, Integer(-1))",
        "(s0//2 + 1)**2",
        "s0**0.5",
        "3",
    ],
)
def test_formulas_of_lengths(text: str) -> None:
    assert is_safe_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "s0**s0",
        "Pow(9, Pow(9, 9))",
        "Pow(Integer(9), Integer(999999999))",
        "PowByNatural(s0, s1)",
        "2**1e300",
        "(((((s0**99)**99)**99)**99)**99)",
        "Float('0.5', precision=10**9)",
        "Float('0.5', precision=1000000000)",
        "__import__('os').system('x')",
        "os.system('x')",
        "s0.__class__",
        "s0()",
        "s0[0]",
        "Symbol",
        "Symbol('x')",
        "Symbol('s0').name",
        "Symbol('s0', positive=print())",
        "Symbol(*s0)",
        "Symbol('s0')('s1')",
        "Integer(__import__('os'))",
        "Integer('__import__')",
        "Float('0.5', precision=print)",
        "FloorDiv(print(), 2)",
        "Add(**s0)",
        "Add(1, evaluate=s0)",
        "lambda: 1",
        "[s0]",
        "(s0, s1)",
        "{s0}",
        "s0 if s1 else s2",
        "s0 @ s1",
        "s0 << 99",
        "s0 in s1",
        "(s0 := 1)",
        "f'{s0}'",
        "'s0'",
        "b'x'",
        "1j",
        "...",
        "None",
        "s0; s1",
        "s0\ns1",
        "eval",
        "x",
        "s",
        "",
        "(" * 300,
        "1+" * 3000 + "1",
        "-" * 3000 + "1",
        "\x00",
    ],
)
def test_everything_else(text: str) -> None:
    assert not is_safe_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "L['x'].size()[1] == 3",
        "L['args'][0].size()[0] >= 2",
        "L['getitem_2']._base.size()[1] != 4",
        "L['x'].size()[0] <= 1024 and L['x'].dim() == 4",
    ],
)
def test_guards_that_compare_lengths(text: str) -> None:
    assert is_safe_guard(text)
    assert not is_safe_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "L",
        "L['x'].__class__",
        "L['x'].size",
        "L['x']._base._base.size()[0] == 1",
        "s0._base.size()[0] == 1",
        "L['x']._base.__class__.size()[0] == 1",
        "L['x'].size().index(1)",
        "L['x'].size(print())[0]",
        "L['x'].tolist()",
        "L[print()]",
        "L['x'][print()]",
        "M['x']",
        "L['x'].size()[0:2]",
        "globals()['x']",
        "9**9**9**9 == 1",
        "L['x'].size()[0]**L['x'].size()[0] == 1",
    ],
)
def test_guards_that_do_more(text: str) -> None:
    assert not is_safe_guard(text)
