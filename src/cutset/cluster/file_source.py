"""A cluster file's text: where something stands in it, and what is said of a mistake there."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

import msgspec

from cutset.cluster.written_values import Quantity, decode_value, kind_of
from cutset.errors import PlanError
from cutset.quantities import shown

_LOG = logging.getLogger(__name__)


class Source:
    """The text of a cluster file; every complaint names file, line and path.

    Args:
        name: what the file is called.
        text: all of it.
        tables: what each table holds, by its path without numbers; ``""`` for the file.
    """

    def __init__(self, name: str, text: str, tables: Mapping[str, type[msgspec.Struct]]) -> None:
        self.name = name
        self.lines = text.split("\n")  # TOML's lines; splitlines() knows more ends of a line
        self._tables = tables

    def fail(self, path: str, problem: str) -> NoReturn:
        """Raises a `PlanError` that says where and what."""
        raise PlanError(f"{self.where(path)}: {path or 'cluster file'}: {problem}")

    def where(self, path: str) -> str:
        """The file, and the line where that is known."""
        line = self._line_of(path)
        return f"{self.name}:{line}" if line else self.name

    def _line_of(self, path: str) -> int | None:
        """The line that holds ``device[1].speed``, found by counting headers; None if unsure."""
        match = re.fullmatch(r"(?:([\w.]+?)(?:\[(\d+)\])?\.)?([\w-]+)(?:\[(\d+)\])?", path)
        if match is None:
            return None
        table, number, key, own = match.groups()
        if own is not None:  # the path is a table itself: device[1]
            table, number, key = (f"{table}.{key}" if table else key), own, ""
        header_line = None
        for index, line in self._lines_of_table(table, int(number or 0)):
            if header_line is None and table is not None:
                header_line = index
            elif key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return index
        return header_line

    def _lines_of_table(self, table: str | None, number: int) -> Iterator[tuple[int, str]]:
        """The lines, and their numbers, of the `number`-th table of that name, its header first."""
        seen, current = -1, table is None
        for index, line in enumerate(self.lines, start=1):
            header = re.match(r"\s*\[{1,2}\s*([\w.-]+)\s*\]{1,2}", line)
            if header:
                here = header.group(1) == table
                seen += here
                current = here and seen == number
            if current:
                yield index, line

    def convert(self, document: object, path: str = "") -> Any:
        """The table at `path` as the struct that it is to be.

        Raises:
            PlanError: it has other keys or values; the message says where.
        """
        try:
            return msgspec.convert(document, self._tables[path], dec_hook=decode_value)
        except msgspec.ValidationError as error:
            self._explain(error, document, path)

    def _explain(self, error: msgspec.ValidationError, document: object, outer: str) -> NoReturn:
        """Says where and what in the words of a cluster file."""
        text = str(error)
        match = re.fullmatch(r"(.*) - at `\$\.?([\w.\[\]-]*)`", text, re.DOTALL)
        problem, inner = match.groups() if match else (text, "")
        path = f"{outer}.{inner}" if outer and inner else outer or inner
        unknown = re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL)
        if unknown:
            key = unknown.group(1)
            table = self._tables.get(re.sub(r"\[\d+\]", "", path), self._tables[""])
            known = [field.encode_name for field in msgspec.structs.fields(table)]
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            key = key if re.fullmatch(r"[\w-]+", key) else shown(key)
            self.fail(f"{path}.{key}" if path else key, f"unknown key; {hint}")
        missing = re.fullmatch(r"Object missing required field `(\w+)`", problem)
        if missing:
            kind = re.sub(r"\W.*", "", path)
            self.fail(path, f"the {kind} has no {missing.group(1)}")
        if problem.startswith("Expected `"):
            expected = (
                "a table" if problem.startswith("Expected `object`") else f"[[{path}]] tables"
            )
            self.fail(path, f"expected {expected}, got {kind_of(_value_at(document, inner))}")
        self.fail(path, problem)

    def note_bare_numbers(self, table: msgspec.Struct, path: str = "") -> None:
        """Tells of every number that stands without a unit, and how it is read."""
        for field in msgspec.structs.fields(table):
            here = f"{path}.{field.encode_name}" if path else field.encode_name
            value = getattr(table, field.name)
            if isinstance(value, list):
                for index, each in enumerate(value):
                    self.note_bare_numbers(each, f"{here}[{index}]")
            elif isinstance(value, msgspec.Struct):
                self.note_bare_numbers(value, here)
            elif isinstance(value, Quantity) and value.bare is not None:
                _LOG.warning(
                    "%s: %s = %s has no unit and is read as %s; write a unit as in %r",
                    self.where(here), here, value.bare, value.measure.name, value.measure.example,
                )  # fmt: skip


def _value_at(document: Any, path: str) -> object:
    """The value at a path that exists."""
    for key, number in re.findall(r"([\w-]+)|\[(\d+)\]", path):
        document = document[int(number)] if number else document[key]
    return document
