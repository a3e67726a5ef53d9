"""Text from outside as a terminal may show it: labels, names and reasons must not steer it.

A bundle, a file, a cluster file, a model and a peer choose their names. In a terminal some
characters are orders: clear the screen, set the title, turn the text around. Here they become the
escapes that Python would write for them, so that a reader sees that they are there.
"""

from __future__ import annotations

import re
import unicodedata

# All but what ASCII has of visible characters and the space; most text has nothing of it.
_UNSURE = re.compile(r"[^\x20-\x7e]")
_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji


def _is_harmless(character: str) -> bool:
    return (
        character.isprintable()
        or character in _JOINERS
        or unicodedata.category(character) == "Zs"  # spaces of other widths
    )


def printable(text: str) -> str:
    r"""The text in one line, with ``\x1b`` for an escape character and the like.

    What is replaced: control characters (C0, C1, DEL), ends of lines and paragraphs, characters
    that format without being seen (those that turn the direction of text among them), halves of
    surrogate pairs, and what Unicode has not given out.
    """
    return _UNSURE.sub(_as_escape, text)


def _as_escape(match: re.Match[str]) -> str:
    character = match.group()
    if _is_harmless(character):
        return character
    return character.encode("unicode_escape").decode("ascii")


def printable_lines(text: str) -> str:
    """The text line by line, each as `printable` gives it; for text whose lines are our own."""
    return "\n".join(map(printable, text.split("\n")))


def printable_json(text: str) -> str:
    r"""A JSON document with ``\u009b`` for each such character; it says what it said before."""
    return re.sub(r"[^\x20-\x7e\n]", _as_json_escape, text)


def _as_json_escape(match: re.Match[str]) -> str:
    character = match.group()
    if _is_harmless(character):
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[k]:02x}{units[k + 1]:02x}" for k in range(0, len(units), 2))


def visible(value: object) -> object:
    """A text as `printable` gives it, anything else as it is; for Jinja's `finalize`."""
    return printable(value) if type(value) is str else value  # not Markup, which is our own


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:most]
