"""How long planning may take. Every search asks; what it had found by then is kept."""

from __future__ import annotations

import dataclasses
import math
import time

from cutset.planning.watch import look

TIME_LIMIT_S = 60.0
"""Seconds that planning takes at most, where nothing else is said."""


class OverBudget(Exception):
    """A search would need more memory than it may have; another method has to be used."""


class OutOfTime(OverBudget):
    """A search was ended by its time limit."""


@dataclasses.dataclass(frozen=True)
class Deadline:
    """A moment after which searches end.

    Attributes:
        limit_s: seconds that there were, for messages; infinity for no limit.
        end_s: when they are over, on the clock of `time.monotonic`.
    """

    limit_s: float
    end_s: float

    def check(self) -> None:
        """Raises `OutOfTime` when the time is over; and tells how planning stands."""
        look()
        if time.monotonic() > self.end_s:
            raise OutOfTime(f"the time limit of {self.limit_s:g} s was reached")

    @property
    def is_past(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.end_s

    @property
    def left_s(self) -> float:
        """Seconds that are left, 0 at least."""
        return max(0.0, self.end_s - time.monotonic())

    def sooner(self, fraction: float) -> Deadline:
        """One that leaves this one's rest to others: `fraction` of the time that is left."""
        if math.isinf(self.end_s):
            return self
        return Deadline(self.limit_s, time.monotonic() + fraction * self.left_s)


NEVER = Deadline(math.inf, math.inf)


def within(limit_s: float | None) -> Deadline:
    """The deadline `limit_s` seconds from now; none for None or infinity.

    Raises:
        ValueError: the limit is not above 0.
    """
    if limit_s is None:
        return NEVER
    if not limit_s > 0:
        raise ValueError(f"time_limit_s must be above 0, got {limit_s}")
    return Deadline(limit_s, time.monotonic() + limit_s)
