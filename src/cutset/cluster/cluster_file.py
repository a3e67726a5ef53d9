"""The cluster file: devices and the links between them, as people write them.

It is TOML::

    caller = "server"            # optional: the device the rows come from and go back to
    caller_overhead = "1 ms"     # optional; what the caller takes from a stage on its device

    [[device]]
    name = "pi-1"
    speed = 0.5                  # relative to the profiled device ...
    profile = "pi-1.json"        # ... or its own measured costs (then speed is not used)
    memory_bytes = "1 GiB"       # optional; without it memory is no limit
    threads = 4                  # optional
    overhead = "0.8 ms"          # optional; what messages take from a stage's computing
    address = "10.0.0.11"        # optional; where an engine finds it

    [link]                       # the default between any two; without it links cost nothing
    bandwidth = "100 Mbit/s"
    latency = "1 ms"
    send_cost = "5 ns/B"         # optional; what a byte takes from the sender's computing, ...
    receive_cost = "9 ns/B"      # ... and from the receiver's

    [[link.between]]             # both directions ...
    devices = ["pi-1", "server"]
    bandwidth = "1 Gbit/s"

    [[link.between]]             # ... or one
    from = "server"
    to = "pi-1"
    latency = "2 ms"

Numbers without a unit are bytes, bytes per second, seconds, and seconds per byte; but for
``memory_bytes``, whose name says it, a log warning tells how they are read. A bandwidth may be
``inf``. An override that leaves something out takes it from the default.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from cutset.cluster.devices import Cluster, Device, Link, LinkOverride, no_device
from cutset.cluster.written_values import (
    Bandwidth,
    ByteCost,
    Duration,
    Memory,
    Pair,
    Quantity,
    Speed,
    Text,
    ThreadCount,
    decode_value,
    kind_of,
)
from cutset.errors import PlanError
from cutset.quantities import shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_LOG = logging.getLogger(__name__)

_MAX_FILE_BYTES = 1 << 20

# --- the tables of a cluster file, key by key


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file; its fields are the keys that are known."""


class _DeviceTable(_Table, frozen=True, kw_only=True):
    name: Text
    speed: Speed = Speed(1.0)
    memory_bytes: Memory | None = None
    profile: Text | None = None
    threads: ThreadCount | None = None
    address: Text | None = None
    overhead: Duration = Duration(0.0)


class _LinkCosts(_Table, frozen=True, kw_only=True):
    bandwidth: Bandwidth | None = None
    latency: Duration | None = None
    send_cost: ByteCost | None = None
    receive_cost: ByteCost | None = None

    def over(self, default: Link) -> Link:
        """The link; what is not given is the default's."""
        given = {
            "bandwidth_bytes_per_s": self.bandwidth,
            "latency_s": self.latency,
            "send_s_per_byte": self.send_cost,
            "receive_s_per_byte": self.receive_cost,
        }
        return msgspec.structs.replace(
            default, **{name: float(each) for name, each in given.items() if each is not None}
        )


class _BetweenTable(_LinkCosts, frozen=True, kw_only=True, rename={"source": "from"}):
    devices: Pair | None = None
    source: Text | None = None
    to: Text | None = None


class _LinkTable(_LinkCosts, frozen=True, kw_only=True):
    between: list[_BetweenTable] = []


class _ClusterTable(_Table, frozen=True, kw_only=True):
    caller: Text | None = None
    caller_overhead: Duration = Duration(0.0)
    device: list[_DeviceTable] = []
    link: _LinkTable = _LinkTable()


_TABLES: dict[str, type[_Table]] = {
    "": _ClusterTable,
    "device": _DeviceTable,
    "link": _LinkTable,
    "link.between": _BetweenTable,
}


# --- where something stands


