"""The planner's problem as plain numbers, and what any answer to it costs.

A chain of n pieces is covered by stages; stage [i, j) runs pieces i .. j-1. Devices come in
*classes* of interchangeable ones. Everything that solves, bounds or checks works on this.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

ROUNDING = 1e-12
"""Relative slack of every comparison of seconds: sums of up to 10^4 float64 agree far better."""


def with_slack(limit_s: float) -> float:
    """`limit_s` and the slack that rounding needs."""
    return limit_s * (1 + ROUNDING) if math.isfinite(limit_s) else limit_s


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One way for a class of devices to compute: a backend.

    Attributes:
        device_class: index of the class.
        backend: its name, for the report.
        prefix_s: seconds of the first k pieces, shape (n + 1,), never falling.
        furthest: for each start i the largest stop j that memory and backend allow, shape (n,),
            never falling; i itself where not even piece i is possible.
    """

    device_class: int
    backend: str
    prefix_s: Floats
    furthest: Ints

    def cost_s(self, start: int, stop: int) -> float:
        """Seconds of a stage, infinity where it is not possible."""
        if stop > self.furthest[start]:
            return math.inf
        return float(self.prefix_s[stop] - self.prefix_s[start])

    def stops_within(self, limit_s: float) -> Ints:
        """For each start the largest stop that takes at most `limit_s`, shape (n,).

        Where there is none it is the start or, below 0, less.
        """
        reach = np.searchsorted(self.prefix_s, self.prefix_s[:-1] + limit_s, side="right") - 1
        return np.minimum(reach, self.furthest)


class Placed(NamedTuple):
    """A stage of a solution: pieces `start` up to `stop` on a device of class `device_class`."""

    start: int
    stop: int
    device_class: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ChainProblem:
    """Cover n pieces with stages on distinct devices.

    Attributes:
        num_pieces: n, at least 1.
        counts: how many devices each class has.
        variants: at least one for each class.
        cut_bytes: bytes of one micro-batch that cross each boundary, shape (n + 1,).
        link_latency_s: from a device of class a to another of class b, shape (C, C).
        link_s_per_byte: the same for each byte.
        source_s: seconds to bring the model's inputs to a device, shape (C,).
        sink_s: seconds to bring the model's outputs back, shape (C,).
        overhead_s: seconds that a stage on each class is busy besides computing, shape (C,); they
            count in a period, and not in a latency.
        tie_cost: what a cut at each boundary costs among plans of equal objective, shape (n + 1,).
        serial: whether a stage receives, computes and sends one after the other.
        fixed_order: whether stages must use the classes (of one device each) in rising order.
        num_stages: exactly this many, or None for any number.
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
    serial: bool = False
    fixed_order: bool = False
    num_stages: int | None = None

    @property
    def num_classes(self) -> int:
        """How many classes of interchangeable devices."""
        return len(self.counts)

    @property
    def max_stages(self) -> int:
        """The most stages that there can be."""
        return min(sum(self.counts), self.num_pieces, self.num_stages or self.num_pieces)

    def of_class(self, device_class: int) -> tuple[Variant, ...]:
        """The variants of one class."""
        return tuple(v for v in self.variants if v.device_class == device_class)

    def compute_s(self, stage: Placed) -> float:
        """Seconds of a stage with its best variant, infinity where none is possible."""
        return min(v.cost_s(stage.start, stage.stop) for v in self.of_class(stage.device_class))

    def stops_within(self, variant: Variant, limit_s: float) -> Ints:
        """For each start the largest stop of a stage that is busy for at most `limit_s`."""
        return variant.stops_within(limit_s - float(self.overhead_s[variant.device_class]))

    def busy_s(self, stage: Placed) -> float:
        """Seconds for which a stage occupies its device, transfers aside."""
        return self.compute_s(stage) + float(self.overhead_s[stage.device_class])

    def link_row_s(self, source: int, target: int) -> Floats:
        """Seconds to send across each boundary from class to class, shape (n + 1,)."""
        latency_s, per_byte = (
            self.link_latency_s[source, target],
            self.link_s_per_byte[source, target],
        )
        row: Floats = latency_s + self.cut_bytes * per_byte
        return row

    def transfers_s(self, stages: tuple[Placed, ...]) -> tuple[float, ...]:
        """Seconds into the first stage, between neighbours, and out of the last one."""
        inner = (
            float(
                self.link_latency_s[a.device_class, b.device_class]
                + self.cut_bytes[a.stop] * self.link_s_per_byte[a.device_class, b.device_class]
            )
            for a, b in itertools.pairwise(stages)
        )
        first, last = stages[0].device_class, stages[-1].device_class
        return (float(self.source_s[first]), *inner, float(self.sink_s[last]))

    def period_s(self, stages: tuple[Placed, ...]) -> float:
        """Seconds per micro-batch: the largest load of a stage or, unless serial, a link."""
        moves = self.transfers_s(stages)
        work = [self.busy_s(stage) for stage in stages]
        if self.serial:
            return max(moves[k] + work[k] + moves[k + 1] for k in range(len(stages)))
        return max(*work, *moves)

    def latency_s(self, stages: tuple[Placed, ...]) -> float:
        """Seconds for one micro-batch alone: all compute and all transfers."""
        return math.fsum(self.compute_s(stage) for stage in stages) + math.fsum(
            self.transfers_s(stages)
        )

    def ties(self, stages: tuple[Placed, ...]) -> float:
        """What decides among plans of equal objective; smaller is better."""
        return float(sum(self.tie_cost[stage.stop] for stage in stages[:-1]))

    @property
    def has_uniform_links(self) -> bool:
        """Whether every link that a plan could use costs the same."""
        pairs = [
            (a, b)
            for a in range(self.num_classes)
            for b in range(self.num_classes)
            if a != b or self.counts[a] > 1
        ]
        if not pairs:
            return True
        latency = {float(self.link_latency_s[pair]) for pair in pairs}
        per_byte = {float(self.link_s_per_byte[pair]) for pair in pairs}
        return len(latency) == 1 and len(per_byte) == 1

    def volume(self) -> tuple[Floats, Floats]:
        """Work of each piece, and how much of it a device of each class does in a second.

        Work is what the fastest class would take; a class's rate is its best over all pieces, so
        that ``seconds * rate`` is never less than the work done. On devices that differ by a
        factor alone this is exact.

        Returns:
            Work, shape (n,), and rates, shape (C,), infinity where a class is free.
        """
        pieces = np.full((self.num_classes, self.num_pieces), math.inf)
        possible = np.arange(self.num_pieces)
        for v in self.variants:
            seconds = np.where(v.furthest > possible, np.diff(v.prefix_s), math.inf)
            pieces[v.device_class] = np.minimum(pieces[v.device_class], seconds)
        work = pieces.min(axis=0)
        work[np.isinf(work)] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(work > 0, work / pieces, 0.0)
        return work, ratio.max(axis=1)
