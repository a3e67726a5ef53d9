"""From a cost model and a cluster to the plain problem, and which device each class stands for."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from cutset.cluster.devices import Cluster, Device
from cutset.cluster.wires import Wires
from cutset.costs.cost_model import CostModel, PieceSeconds
from cutset.errors import PlanError
from cutset.planning.codec_choices import (
    choices_of,
    codec_seconds_of,
    tie_costs,
    without_empty,
)
from cutset.planning.deadline import NEVER, Deadline
from cutset.planning.problem import ByteCosts, ChainProblem
from cutset.planning.shared_wires import media_tables, outer_media_s, shared_wires
from cutset.planning.totals import Floats, Ints
from cutset.planning.variant import Variant

_CELLS_AT_ONCE = 1 << 20
"""Stages whose memory is worked out at a time."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BuiltProblem:
    """A problem and what its numbers stand for.

    Attributes:
        problem: the numbers.
        classes: the devices of each class, in the cluster's order.
        boundaries: index in the cost model of each of the problem's boundaries, shape (n + 1,). One
            comes once for each codec that a cut there may have, with nothing between.
        codecs: of each of them, its codec.
        memory: what any stage needs.
    """

    problem: ChainProblem
    classes: tuple[tuple[Device, ...], ...]
    boundaries: tuple[int, ...]
    codecs: tuple[str, ...]
    memory: MemoryTable


