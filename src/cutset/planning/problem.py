"""The planner's problem as plain numbers, and what any answer to it costs.

A chain of n pieces is covered by stages; stage [i, j) runs pieces i .. j-1. Devices come in
*classes* of interchangeable ones. Everything that solves, bounds or checks works on this.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cutset.planning.deadline import NEVER, Deadline
from cutset.planning.shared_wires import SharedMedium, SharedWires
from cutset.planning.totals import Bools, Floats, Ints
from cutset.planning.variant import Variant

ROUNDING = 1e-12
"""Relative slack of every comparison of seconds: sums of up to 10^4 float64 agree far better."""


def with_slack(limit_s: float) -> float:
    """`limit_s` and the slack that rounding needs."""
    return limit_s * (1 + ROUNDING) if math.isfinite(limit_s) else limit_s


class Placed(NamedTuple):
    """A stage of a solution: pieces `start` up to `stop` on a device of class `device_class`."""

    start: int
    stop: int
    device_class: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ByteCosts:
    """Seconds of computing that bytes take from stages, for each micro-batch; all from 0.

    Attributes:
        send_s_per_byte: from a sender of class a, for a byte to class b, shape (C, C).
        receive_s_per_byte: from a receiver of class b, for a byte from class a, shape (C, C).
        first_s: from the first stage, by the model's inputs, shape (C,).
        last_s: from the last stage, by the model's outputs, shape (C,).
        not_first_s: from any other stage than the first: what the caller on its device loses by
            sending the inputs to another one, shape (C,).
        not_last_s: from any other stage than the last, shape (C,).
        encode_s: from a sender of each class, by writing what crosses each boundary, shape
            (C, n + 1).
        decode_s: from a receiver of each class, by reading it, shape (C, n + 1); at 0 from a first
            stage, by the model's inputs.
    """

    send_s_per_byte: Floats
    receive_s_per_byte: Floats
    first_s: Floats
    last_s: Floats
    not_first_s: Floats
    not_last_s: Floats
    encode_s: Floats
    decode_s: Floats

    def any(self) -> bool:
        """Whether anything costs something."""
        return any(getattr(self, field.name).any() for field in dataclasses.fields(self))

    def of(self, index: Ints) -> ByteCosts:
        """The same for classes in another order, or for some of them only."""
        return ByteCosts(
            **{
                field.name: getattr(self, field.name)[
                    np.ix_(index, index) if field.name.endswith("per_byte") else index
                ]
                for field in dataclasses.fields(self)
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ChainProblem:
    """Cover n pieces with stages on distinct devices.

    Where what fits depends on the number of stages (`Variant.room`), searches take its `steps`.

    Attributes:
        num_pieces: n, at least 1.
        counts: how many devices each class has.
        variants: at least one for each class.
        cut_bytes: bytes of one micro-batch that cross each boundary, shape (n + 1,).
        link_latency_s: from a device of class a to another of class b, shape (C, C). Links are as
            slow as the slowest that a message passes, ports and media included.
        link_s_per_byte: the same for each byte.
        source_s: seconds to bring the model's inputs to a device, shape (C,); infinity where no
            plan may begin.
        sink_s: seconds to bring the model's outputs back, shape (C,); likewise.
        overhead_s: seconds that a stage on each class is busy besides computing, shape (C,); they
            count in a period, and not in a latency.
        tie_cost: what a cut at each boundary costs among plans of equal objective, shape (n + 1,).
        byte_costs: what bytes take from computing, None for nothing; they count as `overhead_s`.
        serial: whether a stage receives, computes and sends one after the other.
        fixed_order: whether stages must use the classes (of one device each) in rising order.
        num_stages: exactly this many, or None for any number.
        at_most: no more stages than this, or None for any number.
        reuse: an easier problem: a device may have several stages, but no two neighbours, and
            there are as many stages as devices at most.
        deadline: when searches end.
        shared: ports and media that several messages share, None where there are none.
    """

    num_pieces: int
    counts: tuple[int, ...]
    variants: tuple[Variant, ...]
    cut_bytes: Floats
    link_latency_s: Floats
    link_s_per_byte: Floats
    source_s: Floats
    sink_s: Floats
    overhead_s: Floats
    tie_cost: Floats
    byte_costs: ByteCosts | None = None
    serial: bool = False
    fixed_order: bool = False
    num_stages: int | None = None
    at_most: int | None = None
    reuse: bool = False
    deadline: Deadline = NEVER
    shared: SharedWires | None = None

    @property
    def num_classes(self) -> int:
        """How many classes of interchangeable devices."""
        return len(self.counts)

    @property
    def max_stages(self) -> int:
        """The most stages that there can be."""
        most = min(sum(self.counts), self.num_pieces, self.num_stages or self.num_pieces)
        return most if self.at_most is None else min(most, self.at_most)

    @functools.cached_property
    def steps(self) -> tuple[ChainProblem, ...]:
        """Problems in which the number of stages does not matter, and whose plans are this one's.

        Nor does it matter in them whether the caller's device has a stage at an end of a plan
        (`SharedWires.caller_s`): one that begins there, one that ends there, and any plan if the
        period is no less.

        What fits with many stages fits with fewer. So for each number b at which something ceases
        to fit there is one problem: up to b stages, each of which fits with b. A plan of k stages
        belongs to that of the least b from k up that one of its stages has; and every plan of any
        of the problems is one of this.
        """
        by_ends = self._by_ends()
        if len(by_ends) > 1:
            return tuple(itertools.chain.from_iterable(each.steps for each in by_ends))
        rooms = [v.room for v in self.variants if v.room is not None]
        if not rooms:
            return (self,)
        most = self.max_stages
        ends = {min(int(k), most) for room in rooms for k in np.unique(room)} - {0}
        if len(rooms) < len(self.variants):
            ends.add(most)
        if self.num_stages is not None:
            ends = {most}
        return tuple(
            dataclasses.replace(
                self, at_most=end, variants=tuple(v.with_stages(end) for v in self.variants)
            )
            for end in sorted(ends, reverse=True)
        )

    def _by_ends(self) -> tuple[ChainProblem, ...]:
        """The problem by where its plans begin and end, if the caller's port makes a difference."""
        shared = self.shared
        if shared is None or shared.caller_class < 0 or not shared.caller_s:
            return (self,)
        elsewhere = np.arange(self.num_classes) != shared.caller_class
        free = dataclasses.replace(shared, caller_s=0.0)
        return (
            dataclasses.replace(
                self, shared=free, source_s=np.where(elsewhere, math.inf, self.source_s)
            ),
            dataclasses.replace(
                self, shared=free, sink_s=np.where(elsewhere, math.inf, self.sink_s)
            ),
            dataclasses.replace(self, shared=dataclasses.replace(shared, caller_class=-1)),
        )

    def fits(self, stages: tuple[Placed, ...]) -> bool:
        """Whether memory allows each stage in a plan of so many."""
        return all(
            any(
                math.isfinite(v.cost_s(stage.start, stage.stop))
                and (v.room is None or v.room[stage.start, stage.stop] >= len(stages))
                for v in self.of_class(stage.device_class)
            )
            for stage in stages
        )

    @property
    def is_coupled(self) -> bool:
        """Whether the load of a stage depends on what it receives and sends, and whence."""
        return self.serial or self.byte_costs is not None

    @property
    def floor_s(self) -> float:
        """Seconds that no period can be below, whatever the plan."""
        return 0.0 if self.shared is None else self.shared.floor_s

    @property
    def num_media(self) -> int:
        """How many media there are."""
        return 0 if self.shared is None else len(self.shared.media)

    def media_s(self, stages: tuple[Placed, ...]) -> float:
        """Seconds for which the busiest medium is, 0 where there is none."""
        busy_s = [] if self.shared is None else self.shared.media_s(stages, self.cut_bytes)
        return max(busy_s, default=0.0)

    def ports_fit(self, device_class: int, limit_s: float) -> Bools | None:
        """As `SharedWires.fits`; None where no port matters."""
        return None if self.shared is None else self.shared.fits(device_class, limit_s)

    def can_begin(self, device_class: int, limit_s: float) -> bool:
        """Whether the first stage can be there: its inputs arrive within the limit."""
        source_s = float(self.source_s[device_class])
        return math.isfinite(source_s) and (self.serial or source_s <= limit_s)

    def can_end(self, device_class: int, limit_s: float) -> bool:
        """Whether the last stage can be there: its outputs are back within the limit."""
        sink_s = float(self.sink_s[device_class])
        return math.isfinite(sink_s) and (self.serial or sink_s <= limit_s)

    def hop_row(self, cost: str, source: int, target: int) -> Floats:
        """What a cut at each boundary adds to a cost between two classes, shape (n + 1,).

        Args:
            cost: ``"latency"``, ``"ties"``, or ``"medium K"`` for seconds on one medium.
            source: class that sends.
            target: class that receives.
        """
        if cost == "latency":
            return self.link_row_s(source, target) + self._codec_row_s(source, target)
        if cost == "ties":
            return self.tie_cost
        return self._medium(cost).row_s(source, target, self.cut_bytes)

    def outer_rows(self, cost: str) -> tuple[Floats, Floats]:
        """What inputs and outputs add to a cost, by class: shape (C,) each."""
        if cost == "latency":
            return self.source_s + self._input_codec_s, self.sink_s
        if cost == "ties":
            return (np.zeros(self.num_classes),) * 2
        medium = self._medium(cost)
        return medium.source_s, medium.sink_s

    def _medium(self, cost: str) -> SharedMedium:
        assert self.shared is not None
        return self.shared.media[int(cost.removeprefix("medium "))]

    def can_follow(self, source: int, target: int) -> bool:
        """Whether a stage on class `target` can come right after one on class `source`."""
        return source != target or self.counts[source] > 1

    @functools.cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Classes of every two stages that can be neighbours."""
        every = range(self.num_classes)
        return tuple((a, b) for a in every for b in every if self.can_follow(a, b))

    def of_class(self, device_class: int) -> tuple[Variant, ...]:
        """The variants of one class."""
        return tuple(v for v in self.variants if v.device_class == device_class)

    def compute_s(self, stage: Placed) -> float:
        """Seconds of a stage with its best variant, infinity where none is possible."""
        return min(v.cost_s(stage.start, stage.stop) for v in self.of_class(stage.device_class))

    def stops_within(self, variant: Variant, limit_s: float) -> Ints:
        """For each start the largest stop of a stage that is busy for at most `limit_s`."""
        return variant.stops_within(limit_s - float(self.overhead_s[variant.device_class]))

    def link_row_s(self, source: int, target: int) -> Floats:
        """Seconds to send across each boundary from class to class, shape (n + 1,)."""
        latency_s, per_byte = (
            self.link_latency_s[source, target],
            self.link_s_per_byte[source, target],
        )
        row: Floats = latency_s + self.cut_bytes * per_byte
        return row

    def sender_row_s(self, source: int, target: int) -> Floats:
        """Seconds for which a transfer keeps its sender from computing, shape (n + 1,)."""
        row = self.link_row_s(source, target) if self.serial else np.zeros(self.num_pieces + 1)
        if self.byte_costs is not None:
            per_byte = self.byte_costs.send_s_per_byte[source, target]
            row = row + self.cut_bytes * per_byte + self.byte_costs.not_last_s[source]
            row = row + self.byte_costs.encode_s[source]
        return row

    def receiver_row_s(self, source: int, target: int) -> Floats:
        """Seconds for which a transfer keeps its receiver from computing, shape (n + 1,)."""
        row = self.link_row_s(source, target) if self.serial else np.zeros(self.num_pieces + 1)
        if self.byte_costs is not None:
            per_byte = self.byte_costs.receive_s_per_byte[source, target]
            row = row + self.cut_bytes * per_byte + self.byte_costs.not_first_s[target]
            row = row + self.byte_costs.decode_s[target]
        return row

    def first_load_s(self, device_class: int) -> float:
        """Seconds for which the model's inputs keep a first stage from computing."""
        own_s = float(self.source_s[device_class]) if self.serial else 0.0
        bytes_s = 0.0 if self.byte_costs is None else float(self.byte_costs.first_s[device_class])
        return own_s + bytes_s + float(self._input_codec_s[device_class])

    def last_load_s(self, device_class: int) -> float:
        """Seconds for which the model's outputs keep a last stage from computing."""
        own_s = float(self.sink_s[device_class]) if self.serial else 0.0
        bytes_s = 0.0 if self.byte_costs is None else float(self.byte_costs.last_s[device_class])
        return own_s + bytes_s

    def transfers_s(self, stages: tuple[Placed, ...]) -> tuple[float, ...]:
        """Seconds into the first stage, between neighbours, and out of the last one."""
        inner = (
            float(self.link_row_s(a.device_class, b.device_class)[a.stop])
            for a, b in itertools.pairwise(stages)
        )
        first, last = stages[0].device_class, stages[-1].device_class
        return (float(self.source_s[first]), *inner, float(self.sink_s[last]))

    def moves_s(self, stages: tuple[Placed, ...]) -> tuple[tuple[float, float], ...]:
        """Seconds that receiving and sending keep each stage from computing."""
        inner = [(a.device_class, b.device_class, a.stop) for a, b in itertools.pairwise(stages)]
        received = (float(self.receiver_row_s(a, b)[k]) for a, b, k in inner)
        sent = (float(self.sender_row_s(a, b)[k]) for a, b, k in inner)
        first, last = stages[0].device_class, stages[-1].device_class
        return tuple(
            zip(
                (self.first_load_s(first), *received),
                (*sent, self.last_load_s(last)),
                strict=True,
            )
        )

    def loads_s(self, stages: tuple[Placed, ...]) -> tuple[float, ...]:
        """Seconds for which each stage occupies its device, with transfers where it is serial."""
        return tuple(
            math.fsum((self.compute_s(stage), float(self.overhead_s[stage.device_class]), *moves))
            for stage, moves in zip(stages, self.moves_s(stages), strict=True)
        )

    def lost_s(self, stages: tuple[Placed, ...]) -> tuple[float, ...]:
        """Seconds that each stage is busy besides computing and transfers: overhead and bytes."""
        apart = dataclasses.replace(self, serial=False)
        return tuple(
            math.fsum((float(self.overhead_s[stage.device_class]), *moves))
            for stage, moves in zip(stages, apart.moves_s(stages), strict=True)
        )

    def period_s(self, stages: tuple[Placed, ...]) -> float:
        """Seconds per micro-batch: the largest load of a stage, a link, or what is shared.

        Where stages are serial their loads hold the links.
        """
        loads = [*self.loads_s(stages), *([] if self.serial else self.transfers_s(stages))]
        if self.shared is not None:
            loads.append(self.shared.busy_s(stages, self.cut_bytes))
        return max(loads)

    def latency_s(self, stages: tuple[Placed, ...]) -> float:
        """Seconds for one micro-batch alone: all compute, all codecs and all transfers."""
        codecs_s = (
            float(self._codec_row_s(a.device_class, b.device_class)[a.stop])
            for a, b in itertools.pairwise(stages)
        )
        compute_s = math.fsum(self.compute_s(stage) for stage in stages)
        first_s = float(self._input_codec_s[stages[0].device_class])
        return compute_s + math.fsum((*self.transfers_s(stages), first_s, *codecs_s))

    @property
    def _input_codec_s(self) -> Floats:
        """Seconds to read the model's inputs on each class, shape (C,)."""
        costs = self.byte_costs
        return np.zeros(self.num_classes) if costs is None else costs.decode_s[:, 0]

    def _codec_row_s(self, source: int, target: int) -> Floats:
        """Seconds to write and read what crosses each boundary, shape (n + 1,)."""
        if self.byte_costs is None:
            return np.zeros(self.num_pieces + 1)
        row: Floats = self.byte_costs.encode_s[source] + self.byte_costs.decode_s[target]
        return row

    def ties(self, stages: tuple[Placed, ...]) -> float:
        """What decides among plans of equal objective; smaller is better."""
        return float(sum(self.tie_cost[stage.stop] for stage in stages[:-1]))

    @functools.cached_property
    def has_uniform_moves(self) -> bool:
        """Whether what receiving and sending take from a stage is the same for any neighbour."""
        tables = [self.link_latency_s, self.link_s_per_byte] if self.serial else []
        if self.byte_costs is not None:
            tables += [self.byte_costs.send_s_per_byte, self.byte_costs.receive_s_per_byte]
        return all(len({float(table[pair]) for pair in self.pairs}) <= 1 for table in tables)

    def any_source(self, target: int) -> int | None:
        """Some class from which a stage on `target` can receive; None where there is none."""
        return next((a for a, b in self.pairs if b == target), None)

    def any_target(self, source: int) -> int | None:
        """Some class to which a stage on `source` can send; None where there is none."""
        return next((b for a, b in self.pairs if a == source), None)

    def of_classes(self, index: Sequence[int], counts: Sequence[int]) -> ChainProblem:
        """The problem over other classes: class k is what class ``index[k]`` is here.

        Args:
            index: classes of this problem; one may come several times.
            counts: how many devices each of the new classes has.
        """
        at = np.asarray(index, dtype=np.int64)
        return dataclasses.replace(
            self,
            counts=tuple(counts),
            variants=tuple(
                dataclasses.replace(v, device_class=k)
                for k, c in enumerate(index)
                for v in self.of_class(c)
            ),
            link_latency_s=self.link_latency_s[np.ix_(at, at)],
            link_s_per_byte=self.link_s_per_byte[np.ix_(at, at)],
            source_s=self.source_s[at],
            sink_s=self.sink_s[at],
            overhead_s=self.overhead_s[at],
            byte_costs=None if self.byte_costs is None else self.byte_costs.of(at),
            shared=None if self.shared is None else self.shared.of(at),
        )

    def volume(self) -> tuple[Floats, Floats]:
        """Work of each piece, and how much of it a device of each class does in a second.

        Work is what the fastest class would take; a class's rate is its best over all pieces, so
        that ``seconds * rate`` is never less than the work done. On devices that differ by a
        factor alone this is exact.

        Returns:
            Work, shape (n,), and rates, shape (C,), from 0 to 1.
        """
        pieces = self.piece_seconds()
        work = pieces.min(axis=0)
        work[np.isinf(work)] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(work > 0, work / pieces, 0.0)
        return work, ratio.max(axis=1)

    def piece_seconds(self) -> Floats:
        """Seconds of each piece on each class, shape (C, n); infinity where no stage holds it."""
        pieces = np.full((self.num_classes, self.num_pieces), math.inf)
        possible = np.arange(self.num_pieces)
        for v in self.variants:
            # A piece alone may not fit where a stage that holds it does.
            is_held = np.maximum.accumulate(v.furthest) > possible
            seconds = np.where(is_held, v.seconds, math.inf)
            pieces[v.device_class] = np.minimum(pieces[v.device_class], seconds)
        return pieces
