"""What links share, by how fast several are at once: a medium, or the ports of devices.

Two links that share nothing carry at once what each carries alone. Two that share a wire carry half
of it each, or more of one and less of the other: their parts add up to one. What is not seen so
clearly is not claimed, nor is what processors cannot fill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from cutset.cluster.wires import Medium, Port

ONE_WIRE = 1.25
"""Most that the parts of links may add up to, of what each carries alone, to be of one wire."""

APART = 0.9
"""Least part of what each carries alone that links carry at once on the average if none shares."""

BUSY = 0.4
"""Share of its processor that a process may use for a wire to be what limits it."""

MEDIUM = "shared"
"""Name of a medium that was found."""

HostPair: TypeAlias = tuple[str, str]


class AtOnce(NamedTuple):
    """What links carried at once.

    Attributes:
        rates: bytes per second of each, while it carried something.
        total: of all of them, until the last was done.
        busy: the share of its processor that the busiest process used, 0 to about 1.
    """

    rates: dict[HostPair, float]
    total: float
    busy: float


Together: TypeAlias = Callable[[Sequence[HostPair]], AtOnce]
"""Sends over some links at once."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundWires:
    """What was found to be shared.

    Attributes:
        medium: of all devices, or None.
        ports: of each device that was seen to have one.
    """

    medium: Medium | None = None
    ports: dict[str, Port] = dataclasses.field(default_factory=dict)


def tried_pairs(names: Sequence[str]) -> tuple[HostPair, ...]:
    """The links that are needed: from each device to the next one and the one after, in a ring."""
    count = len(names)
    steps = {0: (), 1: (), 2: (1,)}.get(count, (1, 2))
    return tuple((names[k], names[(k + s) % count]) for s in steps for k in range(count))


def find_shared_wires(names: Sequence[str], together: Together) -> FoundWires:
    """Finds out what the links of a cluster share.

    All at once over links that have no device in common, or over a ring of three, have nothing
    to share but a medium; a ring of three half-duplex ports carries half as much again. From one
    device to two others they share its port out, from two others to it its port in, and if one to
    it and one from it share something, that port is half duplex.

    Args:
        names: of the devices; nothing is to be found with fewer than two.
        together: measures.
    """
    links = _Links(together)
    count = len(names)
    if count < 2:
        return FoundWires()
    ring = tried_pairs(names)[:count]
    apart = ring if count <= 3 else (*ring[: count - 1 : 2], *ring[count - 1 :][: count % 2])
    air = links.shared(apart)
    if air is not None:
        medium = Medium(name=MEDIUM, devices=tuple(names), bandwidth_bytes_per_s=air)
        return FoundWires(medium=medium)
    if count == 2 or links.are_apart(tried_pairs(names)):
        return FoundWires()
    ports = {name: links.port([*names[k:], *names[:k]]) for k, name in enumerate(names)}
    return FoundWires(ports={name: port for name, port in ports.items() if port != Port()})


class _Links:
    """Measured links, each alone only once."""

    def __init__(self, together: Together) -> None:
        self._together = together
        self._alone: dict[HostPair, float] = {}  # 0 where a processor is the limit

    def _at_once(self, pairs: Sequence[HostPair]) -> tuple[float, float] | None:
        """How much they carry at once, in parts of what each does alone and in bytes a second.

        None where a processor, not a wire, is the limit.
        """
        for pair in pairs:
            if pair not in self._alone:
                seen = self._together([pair])
                self._alone[pair] = seen.rates[pair] if seen.busy <= BUSY else 0.0
        if not all(self._alone[pair] for pair in pairs):
            return None
        seen = self._together(pairs)
        parts = sum(seen.rates[pair] / self._alone[pair] for pair in pairs)
        return (parts, seen.total) if seen.busy <= BUSY else None

    def shared(self, pairs: Sequence[HostPair]) -> float | None:
        """Bytes per second of all of them at once, if they were seen to share a wire."""
        seen = self._at_once(pairs)
        return seen[1] if seen is not None and seen[0] <= ONE_WIRE else None

    def are_apart(self, pairs: Sequence[HostPair]) -> bool:
        """Whether they were seen to share nothing."""
        seen = self._at_once(pairs)
        return seen is not None and seen[0] >= APART * len(pairs)

    def port(self, ring: Sequence[str]) -> Port:
        """The port of the first device of a ring, without limits where none was seen."""
        name, after, last = ring[0], ring[1], ring[-1]
        out = self.shared([(name, after), (name, ring[2])])
        into = self.shared([(last, name), (ring[-2], name)])
        half = self.shared([(name, after), (last, name)]) if out and into else None
        limits = {"out_bytes_per_s": out, "in_bytes_per_s": into}
        known = {key: rate for key, rate in limits.items() if rate is not None}
        return Port(**known, half_duplex=half is not None)
