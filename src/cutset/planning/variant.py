"""One way for a class of devices to compute: what each stage takes there, and which ones fit."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from cutset.planning.totals import Bools, Floats, Ints, Totals


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Variant:
    """One way for a class of devices to compute: a backend.

    Attributes:
        device_class: index of the class.
        backend: its name, for the report.
        seconds: of each piece, shape (n,); infinity where the piece may not run here.
        furthest: for each start i the largest stop j that memory and backend allow, shape (n,); i
            itself where there is none. It never falls where the next two are None.
        room: what memory allows that depends on the number of stages, shape (n, n + 1), start by
            stop: with how many stages in its plan a stage still fits; 0 for never. None where that
            is any number up to `furthest`.
        possible: which of the stages up to `furthest` are, shape (n, n + 1): a longer stage may
            need less memory, if fewer bytes cross its ends. None where all are.
    """

    device_class: int
    backend: str
    seconds: Floats
    furthest: Ints
    room: Ints | None = None
    possible: Bools | None = None

    def __post_init__(self) -> None:
        """No stage goes beyond a piece that may not run here; `furthest` is what is possible."""
        num = len(self.seconds)
        furthest = self.furthest
        blocked = np.flatnonzero(np.isinf(self.seconds))
        if len(blocked):
            clear = np.append(blocked, num)[np.searchsorted(blocked, np.arange(num))]
            furthest = np.minimum(furthest, clear)
        for field in ("room", "possible"):
            table = getattr(self, field)
            if table is not None:
                stops, starts = np.arange(num + 1), np.arange(num)
                inside = (stops > starts[:, None]) & (stops <= furthest[:, None])
                table = np.where(inside, table, table.dtype.type(0))
                object.__setattr__(self, field, table)
                last = num - np.argmax(table[:, ::-1] > 0, axis=1)
                furthest = np.where(table.any(axis=1), last, starts)
        object.__setattr__(self, "furthest", furthest)

    def with_stages(self, most: int) -> Variant:
        """The same in plans of up to `most` stages, with those stages that fit with so many."""
        if self.room is None:
            return self
        fits = self.room >= most
        other = dataclasses.replace(self, room=None, possible=fits)
        starts = np.arange(len(self.seconds))
        is_window = (fits.sum(axis=1) == other.furthest - starts).all()
        if is_window and (np.diff(other.furthest) >= 0).all():
            return dataclasses.replace(other, possible=None)
        return other

    @functools.cached_property
    def totals(self) -> Totals:
        """Sums of runs of pieces; what may not run counts nothing, as no stage holds it."""
        return Totals(np.where(np.isinf(self.seconds), 0.0, self.seconds))

    def cost_s(self, start: int, stop: int) -> float:
        """Seconds of a stage, infinity where it is not possible."""
        if stop > self.furthest[start]:
            return math.inf
        for table in (self.room, self.possible):
            if table is not None and not table[start, stop]:
                return math.inf
        return float(self.totals.between(start, stop))

    def stops_within(self, limit_s: float) -> Ints:
        """For each start the largest stop that takes at most `limit_s`, shape (n,).

        Where there is none it is the start. `possible` is not looked at.
        """
        stops: Ints = np.minimum(self.last_within(limit_s), self.furthest)
        return stops

    def last_within(self, limit_s: float) -> Ints:
        """The same by seconds alone, as if memory allowed every stage."""
        num = len(self.seconds)
        starts = np.arange(num)
        if limit_s < 0:
            return starts
        rounded = self.totals.rounded
        last = np.searchsorted(rounded, rounded[:-1] + limit_s, side="right") - 1
        last = np.clip(last, starts, num)
        # Rounded totals may be off; few are, so they are only the first guess.
        wrong = self.totals.between(starts, last) > limit_s
        after = np.minimum(last + 1, num)
        wrong |= (last < num) & (self.totals.between(starts, after) <= limit_s)
        chosen = np.flatnonzero(wrong)
        if len(chosen):
            last[chosen] = self._search_last(chosen, limit_s)
        return last

    def _search_last(self, starts: Ints, limit_s: float) -> Ints:
        low, high = starts.copy(), np.full(len(starts), len(self.seconds))
        while (low < high).any():
            middle = (low + high + 1) // 2
            fits = self.totals.between(starts, middle) <= limit_s
            low = np.where(fits, middle, low)
            high = np.where(fits, high, middle - 1)
        last: Ints = low
        return last
