"""Devices, the directed links between them, and the cluster file that describes both.

A cluster file is TOML::

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
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from cutset.errors import PlanError
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

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it costs to send: ``latency_s + num_bytes / bandwidth_bytes_per_s`` seconds.

    Attributes:
        bandwidth_bytes_per_s: above 0; infinity where bytes cost nothing.
        latency_s: seconds that every message costs, 0 or more.
        send_s_per_byte: seconds of computing that the sending device loses for each byte.
        receive_s_per_byte: seconds of computing that the receiving device loses for each byte.
    """

    bandwidth_bytes_per_s: float = math.inf
    latency_s: float = 0.0
    send_s_per_byte: float = 0.0
    receive_s_per_byte: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: the bandwidth is not above 0, or another number negative or not finite.
        """
        if not self.bandwidth_bytes_per_s > 0:
            raise ValueError(f"bandwidth must be above 0, got {self.bandwidth_bytes_per_s}")
        if not 0 <= self.latency_s < math.inf:
            raise ValueError(f"latency must be 0 or more and finite, got {self.latency_s}")
        for name in ("send_s_per_byte", "receive_s_per_byte"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds to send `num_bytes` as one message."""
        return self.latency_s + num_bytes / self.bandwidth_bytes_per_s


class LinkOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The link from device `source` to device `target`, where it is not the default one."""

    source: str
    target: str
    link: Link


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place where stages can run.

    Attributes:
        name: unique in a cluster.
        speed: how fast it computes, relative to the device that was profiled; above 0.
        memory_bytes: what a stage may use there; None where memory is no limit.
        profile: file of its own measured costs, or None where `speed` scales another's.
        threads: threads that compute there, or None where nobody said.
        address: where an engine finds it, or None.
        overhead_s: seconds that a stage there cannot compute, for each micro-batch, because its
            messages are received and sent; 0 where cores that do not compute do that.
    """

    name: str
    speed: float = 1.0
    memory_bytes: int | None = None
    profile: str | None = None
    threads: int | None = None
    address: str | None = None
    overhead_s: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: the name is empty, or a number out of its range.
        """
        if not self.name:
            raise ValueError("a device needs a name")
        if not 0 < self.speed < math.inf:
            raise ValueError(f"speed must be above 0 and finite, got {self.speed}")
        if self.memory_bytes is not None and self.memory_bytes < 0:
            raise ValueError(f"memory must be 0 or more, got {self.memory_bytes}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be 1 or more, got {self.threads}")
        _check_overhead(self.overhead_s)


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices and the links between any two of them.

    Attributes:
        devices: at least one; names are unique.
        link: the link between any two that no override names.
        overrides: directed exceptions, each pair at most once.
        caller: name of the device where rows come from and answers go to: then the first
            stage's inputs and the last stage's outputs cost a transfer on other devices. None
            where the caller's links cost nothing.
        caller_overhead_s: seconds that a stage on the caller's device cannot compute, for each
            micro-batch, because the caller works there; besides the device's own overhead.
    """

    devices: tuple[Device, ...]
    link: Link = Link()
    overrides: tuple[LinkOverride, ...] = ()
    caller: str | None = None
    caller_overhead_s: float = 0.0

    def __post_init__(self) -> None:
        """Checks names against each other.

        Raises:
            ValueError: no device, a name twice, a link or caller that names no device, or an
                overhead of nobody.
        """
        names = [device.name for device in self.devices]
        if not names:
            raise ValueError("a cluster needs at least one device")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"device name {name!r} is used {names.count(name)} times")
        pairs = [(override.source, override.target) for override in self.overrides]
        for pair in pairs:
            for name in pair:
                if name not in names:
                    raise ValueError(f"a link names {name!r}, {_known(name, names)}")
            if pair[0] == pair[1]:
                raise ValueError(f"a link joins {pair[0]!r} to itself")
            if pairs.count(pair) > 1:
                raise ValueError(f"the link from {pair[0]!r} to {pair[1]!r} is given twice")
        if self.caller is not None and self.caller not in names:
            raise ValueError(f"caller is {self.caller!r}, {_known(self.caller, names)}")
        _check_overhead(self.caller_overhead_s)
        if self.caller_overhead_s and self.caller is None:
            raise ValueError("caller_overhead needs a caller")

    def link_between(self, source: str, target: str) -> Link:
        """The link from `source` to `target`; one that costs nothing within a device."""
        if source == target:
            return Link()
        for override in self.overrides:
            if (override.source, override.target) == (source, target):
                return override.link
        return self.link

    def overhead_on(self, device: Device) -> float:
        """Seconds that a stage on `device` cannot compute, for each micro-batch."""
        return device.overhead_s + (self.caller_overhead_s if device.name == self.caller else 0.0)

    def caller_transfer_s(self, device: Device, num_bytes: float, *, back: bool) -> float:
        """Seconds of a message between the caller and a device; 0 where there is no caller.

        Within the caller's own device it takes what its two ends do: half of each overhead, for
        one of two messages.

        Args:
            device: of the first stage or, for the answer, of the last.
            num_bytes: of the message.
            back: True from the device to the caller.
        """
        if self.caller is None:
            return 0.0
        if device.name == self.caller:
            return self.overhead_on(device) / 2
        ends = (device.name, self.caller) if back else (self.caller, device.name)
        return self.link_between(*ends).transfer_s(num_bytes)

    def without(self, *names: str) -> Cluster:
        """The cluster that remains when the devices called `names` are gone.

        A caller that is gone is forgotten, and with it the cost of reaching it.

        Raises:
            ValueError: no device would remain.
        """
        is_gone = self.caller in names
        return Cluster(
            devices=tuple(d for d in self.devices if d.name not in names),
            link=self.link,
            overrides=tuple(
                o for o in self.overrides if o.source not in names and o.target not in names
            ),
            caller=None if is_gone else self.caller,
            caller_overhead_s=0.0 if is_gone else self.caller_overhead_s,
        )