class _Source:
    """The text of a cluster file; every complaint names file, line and path."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.lines = text.split("\n")  # TOML's lines; splitlines() knows more ends of a line

    def fail(self, path: str, problem: str) -> NoReturn:
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

    def explain(self, error: msgspec.ValidationError, document: object) -> NoReturn:
        """Says where and what in the words of a cluster file."""
        text = str(error)
        match = re.fullmatch(r"(.*) - at `\$\.?([\w.\[\]-]*)`", text, re.DOTALL)
        problem, path = match.groups() if match else (text, "")
        unknown = re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL)
        if unknown:
            key = unknown.group(1)
            fields = msgspec.structs.fields(
                _TABLES.get(re.sub(r"\[\d+\]", "", path), _ClusterTable)
            )
            known = [field.encode_name for field in fields]
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            key = key if re.fullmatch(r"[\w-]+", key) else shown(key)
            self.fail(f"{path}.{key}" if path else key, f"unknown key; {hint}")
        if problem.startswith("Object missing required field"):  # there is only one
            self.fail(path, "the device has no name")
        if problem.startswith("Expected `"):
            expected = (
                "a table" if problem.startswith("Expected `object`") else f"[[{path}]] tables"
            )
            self.fail(path, f"expected {expected}, got {kind_of(_value_at(document, path))}")
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


# --- reading


def load_cluster(path: str | Path) -> Cluster:
    """Reads a cluster file (see the module's docstring).

    Raises:
        PlanError: the file cannot be read, is no TOML, or breaks a rule; the message gives the
            file, the line where it is known, and the path of the value.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: no path can have this name
        reason = error.strerror if isinstance(error, OSError) else error
        raise PlanError(f"{path}: the cluster file cannot be read: {reason}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise PlanError(f"{path}: longer than {_MAX_FILE_BYTES:,} bytes, so no cluster file")
    try:
        text = data.decode("utf-8-sig")  # some editors begin a file with a byte order mark
    except UnicodeDecodeError as error:
        raise PlanError(
            f"{path}: a cluster file is UTF-8 text; byte {error.start} is not: {error.reason}"
        ) from error
    return cluster_from_toml(text, source=str(path))


def cluster_from_toml(text: str, *, source: str = "cluster") -> Cluster:
    """Reads a cluster from the text of a cluster file; `source` names it in errors.

    Raises:
        PlanError: as `load_cluster`.
    """
    try:
        document = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{source}: not valid TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # numbers of 5000 digits; tables in tables in ...
        raise PlanError(f"{source}: no cluster file: a number or a nesting is too long") from error
    place = _Source(source, text)
    try:
        tables = msgspec.convert(document, _ClusterTable, dec_hook=decode_value)
    except msgspec.ValidationError as error:
        place.explain(error, document)
    place.note_bare_numbers(tables)
    devices = _devices_of(tables.device, place)
    names = [device.name for device in devices]
    if tables.caller is not None and tables.caller not in names:
        place.fail("caller", f"{shown(str(tables.caller))}, {no_device(tables.caller, names)}")
    if tables.caller_overhead and tables.caller is None:
        place.fail("caller_overhead", "there is no caller; name its device with caller = ...")
    link = tables.link.over(Link())
    return Cluster(
        devices=devices,
        link=link,
        overrides=_overrides_of(tables.link.between, link, names, place),
        caller=None if tables.caller is None else str(tables.caller),
        caller_overhead_s=float(tables.caller_overhead),
    )


def _devices_of(tables: Sequence[_DeviceTable], place: _Source) -> tuple[Device, ...]:
    if not tables:
        place.fail("", "no [[device]]; a cluster needs at least one")
    names = [table.name for table in tables]
    for index, name in enumerate(names):
        if name in names[:index]:
            problem = f"{shown(str(name))} is the name of another device too"
            place.fail(f"device[{index}].name", problem)
    # Plain values: to the program a name is a name, wherever it was written.
    return tuple(
        Device(
            name=str(table.name),
            speed=float(table.speed),
            memory_bytes=None if table.memory_bytes is None else int(table.memory_bytes),
            profile=None if table.profile is None else str(table.profile),
            threads=None if table.threads is None else int(table.threads),
            address=None if table.address is None else str(table.address),
            overhead_s=float(table.overhead),
        )
        for table in tables
    )


def _overrides_of(
    tables: Sequence[_BetweenTable], default: Link, names: list[str], place: _Source
) -> tuple[LinkOverride, ...]:
    overrides: dict[tuple[str, str], LinkOverride] = {}
    for index, table in enumerate(tables):
        path = f"link.between[{index}]"
        link = table.over(default)
        for source, target in _pairs_of(table, names, path, place):
            if (source, target) in overrides:
                place.fail(path, f"the link {source} -> {target} again")
            overrides[source, target] = LinkOverride(source=source, target=target, link=link)
    return tuple(overrides.values())


def _pairs_of(
    table: _BetweenTable, names: list[str], path: str, place: _Source
) -> tuple[tuple[str, str], ...]:
    """The directed pairs of devices that a table is about."""
    one = (table.source, table.to)
    ends = table.devices
    key = f"{path}.devices"
    if ends is None and table.source is not None and table.to is not None:
        ends = Pair((table.source, table.to))
        key = f"{path}.to"
    elif ends is None or one != (None, None):
        place.fail(path, "give devices = [A, B] for both directions, or from = A and to = B")
    for end in ends:
        if end not in names:
            place.fail(key, f"{shown(str(end))}, {no_device(end, names)}")
    first, second = (str(end) for end in ends)
    if first == second:
        place.fail(key, f"{first!r} is joined to itself")
    return ((first, second),) if table.devices is None else ((first, second), (second, first))


# --- writing


def cluster_to_toml(cluster: Cluster) -> str:
    """The cluster as the text of a cluster file; reading it gives an equal cluster."""
    lines: list[str] = []
    if cluster.caller is not None:
        lines.append(f"caller = {_quote(cluster.caller)}")
        if cluster.caller_overhead_s:
            lines.append(f'caller_overhead = "{float(cluster.caller_overhead_s)!r} s"')
        lines.append("")
    for device in cluster.devices:
        lines += ["[[device]]", f"name = {_quote(device.name)}", f"speed = {float(device.speed)!r}"]
        if device.memory_bytes is not None:
            lines.append(f"memory_bytes = {device.memory_bytes}")
        if device.profile is not None:
            lines.append(f"profile = {_quote(device.profile)}")
        if device.threads is not None:
            lines.append(f"threads = {device.threads}")
        if device.address is not None:
            lines.append(f"address = {_quote(device.address)}")
        if device.overhead_s:
            lines.append(f'overhead = "{float(device.overhead_s)!r} s"')
        lines.append("")
    lines += ["[link]", *_link_lines(cluster.link), ""]
    for override in cluster.overrides:
        lines += ["[[link.between]]", f"from = {_quote(override.source)}"]
        lines += [f"to = {_quote(override.target)}", *_link_lines(override.link), ""]
    return "\n".join(lines)


def _link_lines(link: Link) -> list[str]:
    bandwidth = float(link.bandwidth_bytes_per_s)
    lines = [
        "bandwidth = inf" if math.isinf(bandwidth) else f'bandwidth = "{bandwidth!r} B/s"',
        f'latency = "{float(link.latency_s)!r} s"',
    ]
    for key, cost in (
        ("send_cost", link.send_s_per_byte),
        ("receive_cost", link.receive_s_per_byte),
    ):
        lines += [f'{key} = "{float(cost)!r} s/B"'] if cost else []
    return lines


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
