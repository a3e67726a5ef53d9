"""Quantities as people write them: ``"100 Mbit/s"``, ``"50 ms"``, ``"1 GiB"``.

Cluster files and the command line read them the same way. What cannot be read is answered with the
unit that was probably meant.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from difflib import SequenceMatcher, get_close_matches
from fractions import Fraction

MAX_BYTES = 2**63 - 1
"""The most bytes that an amount of memory may have."""

_MAX_TEXT = 64
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """A kind of quantity.

    Attributes:
        name: what a plain number of it counts: ``"seconds"``.
        example: how to write one, for messages.
        units: what one of each unit is, in the plain number's unit.
    """

    name: str
    example: str
    units: Mapping[str, float]


_BYTE_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTE_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

BYTES = Measure(name="bytes", example="1 GiB", units=_BYTE_UNITS)
SECONDS = Measure(
    name="seconds",
    example="1 ms",
    units={"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0},
)
BANDWIDTH = Measure(
    name="bytes per second",
    example="100 Mbit/s",
    units={f"{unit}/s": float(size) for unit, size in _BYTE_UNITS.items()}
    | {
        f"{prefix}{bit}": scale / 8
        for prefix, scale in (
            ("", 1.0),
            ("k", 1e3),
            ("K", 1e3),
            ("M", 1e6),
            ("G", 1e9),
            ("T", 1e12),
        )
        for bit in ("bit/s", "bps")
    },
)
BYTE_COST = Measure(
    name="seconds per byte",
    example="5 ns/B",
    units={"s/B": 1.0}
    | dict.fromkeys(("ns/B", "us/kB", "µs/kB", "us/KB", "ms/MB", "s/GB"), 1e-9)
    | dict.fromkeys(("ps/B", "us/MB", "µs/MB", "ms/GB"), 1e-12),
)
ROW_RATE = Measure(
    name="rows per second",
    example="20 rows/s",
    units={"rows/s": 1.0, "row/s": 1.0, "/s": 1.0, "rows/min": 1 / 60, "rows/h": 1 / 3600},
)


def read_quantity(text: str, measure: Measure, *, bare: str | None = None) -> float:
    """A number and a unit, 0 or more; ``"inf"`` is infinity.

    Args:
        text: as ``"100 Mbit/s"``.
        measure: what it measures.
        bare: the unit of a number without one; None where a unit has to be written.

    Returns:
        The amount in the measure's plain unit.

    Raises:
        ValueError: says what is wrong with the text, without saying where it is.
    """
    if text.strip() == "inf":
        return math.inf
    number, scale = _parts(text, measure, bare)
    amount = abs(float(number) * float(scale))  # "-0" is 0
    if math.isinf(amount):
        raise ValueError(f"{shown(text)} is too large")
    return amount


def read_bytes(text: str, *, bare: str | None = None) -> int:
    """An amount of memory in whole bytes, never more than what is written.

    Args:
        text: as ``"1.5 GiB"``.
        bare: the unit of a number without one; None where a unit has to be written.

    Raises:
        ValueError: as `read_quantity`; also above 2**63 - 1.
    """
    number, scale = _parts(text, BYTES, bare)
    amount = float(number) * float(scale)
    if amount > MAX_BYTES:
        raise ValueError(f"{shown(text)} is too large, the most is 2**63 - 1 bytes")
    # Exact: a float would round 9,007,199,254,740,991.9 B up. Below a byte there is none.
    return int(Fraction(number) * int(scale)) if amount >= 0.5 else 0


def _parts(text: str, measure: Measure, bare: str | None) -> tuple[str, float]:
    """The number as it is written, and what its unit is in plain ones."""
    stripped = text.strip()
    match = _NUMBER.match(stripped)
    rest = stripped[match.end() :] if match else ""
    if match is None or len(stripped) > _MAX_TEXT or rest.startswith(tuple("0123456789.,_")):
        raise ValueError(
            f"cannot read {shown(text)}; write a number and a unit as in {measure.example!r}"
        )
    number, unit = match.group(), rest.strip()
    if number.startswith("-") and float(number) != 0:
        raise ValueError(f"must be 0 or more, got {shown(text)}")
    if not unit and bare is None:
        raise ValueError(
            f"{shown(text)} has no unit; write one as in {measure.example!r}, or a plain number "
            f"without quotes for {measure.name}"
        )
    unit = unit or bare or ""
    if unit not in measure.units:
        raise ValueError(f"unknown unit {shown(unit)}; {_hint(unit, measure)}")
    return number, measure.units[unit]


def _hint(unit: str, measure: Measure) -> str:
    """Which units were probably meant, or else all that there are."""
    near = near_units(unit, measure)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"known: {', '.join(measure.units)}"


def near_units(unit: str, measure: Measure) -> list[str]:
    """The known units that a wrong one may stand for, the likeliest first; one of each value."""
    known: dict[str, list[str]] = {}
    for each in measure.units:
        known.setdefault(_normal(each), []).append(each)
    plain = _normal(unit)
    wanted = [plain, plain + "/s", plain + "b", plain + "bit/s"]
    if "b" in unit and "byte" not in unit.casefold():  # "Mb/s": bits, or else bytes
        bits = re.sub(r"b(?!it)", "bit", plain)
        wanted = [bits, bits + "/s", *wanted]
    found = [name for form in dict.fromkeys(wanted) for name in known.get(form, ())]
    if not found:
        found = [known[form][0] for form in get_close_matches(plain, known, n=1, cutoff=0.7)]
    best: dict[float, str] = {}
    for name in found:
        value = measure.units[name]
        if value not in best or _likeness(name, unit) > _likeness(best[value], unit):
            best[value] = name
    return list(best.values())[:2]


def _likeness(a: str, b: str) -> float:
    return SequenceMatcher(None, a, b).ratio()


_WORDS = (
    ("kibi", "ki"), ("mebi", "mi"), ("gibi", "gi"), ("tebi", "ti"),
    ("kilo", "k"), ("mega", "m"), ("giga", "g"), ("tera", "t"),
    ("milli", "m"), ("micro", "u"), ("nano", "n"), ("µ", "u"), ("μ", "u"),
    ("bytes", "b"), ("byte", "b"), ("bits", "bit"), ("minutes", "min"), ("minute", "min"),
    ("seconds", "s"), ("second", "s"), ("secs", "s"), ("sec", "s"), ("hours", "h"), ("hour", "h"),
    ("bps", "bit/s"), ("per", "/"), (" ", ""), (".", ""),
)  # fmt: skip


def _normal(unit: str) -> str:
    """A unit without what people write in several ways: case, long words, ``per``."""
    plain = unit.replace("Bps", "B/s").casefold()
    for word, short in _WORDS:
        plain = plain.replace(word, short)
    return plain


def shown(value: object) -> str:
    """A value as it is written in code, without control characters, cut off where it is long."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**_MAX_TEXT else "a number"
    return text if len(text) <= 2 * _MAX_TEXT else f"{text[: 2 * _MAX_TEXT]}..."
