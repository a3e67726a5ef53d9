"""Who of a session's workers computes in an epoch, and who may come or stay away.

A stage whose group has several members goes on while one of them is there. One that dies is
started again beside the others' work, and joins under another epoch once it is loaded. One
that says nothing for a short while is set aside, not killed: it may only be slow to be heard.
"""

from __future__ import annotations

import time

from cutset.engines.protocol import Load
from cutset.planning.turns import whole_weights
from cutset.runtime.routes import Groups, Routes
from cutset.runtime.status import Limits, WorkerRecord

_MAX_BACK_OFF_S = 5.0
_MAX_ASIDE_S = 30.0
_MAX_DOUBLINGS = 32
_FORGIVEN_AFTER_S = 30.0


class Crew:
    """All members of a session's groups; belongs to the supervisor's thread.

    Args:
        loads: what each member is to load, in the order of the members.
        shares: for each stage what part of the micro-batches each replica is to take.
        limits: how long and how often.
    """

    def __init__(
        self, loads: tuple[Load, ...], shares: tuple[tuple[float, ...], ...], limits: Limits
    ) -> None:
        self.groups = Groups(sizes=tuple(map(len, shares)))
        self.workers = tuple(WorkerRecord(load) for load in loads)
        self.routes: Routes | None = None
        self._shares = shares
        self._limits = limits

    @property
    def present(self) -> frozenset[int]:
        """Members of the present epoch; none between two."""
        return frozenset() if self.routes is None else self.routes.members

    @property
    def has_siblings(self) -> bool:
        """Whether a stage has a group of several."""
        return max(self.groups.sizes) > 1

    def siblings(self, member: int) -> tuple[int, ...]:
        """The others of a member's group."""
        stage, _ = self.groups.places[member]
        return tuple(other for other in self.groups.members[stage] if other != member)

    def is_dispensable(self, member: int) -> bool:
        """Whether siblings compute, or come up, without this member."""
        if self.routes is None:
            return any(self.workers[m].worker is not None for m in self.siblings(member))
        return member not in self.present

    def can_be_set_aside(self, member: int) -> bool:
        """Whether it computes now beside siblings."""
        return member in self.present and any(m in self.present for m in self.siblings(member))

    def due(self) -> list[WorkerRecord]:
        """Members without a worker for whom one is to be started now."""
        now_s = time.monotonic()
        return [w for w in self.workers if w.worker is None and now_s >= w.retry_s]

    def is_ready(self, member: int) -> bool:
        """Whether a member may compute: loaded, and heard of where its stage does without it."""
        worker = self.workers[member]
        if not worker.loaded or not self.siblings(member):
            return worker.loaded
        now_s = time.monotonic()
        return now_s >= worker.rejoins_s and now_s - worker.heard_s < self._limits.sibling_s

    def stands(self, stage: int) -> bool:
        """Whether a stage has a member that may compute."""
        return any(map(self.is_ready, self.groups.members[stage]))

    def is_complete(self, *, waits_for_all: bool) -> bool:
        """Whether every stage stands; with `waits_for_all`, and no member is on its way."""
        members = range(len(self.workers))
        return all(map(self.stands, range(len(self.groups.sizes)))) and not (
            waits_for_all
            and any(self.workers[m].worker is not None and not self.is_ready(m) for m in members)
        )

    def is_joined_by(self) -> int | None:
        """A member that is ready and not yet in the present epoch, or None."""
        return next(
            (m for m in range(len(self.workers)) if m not in self.present and self.is_ready(m)),
            None,
        )

    def muster(self) -> Routes:
        """The routes of a new epoch, over those that are ready."""
        self.routes = Routes(
            weights=tuple(
                whole_weights(
                    [
                        share if self.is_ready(member) else 0.0
                        for member, share in zip(members, shares, strict=True)
                    ]
                )
                for members, shares in zip(self.groups.members, self._shares, strict=True)
            )
        )
        return self.routes

    def dismiss(self) -> None:
        """The epoch is over."""
        self.routes = None

    def bury(self, member: int) -> None:
        """A member's worker is gone; the next one is due at once, or later where many went."""
        worker = self.workers[member]
        worker.forget_worker()
        worker.rejoins_s = 0.0
        worker.num_asides = 0
        if not self.siblings(member):
            return
        now_s = time.monotonic()
        if now_s > worker.lost_s + _FORGIVEN_AFTER_S:
            worker.num_losses = 0
        worker.lost_s = now_s
        worker.num_losses += 1
        if worker.num_losses > 1:
            doublings = min(worker.num_losses - 2, _MAX_DOUBLINGS)
            worker.retry_s = now_s + min(self._limits.back_off_s * 2**doublings, _MAX_BACK_OFF_S)

    def set_aside(self, member: int) -> None:
        """Leaves a silent member out; for longer each time."""
        worker = self.workers[member]
        pause_s = self._limits.sibling_s * 2 ** min(worker.num_asides, _MAX_DOUBLINGS)
        worker.num_asides += 1
        worker.rejoins_s = time.monotonic() + min(pause_s, _MAX_ASIDE_S)

    def excuse(self) -> None:
        """Takes everyone for heard of now: it was the supervisor that stood still."""
        now_s = time.monotonic()
        for worker in self.workers:
            worker.heard_s = now_s
