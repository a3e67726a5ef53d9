"""The messages of a plan: between whom, what they occupy, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from cutset.cluster.devices import Cluster
from cutset.cluster.wires import Way, Wires
from cutset.ranges import Count, Seconds


class WireUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wire, by its name, and how many seconds of a micro-batch it is busy."""

    wire: str
    busy_s: Seconds


class PlannedMessage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What goes from one machine to another for each micro-batch.

    Attributes:
        after: index of the stage that sends it; None where the caller does.
        source: name of the machine that sends it.
        target: name of the machine that receives it.
        num_bytes: of one micro-batch.
        seconds: that it takes with nothing in its way.
        uses: what it occupies: its link first, for as long as it takes; then its medium and ports.
        limit: the one of them that makes the link as slow as it is, ``""`` for the link itself.
    """

    after: Count | None
    source: str
    target: str
    num_bytes: Count
    seconds: Seconds
    uses: tuple[WireUse, ...]
    limit: str = ""

    @property
    def medium(self) -> str:
        """The medium that it goes over, ``""`` for a link of its own."""
        shared = [use.wire for use in self.uses if use.wire.startswith("medium ")]
        return shared[0] if shared else ""


def ways_of(cluster: Cluster, devices: Sequence[str]) -> list[tuple[str, str, Way | None]]:
    """From the caller to the first stage, between neighbours, and back to the caller.

    Args:
        cluster: where the stages are.
        devices: of each stage.

    Returns:
        Names of both ends, ``""`` for a caller that is nowhere, and the way; None where there
        is none, within a machine or from nowhere.
    """
    wires = Wires(cluster)
    places = [cluster.caller or "", *devices, cluster.caller or ""]
    return [
        (a, b, wires.between(a, b) if a and b and a != b else None) for a, b in pairwise(places)
    ]


def planned_messages(
    cluster: Cluster, devices: Sequence[str], sizes: Sequence[int]
) -> tuple[PlannedMessage, ...]:
    """The messages between machines of a plan.

    Args:
        cluster: where its stages are.
        devices: of each stage, in order.
        sizes: bytes of one micro-batch of the model's inputs, across each cut, of its outputs.
    """
    found = []
    for index, (source, target, way) in enumerate(ways_of(cluster, devices)):
        if way is not None:
            found.append(
                PlannedMessage(
                    after=index - 1 if index else None,
                    source=source,
                    target=target,
                    num_bytes=sizes[index],
                    seconds=way.seconds(sizes[index]),
                    uses=tuple(
                        WireUse(wire=use.wire, busy_s=use.seconds(sizes[index])) for use in way.uses
                    ),
                    limit=way.limit,
                )
            )
    return tuple(found)


def wire_loads(messages: Sequence[PlannedMessage]) -> tuple[WireUse, ...]:
    """How busy each wire is with all messages of a micro-batch, in the order that they name it."""
    busy: dict[str, float] = {}
    for message in messages:
        for use in message.uses:
            busy[use.wire] = busy.get(use.wire, 0.0) + use.busy_s
    return tuple(WireUse(wire=wire, busy_s=seconds) for wire, seconds in busy.items())
