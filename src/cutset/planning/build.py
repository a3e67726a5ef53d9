"""From a cost model and a cluster to the plain problem, and which device each class stands for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from cutset.costs.model import CostModel, PieceSeconds
from cutset.devices import Cluster, Device
from cutset.planning.problem import ChainProblem, Floats, Ints, Variant

KIND_PREFERENCE = ("block", "pool", "activation", "", "head")
"""Kinds of cuts, the preferred first; "" is an operation inside a unit."""

UNLIMITED_BYTES = 2**62


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltProblem:
    """A problem and what its numbers stand for.

    Attributes:
        problem: the numbers.
        classes: the devices of each class, in the cluster's order.
        boundaries: index in the cost model of each of the problem's boundaries, shape (n + 1,).
        memory: what any stage needs.
    """

    problem: ChainProblem
    classes: tuple[tuple[Device, ...], ...]
    boundaries: tuple[int, ...]
    memory: MemoryTable


class MemoryTable:
    """Bytes that any stage needs, for pieces that are merged between chosen boundaries."""

    def __init__(self, costs: CostModel, boundaries: Sequence[int]) -> None:
        num = len(boundaries) - 1
        edges = np.asarray(boundaries, dtype=np.int64)
        own = np.concatenate([[0], np.cumsum(np.asarray(costs.own_weight_bytes, dtype=np.int64))])
        self._own: Ints = own[edges]
        factor = costs.num_in_flight * costs.micro_batch
        peaks = np.asarray(costs.peak_bytes_per_row, dtype=np.int64) * factor
        row = np.maximum.reduceat(peaks, edges[:-1])
        self._peaks: list[Ints] = [row]
        while 2 ** len(self._peaks) <= num:
            half = 2 ** (len(self._peaks) - 1)
            row = self._peaks[-1].copy()
            row[:-half] = np.maximum(row[:-half], row[half:])
            self._peaks.append(row)
        self._table = np.stack(self._peaks)
        self._base = costs.base_bytes
        self._shared: list[tuple[int, Ints]] = []
        for weight in costs.shared_weights:
            users = np.unique(np.searchsorted(edges, weight.pieces, side="right") - 1)
            if len(users) == 1:
                self._own = self._own + weight.num_bytes * (np.arange(num + 1) > users[0])
            else:
                following = np.append(users, num)[np.searchsorted(users, np.arange(num))]
                self._shared.append((weight.num_bytes, following))
        self.num_pieces = num

    def needed(self, starts: Ints, stops: Ints) -> Ints:
        """Bytes that the stages [start, stop) need, element by element; each start < stop."""
        level = np.frexp(stops - starts)[1].astype(np.int64) - 1
        peak = np.maximum(self._table[level, starts], self._table[level, stops - 2**level])
        total: Ints = self._base + self._own[stops] - self._own[starts] + peak
        for num_bytes, following in self._shared:
            total += num_bytes * (following[starts] < stops)
        return total

    def furthest(self, limit_bytes: int) -> Ints:
        """For each start the largest stop of a stage that fits, the start itself if none."""
        starts = np.arange(self.num_pieces)
        low, high = starts.copy(), np.full(self.num_pieces, self.num_pieces)
        while (low < high).any():  # a larger stage never needs less
            middle = np.maximum((low + high + 1) // 2, starts + 1)
            fits = self.needed(starts, middle) <= limit_bytes
            low = np.where(fits & (low < high), middle, low)
            high = np.where(~fits & (low < high), middle - 1, high)
        furthest: Ints = low
        return furthest


def build_problem(
    costs: CostModel,
    cluster: Cluster,
    boundaries: Sequence[int],
    *,
    serial: bool = False,
    fixed_order: bool = False,
    num_stages: int | None = None,
) -> BuiltProblem:
    """The plain problem of placing a model on a cluster.

    Args:
        costs: the model.
        cluster: the devices.
        boundaries: indices of the cost model's boundaries at which cuts may be, rising, with the
            first and the last one.
        serial: whether a stage receives, computes and sends one after the other.
        fixed_order: whether stages must keep the cluster's order of devices.
        num_stages: exactly this many, or None for any number.

    Raises:
        PlanError: a device has no costs.
    """
    devices = cluster.devices
    seconds = [costs.seconds_on(device) for device in devices]
    latency, per_byte = _link_tables(cluster)
    edges = np.asarray(boundaries, dtype=np.int64)
    crossing = np.asarray(costs.cut_bytes_per_row, dtype=np.float64) * costs.micro_batch
    source = [cluster.caller_transfer_s(d, crossing[0], back=False) for d in devices]
    sink = [cluster.caller_transfer_s(d, crossing[-1], back=True) for d in devices]
    overhead = [cluster.overhead_on(d) for d in devices]
    keys = [
        (tuple((s.backend, s.seconds) for s in own), d.memory_bytes, a, b, o)
        for d, own, a, b, o in zip(devices, seconds, source, sink, overhead, strict=True)
    ]
    members = _classes(keys, latency, per_byte)
    if fixed_order and len(members) > 1:
        members = [[index] for index in range(len(devices))]
    memory = MemoryTable(costs, boundaries)
    firsts = np.asarray([group[0] for group in members])
    seconds_of = [group[min(1, len(group) - 1)] for group in members]  # a second member, if any
    link_latency, link_per_byte = latency[np.ix_(firsts, firsts)], per_byte[np.ix_(firsts, firsts)]
    for k, (first, second) in enumerate(zip(firsts, seconds_of, strict=True)):
        link_latency[k, k], link_per_byte[k, k] = latency[first, second], per_byte[first, second]
    problem = ChainProblem(
        num_pieces=len(boundaries) - 1,
        counts=tuple(len(group) for group in members),
        variants=_variants(devices, seconds, members, edges, memory),
        cut_bytes=crossing[edges],
        link_latency_s=link_latency,
        link_s_per_byte=link_per_byte,
        source_s=np.asarray(source, dtype=np.float64)[firsts],
        sink_s=np.asarray(sink, dtype=np.float64)[firsts],
        overhead_s=np.asarray(overhead, dtype=np.float64)[firsts],
        tie_cost=_tie_costs(costs, edges),
        serial=serial,
        fixed_order=fixed_order and len(members) > 1,
        num_stages=num_stages,
    )
    classes = tuple(tuple(devices[index] for index in group) for group in members)
    return BuiltProblem(
        problem=problem, classes=classes, boundaries=tuple(boundaries), memory=memory
    )


def _link_tables(cluster: Cluster) -> tuple[Floats, Floats]:
    """Latency and seconds per byte between any two devices, shape (p, p) each."""
    index = {device.name: k for k, device in enumerate(cluster.devices)}
    num = len(index)
    latency = np.full((num, num), cluster.link.latency_s)
    per_byte = np.full((num, num), 1 / cluster.link.bandwidth_bytes_per_s)
    for override in cluster.overrides:
        pair = index[override.source], index[override.target]
        latency[pair] = override.link.latency_s
        per_byte[pair] = 1 / override.link.bandwidth_bytes_per_s
    np.fill_diagonal(latency, 0.0)
    np.fill_diagonal(per_byte, 0.0)
    return latency, per_byte


def _classes(keys: Sequence[object], latency: Floats, per_byte: Floats) -> list[list[int]]:
    """Groups devices that can be exchanged for one another without changing any cost.

    That two can be exchanged carries over (if a and b, and b and c, then a and c), so it is
    enough to compare with the first of each group.
    """
    groups: list[list[int]] = []
    for index, key in enumerate(keys):
        for group in groups:
            first = group[0]
            if keys[first] == key and all(_alike(t, first, index) for t in (latency, per_byte)):
                group.append(index)
                break
        else:
            groups.append([index])
    return groups


def _alike(table: Floats, a: int, b: int) -> bool:
    others = np.ones(len(table), dtype=bool)
    others[[a, b]] = False
    rows = np.array_equal(table[a, others], table[b, others])
    return (
        rows and np.array_equal(table[others, a], table[others, b]) and table[a, b] == table[b, a]
    )


def _variants(
    devices: Sequence[Device],
    seconds: Sequence[tuple[PieceSeconds, ...]],
    members: list[list[int]],
    edges: Ints,
    memory: MemoryTable,
) -> tuple[Variant, ...]:
    variants = []
    reach_of: dict[int | None, Ints] = {}
    for k, group in enumerate(members):
        limit = devices[group[0]].memory_bytes
        if limit not in reach_of:
            reach_of[limit] = memory.furthest(UNLIMITED_BYTES if limit is None else limit)
        for entry in seconds[group[0]]:
            values = np.asarray([math.nan if s is None else s for s in entry.seconds])
            missing = np.isnan(values)
            prefix = np.concatenate([[0.0], np.cumsum(np.where(missing, 0.0, values))])[edges]
            reach = reach_of[limit]
            if missing.any():
                gaps = np.concatenate([[0], np.cumsum(missing)])[edges]
                clear = np.searchsorted(gaps, gaps[:-1], side="right") - 1
                reach = np.minimum(reach, clear)
            variants.append(
                Variant(device_class=k, backend=entry.backend, prefix_s=prefix, furthest=reach)
            )
    return tuple(variants)


def _tie_costs(costs: CostModel, edges: Ints) -> Floats:
    """Fewer bytes first, then kinds, then fewer stages, in one number for each cut.

    Exact while all bytes of a plan are below 2^29, and up to 1,000 stages.
    """
    ranks = {kind: rank for rank, kind in enumerate(KIND_PREFERENCE)}
    return np.asarray(
        [
            costs.cut_bytes_per_row[k] * costs.micro_batch * 2.0**24
            + ranks.get(costs.kinds[k], len(ranks)) * 2.0**10
            + 1.0
            for k in edges
        ]
    )
