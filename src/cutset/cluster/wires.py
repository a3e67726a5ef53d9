"""What a message from one machine to another occupies, and for how long: the one owner of that.

Between two machines there is either a medium (a wire or a channel that several share) or a link of
their own; on the way a message passes the port of its sender and that of its receiver. It moves as
fast as the slowest of these lets it. For each message

- the link is busy for ``latency + bytes / that bandwidth``: it takes one message after the other;
- a port for ``bytes / its bandwidth``; one in half duplex is a single thing for both directions;
- a medium for ``latency + bytes / bandwidth``, twice where an access point relays it.

All that is sent in a micro-batch adds up on each of these, and none can be busy for longer than a
period. Each being busy for no longer is also enough: messages share what they
pass, byte by byte, so that none waits for one that uses something else.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from cutset.cluster.devices import Cluster, Link


class Port(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The connection of a machine, through which all passes that it sends and receives.

    Attributes:
        out_bytes_per_s: the most that it sends; above 0, infinity where that is no limit.
        in_bytes_per_s: the most that it receives; the same.
        half_duplex: whether it cannot do both at once.
    """

    out_bytes_per_s: float = math.inf
    in_bytes_per_s: float = math.inf
    half_duplex: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: a bandwidth is not above 0, or half duplex says nothing.
        """
        for value in (self.out_bytes_per_s, self.in_bytes_per_s):
            if not value > 0:
                raise ValueError(f"a port's bandwidth must be above 0, got {value}")
        if self.half_duplex and math.isinf(self.out_bytes_per_s + self.in_bytes_per_s):
            raise ValueError("half duplex needs the port's bandwidth, in and out")


class Medium(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wire or a channel that several machines share: one message is on it at a time.

    Attributes:
        name: unique in a cluster.
        devices: names of the machines on it, two at least; the caller's own may be one.
        bandwidth_bytes_per_s: above 0.
        latency_s: seconds that every message costs, and for which it has the medium; from 0.
        relayed: whether every message is on it twice, since an access point passes it on.
    """

    name: str
    devices: tuple[str, ...]
    bandwidth_bytes_per_s: float
    latency_s: float = 0.0
    relayed: bool = False

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: there is no name, a number is out of its range, or a machine is alone or
                named twice.
        """
        if not self.name:
            raise ValueError("a medium needs a name")
        if not self.bandwidth_bytes_per_s > 0:
            raise ValueError(f"bandwidth must be above 0, got {self.bandwidth_bytes_per_s}")
        if not 0 <= self.latency_s < math.inf:
            raise ValueError(f"latency must be 0 or more and finite, got {self.latency_s}")
        if len(self.devices) < 2:
            raise ValueError(f"medium {self.name!r} joins nobody: it needs two devices at least")
        for name in self.devices:
            if self.devices.count(name) > 1:
                raise ValueError(f"medium {self.name!r} names {name!r} twice")

    @property
    def hops(self) -> int:
        """How many times a message is on it."""
        return 2 if self.relayed else 1


class Use(NamedTuple):
    """What one message does to one wire: it is busy for ``latency_s + bytes / bytes_per_s``."""

    wire: str
    latency_s: float
    bytes_per_s: float

    def seconds(self, num_bytes: float) -> float:
        """For how long a message of `num_bytes` keeps it busy."""
        return self.latency_s + num_bytes / self.bytes_per_s


class Way(NamedTuple):
    """How a message gets from one machine to another.

    Attributes:
        uses: the link first, whose seconds are those of a message alone; then what it shares with
            others: at most one medium, a port out and a port in. Empty within a machine.
        medium: name of the medium, ``""`` where the two have a link of their own.
        limit: the name of what makes the link as slow as it is, ``""`` where it is the link.
        send_s_per_byte: seconds of computing that its sender loses for each byte.
        receive_s_per_byte: seconds of computing that its receiver loses for each byte.
    """

    uses: tuple[Use, ...] = ()
    medium: str = ""
    limit: str = ""
    send_s_per_byte: float = 0.0
    receive_s_per_byte: float = 0.0

    def seconds(self, num_bytes: float) -> float:
        """Seconds from the first byte's start to the last one's end, with nobody in the way."""
        return self.uses[0].seconds(num_bytes) if self.uses else 0.0


class Wires:
    """Every way between two machines of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._default = cluster.link
        self._media = {medium.name: medium for medium in cluster.media}
        self._overrides = {(o.source, o.target): o for o in cluster.overrides}
        self._ports = {device.name: device.port for device in cluster.devices}
        if cluster.caller_machine is not None:
            self._ports[cluster.caller_machine.name] = cluster.caller_machine.port
        self._on: dict[str, list[Medium]] = {}
        for medium in cluster.media:
            for name in medium.devices:
                self._on.setdefault(name, []).append(medium)

    def common_media(self, source: str, target: str) -> list[str]:
        """Names of the media that two machines are both on."""
        return [m.name for m in self._on.get(source, ()) if target in m.devices]

    def port_of(self, name: str) -> Port:
        """The port of a machine."""
        return self._ports[name]

    def port_names(self, name: str) -> tuple[str, str]:
        """What the ways out of and into a machine are called; one name in half duplex."""
        if self._ports[name].half_duplex:
            return (f"port of {name}",) * 2
        return f"port out of {name}", f"port into {name}"

    def _own(self, source: str, target: str) -> tuple[Link | Medium, Link, Medium | None]:
        """What gives latency and bandwidth, what gives the costs of bytes, and the medium."""
        override = self._overrides.get((source, target))
        if override is not None:
            medium = None if override.medium is None else self._media[override.medium]
            return override.link, override.link, medium
        shared = self.common_media(source, target)
        if shared:
            return self._media[shared[0]], self._default, self._media[shared[0]]
        return self._default, self._default, None

    def between(self, source: str, target: str) -> Way:
        """How a message gets from `source` to `target`."""
        if source == target:
            return Way()
        own, costs, medium = self._own(source, target)
        latency_s, slowest = own.latency_s, own.bandwidth_bytes_per_s
        shared, limit = [], ""
        if medium is not None:
            latency_s, slowest = medium.hops * latency_s, slowest / medium.hops
            limit = f"medium {medium.name}"
            shared.append(Use(limit, latency_s, slowest))
        for name, rate in (
            (self.port_names(source)[0], self._ports[source].out_bytes_per_s),
            (self.port_names(target)[1], self._ports[target].in_bytes_per_s),
        ):
            if math.isfinite(rate):
                shared.append(Use(name, 0.0, rate))
                if rate < slowest:
                    slowest, limit = rate, name
        link = Use(f"link {source} -> {target}", latency_s, slowest)
        return Way(
            uses=(link, *shared),
            medium="" if medium is None else medium.name,
            limit=limit,
            send_s_per_byte=costs.send_s_per_byte,
            receive_s_per_byte=costs.receive_s_per_byte,
        )
