"""The values that stand in a cluster file: how each is read, and what is said of a wrong one.

Each type has ``_read``, which msgspec asks through `decode_value`; what it raises is a `ValueError`
that says what is wrong, and msgspec adds where.
"""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Any, ClassVar

from typing_extensions import Self

from cutset.quantities import (
    BANDWIDTH,
    BYTE_COST,
    MAX_BYTES,
    SECONDS,
    Measure,
    read_bytes,
    read_quantity,
    shown,
)

_MAX_SPEED = 1e9
_MIN_BANDWIDTH_BYTES_PER_S = 1e-3
_MAX_THREADS = 65_536
_BACKEND = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}(:[A-Za-z0-9._-]{1,64})?")


class Text(str):
    """Text that says something."""

    __slots__ = ()

    @classmethod
    def _read(cls, value: object) -> Text:
        if not isinstance(value, str) or not value:
            raise ValueError(f"expected text, got {kind_of(value)}")
        return cls(value)


class DevicePath(Text):
    """A file or folder on a device: absolute, or below the user's home folder."""

    __slots__ = ()

    @classmethod
    def _read(cls, value: object) -> DevicePath:
        text = Text._read(value)
        if not text.isprintable():
            raise ValueError(f"{shown(text)} has characters that cannot be seen")
        if not text.startswith(("/", "~/")):
            raise ValueError(f"expected a path that begins with / or ~/, got {shown(text)}")
        return cls(text)


class ProgramName(Text):
    """A program on a device: a path, or a name that is looked for there."""

    __slots__ = ()

    @classmethod
    def _read(cls, value: object) -> ProgramName:
        text = Text._read(value)
        is_name = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+-]*", text)
        return cls(text if is_name else DevicePath._read(value))


class Variables(tuple[tuple[str, str], ...]):
    """Variables of an environment, as a table of text."""

    __slots__ = ()

    @classmethod
    def _read(cls, value: object) -> Variables:
        if not isinstance(value, dict):
            raise ValueError(  # noqa: TRY004  # what msgspec takes from a hook
                f"expected a table of variables, got {kind_of(value)}"
            )
        for name, text in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{shown(name)} is no name of a variable")
            if not isinstance(text, str) or "\0" in text or "\n" in text:
                raise ValueError(f"{name}: expected text of one line, got {shown(text)}")
        return cls(value.items())


class IpAddress(Text):
    """An address of a network interface."""

    __slots__ = ()

    @classmethod
    def _read(cls, value: object) -> IpAddress:
        text = Text._read(value)
        try:
            return cls(ipaddress.ip_address(text))
        except ValueError:
            raise ValueError(f"expected an IP address, got {shown(text)}") from None


class ThreadCount(int):
    """A number of threads."""

    @classmethod
    def _read(cls, value: object) -> ThreadCount:
        if type(value) is not int or not 1 <= value <= _MAX_THREADS:
            raise ValueError(
                f"expected a whole number from 1 to {_MAX_THREADS}, got {shown(value)}"
            )
        return cls(value)


class Memory(int):
    """Whole bytes, never more than what is written."""

    @classmethod
    def _read(cls, value: object) -> Memory:
        if isinstance(value, str) and value.strip() != "inf":
            return cls(read_bytes(value))
        number = math.inf if isinstance(value, str) else _number(value)
        if math.isinf(number):
            raise ValueError("leave it out where memory is no limit")
        if number > MAX_BYTES:
            raise ValueError(f"{shown(value)} is too large, the most is 2**63 - 1 bytes")
        return cls(value if isinstance(value, int) else number)


class Speed(float):
    """How many times as fast as the reference."""

    @classmethod
    def _read(cls, value: object) -> Speed:
        number = _number(value, above=True)
        if not 1 / _MAX_SPEED <= number <= _MAX_SPEED:
            raise ValueError(
                f"expected {1 / _MAX_SPEED:g} to {_MAX_SPEED:g} times the reference, got {number:g}"
            )
        return cls(number)


