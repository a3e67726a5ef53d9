"""What stages share besides links, as plain numbers: ports and media.

`cutset.cluster.wires` says what a message occupies. Here that is added up for a chain's stages on
classes of devices:

- A port that only one message passes is part of its link, which is as slow as the port. So what is
  left are ports in half duplex, and those of the caller's device, where a stage and the caller
  send and receive. What such a port carries follows from where its stage begins and ends.
- A medium carries all messages between machines that are on it, the caller's included: a sum over
  the whole plan.
- A caller's port in half duplex carries the inputs and the outputs, wherever the stages are; unless
  the first or the last is on the caller's device.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from cutset.cluster.devices import Cluster
from cutset.cluster.wires import Wires
from cutset.planning.deadline import OverBudget
from cutset.planning.totals import Bools, Floats, Ints

MAX_TABLE = 200_000_000
"""Stages whose ports are worked out at most; a byte each."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StagePort:
    """A port that all messages of a stage on a class of devices share.

    Attributes:
        device_class: the class; each of its devices has such a port.
        by_start: seconds that it is busy, by the boundary where the stage begins, shape (n + 1,).
        by_stop: the same by the boundary where it ends; both add up.
    """

    device_class: int
    by_start: Floats
    by_stop: Floats

    def table_s(self) -> Floats:
        """Seconds for every stage, shape (n, n + 1), start by stop."""
        table: Floats = self.by_start[:-1, None] + self.by_stop
        return table


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SharedMedium:
    """A medium: all messages over it add up.

    Attributes:
        latency_s: of a message from class a to class b, shape (C, C); 0 where it is not over this.
        s_per_byte: the same for each byte.
        source_s: seconds of the model's inputs on their way to a class, shape (C,).
        sink_s: seconds of the model's outputs on their way back, shape (C,).
    """

    latency_s: Floats
    s_per_byte: Floats
    source_s: Floats
    sink_s: Floats

    def row_s(self, source: int, target: int, cut_bytes: Floats) -> Floats:
        """Seconds that a message across each boundary has it, shape (n + 1,)."""
        row: Floats = self.latency_s[source, target] + cut_bytes * self.s_per_byte[source, target]
        return row


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SharedWires:
    """Everything that several messages of a plan share.

    Attributes:
        ports: of stages.
        media: in the cluster's order.
        caller_class: class of the caller's device, -1 where it is on none.
        caller_s: seconds that inputs and outputs keep the caller's port busy where neither the
            first nor the last stage is on `caller_class`; 0 where links say as much.
    """

    ports: tuple[StagePort, ...] = ()
    media: tuple[SharedMedium, ...] = ()
    caller_class: int = -1
    caller_s: float = 0.0

    @property
    def floor_s(self) -> float:
        """Seconds that no plan's period can be below."""
        return self.caller_s if self.caller_class < 0 else 0.0

    def fits(self, device_class: int, limit_s: float) -> Bools | None:
        """Which stages on a class keep its ports busy for at most `limit_s`, shape (n, n + 1).

        None where the class has no port that is shared, or there is no limit.

        Raises:
            OverBudget: there are too many stages.
        """
        own = [port for port in self.ports if port.device_class == device_class]
        if not own or math.isinf(limit_s):
            return None
        if len(own[0].by_stop) ** 2 > MAX_TABLE:
            raise OverBudget(f"{len(own[0].by_stop)} boundaries are too many for ports")
        tables = [port.by_stop <= limit_s - port.by_start[:-1, None] for port in own]
        fits: Bools = np.logical_and.reduce(tables)
        return fits

    def media_s(self, stages: Sequence[tuple[int, int, int]], cut_bytes: Floats) -> list[float]:
        """Seconds that each medium is busy with a plan's messages."""
        hops = [(a[2], b[2], a[1]) for a, b in itertools.pairwise(stages)]
        first, last = stages[0][2], stages[-1][2]
        return [
            math.fsum(
                (
                    float(medium.source_s[first]),
                    *(float(medium.row_s(a, b, cut_bytes)[k]) for a, b, k in hops),
                    float(medium.sink_s[last]),
                )
            )
            for medium in self.media
        ]

    def busy_s(self, stages: Sequence[tuple[int, int, int]], cut_bytes: Floats) -> float:
        """Seconds of the busiest of all that is shared."""
        ends = stages[0][2], stages[-1][2]
        caller_s = 0.0 if self.caller_class in ends else self.caller_s
        ports_s = (
            float(port.by_start[start] + port.by_stop[stop])
            for start, stop, c in stages
            for port in self.ports
            if port.device_class == c
        )
        return max(caller_s, *ports_s, *self.media_s(stages, cut_bytes), 0.0)

    def of(self, index: Ints) -> SharedWires:
        """The same for classes in another order, or for some of them only."""
        places = index.tolist()
        return SharedWires(
            ports=tuple(
                dataclasses.replace(port, device_class=k)
                for k, c in enumerate(places)
                for port in self.ports
                if port.device_class == c
            ),
            media=tuple(
                SharedMedium(
                    latency_s=medium.latency_s[np.ix_(index, index)],
                    s_per_byte=medium.s_per_byte[np.ix_(index, index)],
                    source_s=medium.source_s[index],
                    sink_s=medium.sink_s[index],
                )
                for medium in self.media
            ),
            caller_class=places.index(self.caller_class) if self.caller_class in places else -1,
            caller_s=self.caller_s,
        )


