"""The simulation of a pipeline whose messages share ports and media.

Messages that are on their way at the same time share what they pass, byte by byte. Each has as much
of it as gets it there within a period: no wire is asked for more than it can by that, as all that
passes it in a period is less. What is left goes to those that are nearest to the end, up to the
speed of a message alone. So a stage and a link need at most a period for each micro-batch, and the
last of m comes after m periods and one more for each stage and link at the latest. That is why the
largest load is the period where anything is shared, too.

Where stages are serial, a message that is slowed down keeps both of its stages from computing.
There is no such promise then, and the largest load is what no schedule can be below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

TellDone: TypeAlias = Callable[[str, int, int, float, float], None]
"""Told of all that was done: ``"compute"`` or ``"transfer"``, the stage or link, which micro-batch,
its start, its end."""

_LEFT = 1e-12
"""Of a message; what rounding may leave of it."""


def run_shared(
    compute_s: Sequence[float],
    transfer_s: Sequence[float],
    overhead_s: Sequence[float],
    shared_s: Sequence[Mapping[str, float]],
    *,
    num_microbatches: int,
    window: int | None,
    serial: bool,
    done: TellDone,
) -> list[float]:
    """When each answer comes. Arguments as for `simulate.simulate`, and `done` is told of all."""
    run = _Run(compute_s, transfer_s, overhead_s, shared_s, serial=serial, done=done)
    run.number, run.window = num_microbatches, window
    while True:
        while run.begin_all():
            pass
        if len(run.answers) == num_microbatches:
            return run.answers
        run.go_on()


class _Run:
    """Where all micro-batches are at a moment.

    Attributes:
        pace_s: the period.
        sent: how many have passed each link; link k ends at stage k.
        computed: how many each stage has computed.
        free_s: when each stage can do something else; infinity while it computes.
        ends_s: when each computing stage is done.
        moving: what is left of the message on each link, from 1 to 0.
        since_s: when that message or that computing began, by link or stage.
    """

    number = 0
    window: int | None = None

    def __init__(
        self,
        compute_s: Sequence[float],
        transfer_s: Sequence[float],
        overhead_s: Sequence[float],
        shared_s: Sequence[Mapping[str, float]],
        *,
        serial: bool,
        done: TellDone,
    ) -> None:
        self.compute_s, self.transfer_s, self.overhead_s = compute_s, transfer_s, overhead_s
        self.shared_s, self.serial, self.done = shared_s, serial, done
        num = len(compute_s)
        busy: dict[str, float] = {}
        for each in shared_s:
            for wire, seconds in each.items():
                busy[wire] = busy.get(wire, 0.0) + seconds
        stages_s = [a + b for a, b in zip(compute_s, overhead_s, strict=True)]
        self.pace_s = max(*stages_s, *transfer_s, *busy.values())
        self.now_s = 0.0
        self.sent, self.computed = [0] * (num + 1), [0] * num
        self.free_s = [0.0] * num
        self.ends_s: dict[int, float] = {}
        self.moving: dict[int, float] = {}
        self.link_since_s, self.stage_since_s = [0.0] * (num + 1), [0.0] * num
        self.answers: list[float] = []

    def begin_all(self) -> bool:
        """Begins what can begin now; whether something that takes no time was done by that."""
        for k in range(len(self.transfer_s) - 1, -1, -1):
            if k not in self.moving and self._can_send(k):
                self.link_since_s[k] = self.now_s
                if self.transfer_s[k] > 0:
                    self.moving[k] = 1.0
                else:
                    self._arrived(k)
                    return True
        for k in range(len(self.compute_s)):
            has_input = self.computed[k] < self.sent[k]
            waits = self.serial and (k + 1 in self.moving or self.computed[k] > self.sent[k + 1])
            if k not in self.ends_s and has_input and self._is_free(k) and not waits:
                self.ends_s[k] = self.now_s + self.compute_s[k]
                self.stage_since_s[k] = self.now_s
        return False

    def _is_free(self, k: int) -> bool:
        return k not in self.ends_s and self.free_s[k] <= self.now_s

    def _can_send(self, k: int) -> bool:
        ready = self.computed[k - 1] if k else self.number
        if k == 0 and self.window is not None:
            ready = min(ready, len(self.answers) + self.window)
        if self.sent[k] >= ready:
            return False
        if not self.serial or self.transfer_s[k] == 0:
            return True
        # The receiver has nothing else to do: it is free, and has sent on what it computed.
        last = len(self.compute_s)
        return k == last or (
            self._is_free(k)
            and self.computed[k] == self.sent[k]
            and self.sent[k + 1] == self.computed[k]
        )

    def _arrived(self, k: int) -> None:
        if self.transfer_s[k] > 0:
            self.done("transfer", k, self.sent[k], self.link_since_s[k], self.now_s)
            if self.serial and k:
                self.free_s[k - 1] = self.now_s + self.overhead_s[k - 1]
        self.sent[k] += 1
        if k == len(self.compute_s):
            self.answers.append(self.now_s)

    def go_on(self) -> None:
        """Goes to the next moment at which something ends."""
        rates = self._rates()
        waits = [end - self.now_s for end in self.ends_s.values()]
        waits += [self.moving[k] / rates[k] for k in self.moving if rates[k] > 0]
        waits += [free - self.now_s for free in self.free_s if free > self.now_s]
        wait_s = min(waits)
        self.now_s += wait_s
        for k in list(self.moving):
            self.moving[k] -= rates[k] * wait_s
            if self.moving[k] <= _LEFT:
                del self.moving[k]
                self._arrived(k)
        for k, end_s in list(self.ends_s.items()):
            if end_s <= self.now_s:
                del self.ends_s[k]
                self.done("compute", k, self.computed[k], self.stage_since_s[k], self.now_s)
                self.computed[k] += 1
                self.free_s[k] = self.now_s + self.overhead_s[k]

    def _rates(self) -> dict[int, float]:
        """How much of each message that is on its way gets there in a second."""
        room: dict[str, float] = {}
        speeds = {k: 0.0 if self.serial else self.transfer_s[k] / self.pace_s for k in self.moving}
        shares = {
            k: [(wire, busy_s / self.transfer_s[k]) for wire, busy_s in self.shared_s[k].items()]
            for k in self.moving
        }
        for k, speed in speeds.items():
            for wire, share in shares[k]:
                room[wire] = room.get(wire, 1.0) - speed * share
        for k in sorted(self.moving, reverse=True):
            limits = [max(0.0, room[wire]) / share for wire, share in shares[k] if share > 0]
            more = min(1.0 - speeds[k], *limits, 1.0)
            speeds[k] += more
            for wire, share in shares[k]:
                room[wire] -= more * share
        return {k: speeds[k] / self.transfer_s[k] for k in speeds}
