"""What the stages of a cost graph send over: every two devices joined alike, or an error."""

from __future__ import annotations

import itertools

from cutset.cluster.devices import Cluster, Device, Link
from cutset.cluster.wires import Way, Wires
from cutset.errors import PlanError
from cutset.planning.request import PlanRequest


def check_wires(cluster: Cluster, request: PlanRequest, *, through_host: bool) -> None:
    """Checks that a cost graph can be planned on a cluster's wires.

    Raises:
        PlanError: two links differ, there is a caller, or ports or media are where they have no
            meaning, or where sums over a medium would have to be kept beside another limit.
    """
    if cluster.overrides or cluster.caller is not None:
        raise PlanError(
            "a cost graph is planned with one kind of link: leave out link.between and caller"
        )
    if not cluster.has_shared_wires:
        return
    if through_host:
        raise PlanError(
            "a cost graph with transfers through the host sends nothing from device to device:"
            " leave ports and media out of the cluster, [link] is the way to the host's memory"
        )
    kinds: dict[object, Way] = {}
    for way in _ways(cluster):
        kinds.setdefault((way.uses[0].latency_s, way.uses[0].bytes_per_s, way.medium), way)
    if len(kinds) > 1:
        first, other = (way.uses[0].wire for way in list(kinds.values())[:2])
        raise PlanError(
            "a cost graph is planned with every two devices joined alike, by one medium or by none,"
            f" and at one speed; {first} and {other} differ"
        )
    is_limited = request.max_latency_s is not None or (
        request.objective == "latency" and request.min_rows_per_s is not None
    )
    if cluster.media and is_limited:
        raise PlanError(
            "a cost graph over a medium is planned for one objective: leave out the limit on the"
            " other one, or plan the model itself"
        )


def _ways(cluster: Cluster) -> list[Way]:
    wires = Wires(cluster)
    names = [device.name for device in cluster.devices]
    return [wires.between(*pair) for pair in itertools.permutations(names, 2)]


def link_of(cluster: Cluster) -> Link:
    """The link between any two devices, as fast as what is on the way allows."""
    names = [device.name for device in cluster.devices][:2]
    return cluster.link_between(*names) if len(names) == 2 else cluster.link


def medium_of(cluster: Cluster) -> tuple[float, float] | None:
    """Latency and seconds per byte on the medium that joins every two devices, if one does."""
    way = next((way for way in _ways(cluster) if way.medium), None)
    return None if way is None else (way.uses[1].latency_s, 1 / way.uses[1].bytes_per_s)


def half_duplex_costs(devices: list[Device]) -> tuple[tuple[float, float], ...]:
    """Seconds for each byte into and out of devices in half duplex, 0 for others; () for none."""
    if not any(device.port.half_duplex for device in devices):
        return ()
    return tuple(
        (1 / d.port.in_bytes_per_s, 1 / d.port.out_bytes_per_s) if d.port.half_duplex else (0, 0)
        for d in devices
    )
