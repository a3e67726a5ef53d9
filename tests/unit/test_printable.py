import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutset.printable import first_line, printable, printable_json, printable_lines, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a \x1b[2J\x07", r"a \x1b[2J\x07"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("\u202egpj.exe\u2069", r"\u202egpj.exe\u2069"),
        ("a\r\nb\u2028c\u2029d\x85e", r"a\r\nb\u2028c\u2029d\x85e"),
        ("\udcff", r"\udcff"),
        ("\U000e0041", r"\U000e0041"),
        (
            "caf\u00e9 \u732b \U0001f468\u200d\U0001f469",
            "caf\u00e9 \u732b \U0001f468\u200d\U0001f469",
        ),
        ("1\u00a0000\u3000x", "1\u00a0000\u3000x"),
        (r"C:\new", r"C:\new"),
    ],
)
def test_what_steers_is_shown_and_all_else_stays(text, shown):
    assert printable(text) == shown
    assert visible(text) == shown


def test_lines_of_our_own_stay_lines():
    assert printable_lines("a\nb\x1b") == "a\nb\\x1b"
    assert visible(3) == 3


@given(st.text())
def test_json_says_what_it_said(text):
    document = printable_json(json.dumps({"a": text}, indent=1, ensure_ascii=False))
    assert json.loads(document) == {"a": text}
    assert printable_lines(document) == document


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("  one\ntwo"), "one"),
        (KeyError(), "KeyError"),
        (OSError(" \n "), "OSError"),
        (ValueError("x" * 400), "x" * 300),
    ],
)
def test_the_first_line_of_an_error(error: Exception, line: str) -> None:
    assert first_line(error) == line