def _check_overhead(overhead_s: float) -> None:
    if not 0 <= overhead_s < math.inf:
        raise ValueError(f"overhead must be 0 or more and finite, got {overhead_s}")


def equal_cluster(num_devices: int) -> Cluster:
    """`num_devices` equal devices, ``device-0`` ..., with no memory limit and free links.

    Raises:
        PlanError: `num_devices` is below 1.
    """
    if num_devices < 1:
        raise PlanError(f"a plan needs at least 1 stage, got {num_devices}")
    return Cluster(devices=tuple(Device(name=f"device-{i}") for i in range(num_devices)))


_LOG = logging.getLogger(__name__)

_LINK_KEYS = ("bandwidth", "latency", "send_cost", "receive_cost")
_MAX_FILE_BYTES = 1 << 20
_MAX_SPEED = 1e9
_MIN_BANDWIDTH_BYTES_PER_S = 1e-3
_MAX_THREADS = 65_536


class _Reader:
    """Takes values out of the parsed file; every complaint names file, line and path."""

    def __init__(self, source: str, text: str) -> None:
        self.source = source
        self.lines = text.split("\n")  # TOML's lines; splitlines() knows more ends of a line

    def fail(self, path: str, problem: str) -> NoReturn:
        raise PlanError(f"{self._where(path)}: {path or 'cluster file'}: {problem}")

    def _where(self, path: str) -> str:
        line = self._line_of(path)
        return f"{self.source}:{line}" if line else self.source

    def _line_of(self, path: str) -> int | None:
        """The line that holds ``device[1].speed``, found by counting headers; None if unsure."""
        match = re.fullmatch(r"(?:([\w.]+?)(?:\[(\d+)\])?\.)?([\w-]+)(?:\[(\d+)\])?", path)
        if match is None:
            return None
        table, number, key, own = match.groups()
        if own is not None:  # the path is a table itself: device[1]
            table, number, key = (f"{table}.{key}" if table else key), own, ""
        seen, current, header_line = -1, table is None, None
        for index, line in enumerate(self.lines, start=1):
            header = re.match(r"\s*\[{1,2}\s*([\w.-]+)\s*\]{1,2}", line)
            if header:
                here = header.group(1) == table
                seen += here
                current = here and seen == int(number or 0)
                header_line = index if current else header_line
            elif current and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
                return index
        return header_line

    def check_keys(self, table: dict[str, Any], path: str, known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
                self.fail(f"{path}.{key}" if path else key, f"unknown key; {hint}")

    def table(self, value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fail(path, f"expected a table, got {_kind(value)}")
        return value

    def tables(self, value: Any, path: str) -> list[dict[str, Any]]:
        if not isinstance(value, list):
            self.fail(path, f"expected [[{path}]] tables, got {_kind(value)}")
        return [self.table(item, f"{path}[{i}]") for i, item in enumerate(value)]

    def text(self, value: Any, path: str) -> str:
        if not isinstance(value, str) or not value:
            self.fail(path, f"expected text, got {_kind(value)}")
        return value

    def number(self, value: Any, path: str, *, least: float = 0.0, above: bool = False) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(path, f"expected a number, got {_kind(value)}")
        try:
            number = float(value)
        except OverflowError:
            self.fail(path, f"{shown(value)} is too large")
        if math.isnan(number) or number < least or (above and number == least):
            self.fail(path, f"must be {'above' if above else 'at least'} {least:g}, got {number}")
        return number

    def quantity(self, value: Any, path: str, measure: Measure) -> float:
        """A plain number, or text such as ``"100 Mbit/s"``."""
        if not isinstance(value, str):
            number = self.number(value, path)
            if number and math.isfinite(number):
                _LOG.warning(
                    "%s: %s = %s has no unit and is read as %s; write a unit as in %r",
                    self._where(path), path, shown(value), measure.name, measure.example,
                )  # fmt: skip
            return number
        try:
            return read_quantity(value, measure)
        except ValueError as error:
            self.fail(path, str(error))

    def memory(self, value: Any, path: str) -> int:
        """Whole bytes, never more than what is written."""
        if isinstance(value, str) and value.strip() != "inf":
            try:
                return read_bytes(value)
            except ValueError as error:
                self.fail(path, str(error))
        number = math.inf if isinstance(value, str) else self.number(value, path)
        if math.isinf(number):
            self.fail(path, "leave it out where memory is no limit")
        if number > MAX_BYTES:
            self.fail(path, f"{shown(value)} is too large, the most is 2**63 - 1 bytes")
        return int(value)

    def finite(self, table: dict[str, Any], key: str, path: str, measure: Measure) -> float:
        """The quantity under `key`, 0 where it is missing."""
        where = f"{path}.{key}" if path else key
        found = self.quantity(table.get(key, 0.0), where, measure)
        if math.isinf(found):
            self.fail(where, "must be finite")
        return found


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
    reader = _Reader(source, text)
    try:
        document = tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"{source}: not valid TOML: {error}") from error
    except (ValueError, RecursionError) as error:  # numbers of 5000 digits; tables in tables in ...
        raise PlanError(f"{source}: no cluster file: a number or a nesting is too long") from error
    reader.check_keys(document, "", ("caller", "caller_overhead", "device", "link"))
    devices = tuple(
        _read_device(reader, table, f"device[{index}]")
        for index, table in enumerate(reader.tables(document.get("device", []), "device"))
    )
    if not devices:
        reader.fail("", "no [[device]]; a cluster needs at least one")
    names = [device.name for device in devices]
    for index, name in enumerate(names):
        if name in names[:index]:
            reader.fail(f"device[{index}].name", f"{shown(name)} is the name of another device too")
    caller = document.get("caller")
    if caller is not None and reader.text(caller, "caller") not in names:
        reader.fail("caller", f"{shown(caller)}, {_known(caller, names)}")
    caller_overhead_s = reader.finite(document, "caller_overhead", "", SECONDS)
    if caller_overhead_s and caller is None:
        reader.fail("caller_overhead", "there is no caller; name its device with caller = ...")
    link_table = reader.table(document.get("link", {}), "link")
    reader.check_keys(link_table, "link", (*_LINK_KEYS, "between"))
    link = _read_link(reader, link_table, "link", Link())
    overrides: list[LinkOverride] = []
    for index, table in enumerate(reader.tables(link_table.get("between", []), "link.between")):
        where = f"link.between[{index}]"
        for override in _read_between(reader, table, where, link, names):
            if any((o.source, o.target) == (override.source, override.target) for o in overrides):
                reader.fail(where, f"the link {override.source} -> {override.target} again")
            overrides.append(override)
    return Cluster(
        devices=devices,
        link=link,
        overrides=tuple(overrides),
        caller=caller,
        caller_overhead_s=caller_overhead_s,
    )


def _read_device(reader: _Reader, table: dict[str, Any], path: str) -> Device:
    known = ("name", "speed", "memory_bytes", "profile", "threads", "address", "overhead")
    reader.check_keys(table, path, known)
    if "name" not in table:
        reader.fail(path, "the device has no name")
    memory, threads = table.get("memory_bytes"), table.get("threads")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= _MAX_THREADS):
        reader.fail(
            f"{path}.threads",
            f"expected a whole number from 1 to {_MAX_THREADS}, got {shown(threads)}",
        )
    speed = reader.number(table.get("speed", 1.0), f"{path}.speed", above=True)
    if not 1 / _MAX_SPEED <= speed <= _MAX_SPEED:
        reader.fail(
            f"{path}.speed",
            f"expected {1 / _MAX_SPEED:g} to {_MAX_SPEED:g} times the reference, got {speed:g}",
        )
    texts = {
        key: reader.text(table[key], f"{path}.{key}")
        for key in ("profile", "address")
        if key in table
    }
    return Device(
        name=reader.text(table["name"], f"{path}.name"),
        speed=speed,
        memory_bytes=None if memory is None else reader.memory(memory, f"{path}.memory_bytes"),
        threads=threads,
        overhead_s=reader.finite(table, "overhead", path, SECONDS),
        **texts,
    )


