"""The tables of a cluster file, key by key."""

from __future__ import annotations

import math

import msgspec

from cutset.cluster.devices import Link
from cutset.cluster.file_source import Source
from cutset.cluster.wires import Port
from cutset.cluster.written_values import (
    Backends,
    Bandwidth,
    ByteCost,
    DevicePath,
    Duplex,
    Duration,
    IpAddress,
    Memory,
    Names,
    Pair,
    ProgramName,
    Security,
    Speed,
    Text,
    ThreadCount,
    TrueOrFalse,
    Variables,
)


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file; its fields are the keys that are known."""


class Ported(Table, frozen=True, kw_only=True):
    """A table of a machine with a connection."""

    port: Bandwidth | None = None
    port_out: Bandwidth | None = None
    port_in: Bandwidth | None = None
    duplex: Duplex | None = None

    def checked_port(self, path: str, place: Source) -> Port:
        """The port, its keys held against each other."""
        if self.port is not None and (self.port_out is not None or self.port_in is not None):
            place.fail(f"{path}.port", "is both directions; leave it out, or port_out and port_in")
        rates = [
            math.inf if rate is None else float(rate)
            for rate in (self.port_out or self.port, self.port_in or self.port)
        ]
        is_half = self.duplex is not None and self.duplex.is_half
        if is_half and math.isinf(sum(rates)):
            place.fail(f"{path}.duplex", "half duplex needs the bandwidth of both directions: port")
        return Port(out_bytes_per_s=rates[0], in_bytes_per_s=rates[1], half_duplex=is_half)


class DeviceTable(Ported, frozen=True, kw_only=True):
    """``[[device]]``."""

    name: Text
    speed: Speed = Speed(1.0)
    memory_bytes: Memory | None = None
    profile: Text | None = None
    threads: ThreadCount | None = None
    address: Text | None = None
    listen: IpAddress | None = None
    python: ProgramName | None = None
    folder: DevicePath | None = None
    env: Variables = Variables()
    backends: Backends | None = None
    worker_bytes: Memory | None = None
    overhead: Duration = Duration(0.0)


class CallerTable(Ported, frozen=True, kw_only=True):
    """``[caller]``."""

    name: Text = Text("caller")
    address: IpAddress | None = None


class MediumTable(Table, frozen=True, kw_only=True):
    """``[[medium]]``."""

    name: Text
    devices: Names
    bandwidth: Bandwidth
    latency: Duration = Duration(0.0)
    relayed: TrueOrFalse = TrueOrFalse(0)


class LinkCosts(Table, frozen=True, kw_only=True):
    """What a link may say, each key or none."""

    bandwidth: Bandwidth | None = None
    latency: Duration | None = None
    send_cost: ByteCost | None = None
    receive_cost: ByteCost | None = None
    security: Security | None = None

    def over(self, default: Link) -> Link:
        """The link; what is not given is the default's."""
        given = {
            "bandwidth_bytes_per_s": self.bandwidth,
            "latency_s": self.latency,
            "send_s_per_byte": self.send_cost,
            "receive_s_per_byte": self.receive_cost,
        }
        return msgspec.structs.replace(
            default,
            **{name: float(each) for name, each in given.items() if each is not None},
            secured=default.secured if self.security is None else self.security == "curve",
        )


class BetweenTable(LinkCosts, frozen=True, kw_only=True, rename={"source": "from"}):
    """``[[link.between]]``."""

    devices: Pair | None = None
    source: Text | None = None
    to: Text | None = None
    medium: Text | None = None


class LinkTable(LinkCosts, frozen=True, kw_only=True):
    """``[link]``."""

    between: list[BetweenTable] = []


class ClusterTable(Table, frozen=True, kw_only=True):
    """The whole file, but for a ``[caller]``."""

    caller: Text | None = None
    caller_overhead: Duration = Duration(0.0)
    engine: Text | None = None
    ssh_config: Text | None = None
    device: list[DeviceTable] = []
    medium: list[MediumTable] = []
    link: LinkTable = LinkTable()


TABLES: dict[str, type[Table]] = {
    "": ClusterTable,
    "caller": CallerTable,
    "device": DeviceTable,
    "medium": MediumTable,
    "link": LinkTable,
    "link.between": BetweenTable,
}
"""By their path in a file, without numbers."""
