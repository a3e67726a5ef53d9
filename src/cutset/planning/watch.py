"""How far planning has come, told to the caller who waits for it.

    with watching(lambda standing: print(standing.elapsed_s, standing.best_s, standing.gap)):
        make_plan(...)

Searches look here whenever they look at the clock, and note what they have found. What they note
while others' plans are looked for (those of easier problems, of other numbers of stages, of the
other objective) is not heard: what is told is always of the plan that is wanted.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
import time
from collections.abc import Callable, Iterator

EVERY_S = 5.0
"""Seconds after which it is told how planning stands, again and again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """How planning stands.

    Attributes:
        elapsed_s: seconds since it began.
        best_s: the objective of the best plan so far, or None.
        bound_s: nothing is below this; 0 where nothing is known.
    """

    elapsed_s: float
    best_s: float | None
    bound_s: float

    @property
    def gap(self) -> float | None:
        """How far the best plan lies above the bound, as a fraction; None where that is unknown."""
        if self.best_s is None or self.bound_s <= 0:
            return None
        return max(0.0, self.best_s / self.bound_s - 1)


class _Watch:
    def __init__(self, tell: Callable[[Standing], None], every_s: float) -> None:
        self.tell = tell
        self.every_s = every_s
        self.begin_s = self.told_s = time.monotonic()
        self.num_unheard = 0
        self.best_s, self.bound_s = math.inf, 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.told_s >= self.every_s


_watch: contextvars.ContextVar[_Watch | None] = contextvars.ContextVar("watch", default=None)


@contextlib.contextmanager
def watching(tell: Callable[[Standing], None], *, every_s: float | None = None) -> Iterator[None]:
    """Within the context `tell` is told how planning stands, on the thread that plans.

    Args:
        tell: called with the standing.
        every_s: the least seconds between two calls, and before the first; None for `EVERY_S`.
    """
    token = _watch.set(_Watch(tell, EVERY_S if every_s is None else every_s))
    try:
        yield
    finally:
        _watch.reset(token)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Within the context nothing is told: what is planned there is not what was asked for."""
    watch = _watch.get()
    if watch is None:
        yield
        return
    watch.num_unheard += 1
    try:
        yield
    finally:
        watch.num_unheard -= 1


def look() -> None:
    """Tells how planning stands, if it is time."""
    watch = _watch.get()
    if watch is None or not watch.is_due:
        return
    watch.told_s = time.monotonic()
    best_s = watch.best_s if math.isfinite(watch.best_s) else None
    elapsed_s = watch.told_s - watch.begin_s
    watch.tell(Standing(elapsed_s=elapsed_s, best_s=best_s, bound_s=watch.bound_s))


def is_due() -> bool:
    """Whether the next look tells something: for what takes a while to work out."""
    watch = _watch.get()
    return watch is not None and not watch.num_unheard and watch.is_due


def note(*, best_s: float = math.inf, bound_s: float = 0.0) -> None:
    """Notes the objective of a plan that was found, or that nothing is below a bound."""
    watch = _watch.get()
    if watch is not None and not watch.num_unheard:
        watch.best_s = min(watch.best_s, best_s)
        watch.bound_s = max(watch.bound_s, bound_s)


def begin_anew() -> None:
    """Forgets what was noted: what follows is another problem."""
    watch = _watch.get()
    if watch is not None and not watch.num_unheard:
        watch.best_s, watch.bound_s = math.inf, 0.0