class MemoryTable:
    """Bytes that any stage needs, for pieces that are merged between chosen boundaries.

    The same as `CostModel.memory_bytes`, for many stages at once.
    """

    def __init__(self, costs: CostModel, boundaries: Sequence[int]) -> None:
        num = len(boundaries) - 1
        edges = np.asarray(boundaries, dtype=np.int64)
        own = np.concatenate([[0], np.cumsum(np.asarray(costs.own_weight_bytes, dtype=np.int64))])
        self._own: Ints = own[edges]
        peaks = np.asarray(costs.peak_bytes_per_row, dtype=np.int64) * costs.micro_batch
        row = np.maximum.reduceat(peaks, edges[:-1])
        row[np.diff(edges) == 0] = 0
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
        self._crossing = np.asarray(costs.cut_bytes_per_row, dtype=np.int64)[edges]
        self._crossing *= costs.micro_batch
        self._window_with = costs.window_with
        self.window = costs.window
        self.num_pieces = num

    def beside(self, device: Device) -> int:
        """Bytes by which a worker on `device`, before its stage, is larger than was counted."""
        return 0 if device.worker_bytes is None else device.worker_bytes - self._base

    def limit_on(self, device: Device) -> int | None:
        """What the bytes of `needed` may be on `device`; None where memory is no limit."""
        limit = device.memory_bytes
        return None if limit is None else limit - self.beside(device)

    def needed(self, starts: Ints, stops: Ints, *, num_stages: int) -> Ints:
        """Bytes that the stages [start, stop) need in a plan of so many; each start < stop.

        With a worker of the size that was counted for those devices that say nothing of theirs.
        """
        window = self._window_with(num_stages)
        taken, given = self._crossing[starts], self._crossing[stops]
        total: Ints = self._alone(starts, stops) + window * taken + max(window - 1, 0) * given
        return total

    def most_needed(self, *, num_stages: int) -> int:
        """No stage needs more than this in a plan of so many."""
        window = self._window_with(num_stages)
        whole = self._alone(np.zeros(1, np.int64), np.full(1, self.num_pieces))
        return int(whole[0]) + 2 * window * int(self._crossing.max())

    def most_stages(self, limit_bytes: int, at_most: int) -> Ints | None:
        """With how many stages in its plan a stage still fits.

        The more stages, the more micro-batches are in flight and wait.

        Args:
            limit_bytes: what the device has.
            at_most: the most stages that there can be.

        Returns:
            Numbers from 0 (it never fits) to `at_most`, shape (n, n + 1), start by stop; None where
            every stage fits with every number.
        """
        if self.most_needed(num_stages=at_most) <= limit_bytes:
            return None
        num = self.num_pieces
        windows = [self._window_with(k) for k in range(1, at_most + 1)]
        found = np.zeros((num, num + 1), dtype=np.min_scalar_type(at_most))
        rows = max(1, _CELLS_AT_ONCE // num)
        for first in range(0, num, rows):
            starts = np.arange(first, min(num, first + rows))[:, None]
            stops = np.arange(first + 1, num + 1)[None, :]
            later = np.maximum(stops, starts + 1)  # where there is no stage, any will do
            taken, given = self._crossing[starts], self._crossing[later]
            room = limit_bytes - self._alone(starts, later)
            fits = np.zeros(room.shape, dtype=np.int64)
            for window in windows:
                fits += window * taken + max(window - 1, 0) * given <= room
            found[first : first + rows, first + 1 :] = np.where(stops > starts, fits, 0)
        return found

    def _alone(self, starts: Ints, stops: Ints) -> Ints:
        """Bytes without those that wait at the stage's two ends."""
        level = np.frexp(stops - starts)[1].astype(np.int64) - 1
        peak = np.maximum(self._table[level, starts], self._table[level, stops - 2**level])
        total: Ints = self._base + self._own[stops] - self._own[starts] + peak
        for num_bytes, following in self._shared:
            total += num_bytes * (following[starts] < stops)
        return total


def build_problem(
    costs: CostModel,
    cluster: Cluster,
    boundaries: Sequence[int],
    *,
    serial: bool = False,
    fixed_order: bool = False,
    num_stages: int | None = None,
    deadline: Deadline = NEVER,
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
        deadline: when searches end.

    Raises:
        PlanError: a device has no costs, or negative ones.
    """
    devices = cluster.devices
    seconds = [_checked(costs.seconds_on(device)) for device in devices]
    wires = Wires(cluster)
    tables, media = _link_tables(cluster, wires), media_tables(cluster, wires)
    choices = choices_of(costs, boundaries)
    boundaries = tuple(choice.boundary for choice in choices)
    edges = np.asarray(boundaries, dtype=np.int64)
    crossing = np.asarray([choice.num_bytes for choice in choices], dtype=np.float64)
    source = [cluster.caller_transfer_s(d, crossing[0], back=False) for d in devices]
    sink = [cluster.caller_transfer_s(d, crossing[-1], back=True) for d in devices]
    overhead = [cluster.overhead_on(d) for d in devices]
    outer = _outer_bytes_s(cluster, crossing[0], crossing[-1])
    ends = np.concatenate(
        [
            outer_media_s(cluster, wires, crossing[0], back=False),
            outer_media_s(cluster, wires, crossing[-1], back=True),
        ]
    )
    has_ports = cluster.has_shared_wires
    keys = [
        (
            tuple((s.backend, s.seconds) for s in own),
            (d.memory_bytes, d.worker_bytes),
            (a, b, o, *outer[:, k], *ends[:, k]),
            has_ports and (d.port, d.name == cluster.caller),
        )
        for k, (d, own, a, b, o) in enumerate(
            zip(devices, seconds, source, sink, overhead, strict=True)
        )
    ]
    members = _classes(keys, [*tables, *itertools.chain.from_iterable(media)])
    if fixed_order and len(members) > 1:
        members = [[index] for index in range(len(devices))]
    memory = MemoryTable(costs, boundaries)
    firsts = np.asarray([group[0] for group in members])
    merged = [_between_classes(table, members) for table in tables]
    byte_costs = ByteCosts(
        send_s_per_byte=merged[2],
        receive_s_per_byte=merged[3],
        first_s=outer[0, firsts],
        last_s=outer[1, firsts],
        not_first_s=outer[2, firsts],
        not_last_s=outer[3, firsts],
        **codec_seconds_of(costs, [devices[first] for first in firsts], choices),
    )
    counts = tuple(len(group) for group in members)
    most = num_stages or min(len(devices), len(boundaries) - 1)
    problem = ChainProblem(
        num_pieces=len(boundaries) - 1,
        counts=counts,
        variants=_variants(devices, seconds, members, edges, memory, most),
        cut_bytes=crossing,
        link_latency_s=merged[0],
        link_s_per_byte=merged[1],
        source_s=np.asarray(source, dtype=np.float64)[firsts],
        sink_s=np.asarray(sink, dtype=np.float64)[firsts],
        overhead_s=np.asarray(overhead, dtype=np.float64)[firsts],
        byte_costs=byte_costs if byte_costs.any() else None,
        tie_cost=tie_costs(costs, choices),
        serial=serial,
        fixed_order=fixed_order and len(members) > 1,
        num_stages=num_stages,
        deadline=deadline,
        shared=shared_wires(
            cluster,
            wires,
            members,
            [(_between_classes(a, members), _between_classes(b, members)) for a, b in media],
            crossing,
        ),
    )
    classes = tuple(tuple(devices[index] for index in group) for group in members)
    return BuiltProblem(
        problem=problem,
        classes=classes,
        boundaries=boundaries,
        codecs=tuple(choice.codec for choice in choices),
        memory=memory,
    )


def _checked(entries: tuple[PieceSeconds, ...]) -> tuple[PieceSeconds, ...]:
    """The same; seconds are from 0, infinity or None where a piece may not run."""
    for entry in entries:
        for k, value in enumerate(entry.seconds):
            if value is not None and not value >= 0:
                raise PlanError(
                    f"piece {k} takes {value} s on {entry.device or 'the reference'!r}: seconds are"
                    " 0 or more; None or infinity says that a piece may not run there"
                )
    return entries


def _link_tables(cluster: Cluster, wires: Wires) -> list[Floats]:
    """Latency, and seconds per byte of the link, its sender, its receiver: shape (p, p) each."""
    names = [device.name for device in cluster.devices]
    tables = np.zeros((4, len(names), len(names)))
    for (a, source), (b, target) in itertools.permutations(enumerate(names), 2):
        way = wires.between(source, target)
        link = way.uses[0]
        costs = way.send_s_per_byte, way.receive_s_per_byte
        tables[:, a, b] = (link.latency_s, 1 / link.bytes_per_s, *costs)
    return list(tables)


def _between_classes(table: Floats, members: Sequence[Sequence[int]]) -> Floats:
    """What a table of devices says between classes, shape (C, C); within one between two of it."""
    firsts = [group[0] for group in members]
    merged: Floats = table[np.ix_(firsts, firsts)]
    for k, group in enumerate(members):
        merged[k, k] = table[group[0], group[min(1, len(group) - 1)]]
    return merged


def _outer_bytes_s(cluster: Cluster, input_bytes: float, output_bytes: float) -> Floats:
    """What the model's inputs and outputs take from computing, shape (4, p).

    By device as `ByteCosts` wants it: of a first and of a last stage there, and of one there that
    is not the first, or not the last: that the caller on its device sends to, or receives from,
    another one. Where the caller's links differ this counts as the dearest of them does.
    """
    rows = np.zeros((4, len(cluster.devices)))
    if cluster.caller is None:
        return rows
    others = [d.name for d in cluster.devices if d.name != cluster.caller]
    there = [cluster.link_between(cluster.caller, name) for name in others]
    back = [cluster.link_between(name, cluster.caller) for name in others]
    for k, device in enumerate(cluster.devices):
        if device.name == cluster.caller:
            rows[2, k] = input_bytes * max((link.send_s_per_byte for link in there), default=0.0)
            rows[3, k] = output_bytes * max((link.receive_s_per_byte for link in back), default=0.0)
        else:
            at = others.index(device.name)
            rows[0, k] = input_bytes * there[at].receive_s_per_byte
            rows[1, k] = output_bytes * back[at].send_s_per_byte
    return rows


def _classes(keys: Sequence[object], tables: Sequence[Floats]) -> list[list[int]]:
    """Groups devices that can be exchanged for one another without changing any cost.

    That two can be exchanged carries over (if a and b, and b and c, then a and c), so it is
    enough to compare with the first of each group.
    """
    groups: list[list[int]] = []
    for index, key in enumerate(keys):
        for group in groups:
            first = group[0]
            if keys[first] == key and all(_alike(table, first, index) for table in tables):
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
    most: int,
) -> tuple[Variant, ...]:
    variants = []
    room_of: dict[int | None, Ints | None] = {None: without_empty(edges, None, most)}
    for k, group in enumerate(members):
        limit = memory.limit_on(devices[group[0]])
        if limit is not None and limit not in room_of:
            room_of[limit] = without_empty(edges, memory.most_stages(limit, most), most)
        for entry in seconds[group[0]]:
            own = [math.inf if s is None else s for s in entry.seconds]
            merged = [math.fsum(own[a:b]) for a, b in itertools.pairwise(edges.tolist())]
            variants.append(
                Variant(
                    device_class=k,
                    backend=entry.backend,
                    seconds=np.asarray(merged),
                    furthest=np.full(len(merged), len(merged)),
                    room=room_of[limit],
                )
            )
    return tuple(variants)