class Quantity(float):
    """A finite amount: text such as ``"1 ms"``, or a plain number.

    Attributes:
        measure: what it measures.
        bare: the number as it was written, where that was without a unit and a unit matters.
    """

    measure: ClassVar[Measure]
    bare: str | None = None

    @classmethod
    def _read(cls, value: object) -> Self:
        if isinstance(value, str):
            found = cls(read_quantity(value, cls.measure))
        else:
            found = cls(_number(value))
            found.bare = shown(value) if found and math.isfinite(found) else None
        found._check()
        return found

    def _check(self) -> None:
        if math.isinf(self):
            raise ValueError("must be finite")


class Duration(Quantity):
    """A time."""

    measure = SECONDS


class ByteCost(Quantity):
    """Seconds of computing for each byte."""

    measure = BYTE_COST


class Bandwidth(Quantity):
    """Bytes per second; infinity where bytes cost nothing."""

    measure = BANDWIDTH

    def _check(self) -> None:
        if self < _MIN_BANDWIDTH_BYTES_PER_S:
            raise ValueError(
                f"must be at least {_MIN_BANDWIDTH_BYTES_PER_S:g} B/s, got {float(self):g}"
            )


class Duplex(str):
    """Whether a port sends and receives at the same time: ``"full"`` or ``"half"``."""

    __slots__ = ()

    @property
    def is_half(self) -> bool:
        """Whether it does not."""
        return self == "half"

    @classmethod
    def _read(cls, value: object) -> Duplex:
        if value not in ("full", "half"):
            raise ValueError(f"expected 'full' or 'half', got {kind_of(value)}")
        return cls(value)


class Security(str):
    """What keeps a link between hosts: ``"curve"``, keys and encryption, or ``"none"``."""

    __slots__ = ()

    @classmethod
    def _read(cls, value: object) -> Security:
        if value not in ("curve", "none"):
            raise ValueError(f"expected 'curve' or 'none', got {kind_of(value)}")
        return cls(value)


class TrueOrFalse(int):
    """``true`` or ``false``."""

    @classmethod
    def _read(cls, value: object) -> TrueOrFalse:
        if not isinstance(value, bool):
            raise ValueError(  # noqa: TRY004  # what msgspec takes from a hook
                f"expected true or false, got {kind_of(value)}"
            )
        return cls(value)


class Names(tuple[str, ...]):
    """The names of devices."""

    __slots__ = ()

    @classmethod
    def _read(cls, value: object) -> Names:
        if not isinstance(value, list):
            raise ValueError(  # noqa: TRY004  # what msgspec takes from a hook
                f"expected names of devices, got {kind_of(value)}"
            )
        return cls(str(Text._read(each)) for each in value)


class Backends(tuple[str, ...]):
    """The full names of backends, at least one."""

    __slots__ = ()

    @classmethod
    def _read(cls, value: object) -> Backends:
        names = value if isinstance(value, list) else []
        for name in names:
            if not isinstance(name, str) or not _BACKEND.fullmatch(name):
                raise ValueError(f"{shown(str(name))} is no backend's name")
        if not names:
            raise ValueError('expected names of backends, such as ["onnxruntime"]')
        return cls(dict.fromkeys(names))


class Pair(tuple[str, str]):
    """The names of two devices."""

    __slots__ = ()

    @classmethod
    def _read(cls, value: object) -> Pair:
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError("expected two device names")
        return cls(Text._read(each) for each in value)


def _number(value: object, *, above: bool = False) -> float:
    """A number of at least 0, or above it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(  # noqa: TRY004  # what msgspec takes from a hook
            f"expected a number, got {kind_of(value)}"
        )
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f"{shown(value)} is too large") from None
    if math.isnan(number) or number < 0 or (above and number == 0):
        raise ValueError(f"must be {'above' if above else 'at least'} 0, got {number}")
    return number


def decode_value(kind: Any, value: object) -> Any:
    """What msgspec asks for a value of a type of this module's."""
    return kind._read(value)


def kind_of(value: object) -> str:
    """A value and its type, for messages."""
    return f"{type(value).__name__} {shown(value)}"