def media_tables(cluster: Cluster, wires: Wires) -> list[tuple[Floats, Floats]]:
    """Latency and seconds per byte on each medium between any two devices, shape (p, p) each."""
    names = [device.name for device in cluster.devices]
    tables = {
        medium.name: (np.zeros((len(names),) * 2), np.zeros((len(names),) * 2))
        for medium in cluster.media
    }
    for (a, source), (b, target) in itertools.product(enumerate(names), repeat=2):
        way = wires.between(source, target) if tables else None
        if way is not None and way.medium:
            use = way.uses[1]
            tables[way.medium][0][a, b] = use.latency_s
            tables[way.medium][1][a, b] = 1 / use.bytes_per_s
    return list(tables.values())


def outer_media_s(cluster: Cluster, wires: Wires, num_bytes: float, *, back: bool) -> Floats:
    """Seconds on each medium of a message between the caller and each device, shape (m, p)."""
    table = np.zeros((len(cluster.media), len(cluster.devices)))
    if cluster.caller is None:
        return table
    places = {medium.name: k for k, medium in enumerate(cluster.media)}
    for k, device in enumerate(cluster.devices):
        ends = (device.name, cluster.caller) if back else (cluster.caller, device.name)
        way = wires.between(*ends)
        if way.medium:
            table[places[way.medium], k] = way.uses[1].seconds(num_bytes)
    return table


def stage_ports(
    cluster: Cluster, wires: Wires, firsts: Sequence[int], cut_bytes: Floats
) -> tuple[StagePort, ...]:
    """The ports that several messages of a stage, or of it and the caller, share.

    Args:
        cluster: the devices.
        wires: its wires.
        firsts: for each class the index of a device of it.
        cut_bytes: of one micro-batch at each boundary, the model's inputs and outputs included.
    """
    found: list[StagePort] = []
    for k, first in enumerate(firsts):
        name = cluster.devices[first].name
        port, is_caller = wires.port_of(name), name == cluster.caller
        if not (port.half_duplex or is_caller):
            continue
        into, out = cut_bytes / port.in_bytes_per_s, cut_bytes / port.out_bytes_per_s
        taken, given = into.copy(), out.copy()
        if is_caller or cluster.caller is None:  # inputs are there, and outputs stay
            taken[0] = given[-1] = 0.0
        # What the caller on this device sends to a first stage elsewhere, and gets from a last one.
        sent, got = np.zeros_like(out), np.zeros_like(into)
        if is_caller:
            sent[1:], got[:-1] = out[0], into[-1]
        pairs = [(taken, got), (sent, given)]
        if port.half_duplex:
            pairs = [(taken + sent, got + given)]
        found += [
            StagePort(device_class=k, by_start=a, by_stop=b) for a, b in pairs if a.any() or b.any()
        ]
    return tuple(found)


def shared_wires(
    cluster: Cluster,
    wires: Wires,
    members: Sequence[Sequence[int]],
    tables: Sequence[tuple[Floats, Floats]],
    cut_bytes: Floats,
) -> SharedWires | None:
    """What a cluster's stages share, by classes of devices; None where that is nothing.

    Args:
        cluster: the devices.
        wires: its wires.
        members: the devices of each class.
        tables: of `media_tables`, between classes.
        cut_bytes: of one micro-batch at each boundary, the model's inputs and outputs included.
    """
    if not cluster.has_shared_wires:
        return None
    firsts = [group[0] for group in members]
    there = outer_media_s(cluster, wires, float(cut_bytes[0]), back=False)[:, firsts]
    back = outer_media_s(cluster, wires, float(cut_bytes[-1]), back=True)[:, firsts]
    caller_class, caller_s = -1, 0.0
    if cluster.caller is not None:
        port = wires.port_of(cluster.caller)
        if port.half_duplex:
            caller_s = float(cut_bytes[0] / port.out_bytes_per_s)
            caller_s += float(cut_bytes[-1] / port.in_bytes_per_s)
        names = [cluster.devices[first].name for first in firsts]
        caller_class = names.index(cluster.caller) if cluster.caller in names else -1
    return SharedWires(
        ports=stage_ports(cluster, wires, firsts, cut_bytes),
        media=tuple(
            SharedMedium(latency_s=table[0], s_per_byte=table[1], source_s=a, sink_s=b)
            for table, a, b in zip(tables, there, back, strict=True)
        ),
        caller_class=caller_class,
        caller_s=caller_s,
    )