def _read_link(reader: _Reader, table: dict[str, Any], path: str, default: Link) -> Link:
    bandwidth = default.bandwidth_bytes_per_s
    if "bandwidth" in table:
        bandwidth = reader.quantity(table["bandwidth"], f"{path}.bandwidth", BANDWIDTH)
        if bandwidth < _MIN_BANDWIDTH_BYTES_PER_S:
            reader.fail(
                f"{path}.bandwidth",
                f"must be at least {_MIN_BANDWIDTH_BYTES_PER_S:g} B/s, got {bandwidth:g}",
            )

    def given(key: str, measure: Measure, otherwise: float) -> float:
        return reader.finite(table, key, path, measure) if key in table else otherwise

    return Link(
        bandwidth_bytes_per_s=bandwidth,
        latency_s=given("latency", SECONDS, default.latency_s),
        send_s_per_byte=given("send_cost", BYTE_COST, default.send_s_per_byte),
        receive_s_per_byte=given("receive_cost", BYTE_COST, default.receive_s_per_byte),
    )


def _read_between(
    reader: _Reader, table: dict[str, Any], path: str, default: Link, names: list[str]
) -> tuple[LinkOverride, ...]:
    reader.check_keys(table, path, ("devices", "from", "to", *_LINK_KEYS))
    both = "devices" in table
    if both == ("from" in table or "to" in table) or ("from" in table) != ("to" in table):
        reader.fail(path, "give devices = [A, B] for both directions, or from = A and to = B")
    ends = table["devices"] if both else [table["from"], table["to"]]
    key = f"{path}.devices" if both else f"{path}.to"
    if not isinstance(ends, list) or len(ends) != 2:
        reader.fail(key, "expected two device names")
    for end in ends:
        if reader.text(end, key) not in names:
            reader.fail(key, f"{shown(end)}, {_known(end, names)}")
    if ends[0] == ends[1]:
        reader.fail(key, f"{ends[0]!r} is joined to itself")
    link = _read_link(reader, table, path, default)
    pairs = [(ends[0], ends[1]), (ends[1], ends[0])] if both else [(ends[0], ends[1])]
    return tuple(LinkOverride(source=a, target=b, link=link) for a, b in pairs)


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


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {shown(value)}"


def _known(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return f"which is no device of the cluster; {hint}"
