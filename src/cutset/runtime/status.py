"""What is known of a running session: its limits, its stages, and their statistics."""

from __future__ import annotations

import contextlib
import functools
import numbers
import threading
from collections.abc import Sequence

import msgspec

from cutset.engines.protocol import Load, Span, StageStats, WorkerHandle

_LONGEST_S = 1e6  # eleven days; threads cannot wait much longer than a year
_MOST_TIMES = 1_000_000
_RANGES_S = {
    "heartbeat_s": (0.2, _LONGEST_S),
    "sibling_s": (0.2, _LONGEST_S),
    "link_timeout_s": (0.1, _LONGEST_S),
    "connect_timeout_s": (0.1, _LONGEST_S),
    "start_timeout_s": (0.1, _LONGEST_S),
    "compute_timeout_s": (0.1, _LONGEST_S),
    "back_off_s": (0.0, _LONGEST_S),
}


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long a session waits for what, and how often it tries.

    Seconds are 0.1 to 1e6 where nothing else is said.

    Attributes:
        heartbeat_s: a worker that is silent for so long is taken for frozen and killed; 0.2 or
            more.
        sibling_s: a replica that is silent for so long, while siblings of its stage compute, is set
            aside: they take over what it had until it is heard of again; 0.2 or more.
        link_timeout_s: a neighbour that is silent for so long has lost its link.
        connect_timeout_s: how long neighbours may take to connect.
        start_timeout_s: how long a worker may take to start and to load its stage.
        compute_timeout_s: how long a stage may compute on one micro-batch.
        max_restarts: so many set-backs without an answer between them are borne; 0 to 1000000.
        back_off_s: pause before the second attempt; each further one waits twice as long, at
            most 5 s. The first is made at once. 0 makes all at once.
        max_deaths: a micro-batch whose worker died so often is failed; 1 to 1000000.
    """

    heartbeat_s: float = 5.0
    sibling_s: float = 0.6
    link_timeout_s: float = 10.0
    connect_timeout_s: float = 10.0
    start_timeout_s: float = 120.0
    compute_timeout_s: float = 300.0
    max_restarts: int = 5
    back_off_s: float = 0.1
    max_deaths: int = 3

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: one is no number, or outside of its range.
        """
        for name, (low_s, high_s) in _RANGES_S.items():
            seconds = checked_seconds(name, getattr(self, name), low_s, high_s)
            msgspec.structs.force_setattr(self, name, seconds)
        for name, low in (("max_restarts", 0), ("max_deaths", 1)):
            count = checked_count(name, getattr(self, name), low, _MOST_TIMES)
            msgspec.structs.force_setattr(self, name, count)


def checked_seconds(name: str, value: object, low_s: float, high_s: float) -> float:
    """A number of seconds within its range, as a float.

    Raises:
        ValueError: it is no number (NaN and True are none), or outside of the range.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        with contextlib.suppress(OverflowError):  # a whole number that no float holds
            seconds = float(value)
            if low_s <= seconds <= high_s:
                return seconds
    raise ValueError(f"{name} is {low_s:g} to {high_s:g} seconds, got {value!r}")


def checked_count(name: str, value: object, low: int, high: int) -> int:
    """A whole number within its range, as an int.

    Raises:
        ValueError: it is no whole number (True is none), or outside of the range.
    """
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        count = int(value)
        if low <= count <= high:
            return count
    raise ValueError(f"{name} is a whole number from {low} to {high}, got {value!r}")


class ReplicaStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of one replica of a stage that has several.

    Attributes:
        device: name of its device.
        share: of the stage's micro-batches that it takes now; 0 while its siblings do without it.
        backend: the backend that runs it.
        pid: process id of its worker, 0 while it has none.
        num_restarts: how often its worker was replaced.
        load_s: seconds that loading the stage took the present worker.
        stats: what its workers did, all of them together.
    """

    device: str
    share: float
    backend: str
    pid: int
    num_restarts: int
    load_s: float
    stats: StageStats


class StageStatus(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """The state of one stage.

    Attributes:
        index: its place in the pipeline.
        device: name of its device; of a group's first one that has a worker.
        backend: the backend that runs it there.
        pid: process id of its worker there, 0 while it has none.
        num_restarts: how often its workers were replaced.
        load_s: seconds that loading the stage took that worker.
        stats: what its workers did, all of them together.
        replicas: of its group, in the plan's order; empty where it is one device.
    """

    index: int
    device: str
    backend: str
    pid: int
    num_restarts: int
    load_s: float
    stats: StageStats
    replicas: tuple[ReplicaStatus, ...] = ()


def stage_status(index: int, replicas: Sequence[ReplicaStatus]) -> StageStatus:
    """The state of a stage whose group has one or more replicas."""
    shown = next((replica for replica in replicas if replica.pid), replicas[0])
    total = functools.reduce(added_stats, [replica.stats for replica in replicas])
    rss_bytes = sum(replica.stats.rss_bytes for replica in replicas)
    return StageStatus(
        index=index,
        device=shown.device,
        backend=shown.backend,
        pid=shown.pid,
        num_restarts=sum(replica.num_restarts for replica in replicas),
        load_s=shown.load_s,
        stats=msgspec.structs.replace(total, rss_bytes=rss_bytes),
        replicas=tuple(replicas) if len(replicas) > 1 else (),
    )


class SessionStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state of a session.

    Attributes:
        epoch: counts the times that the links were made.
        num_settled: micro-batches answered or failed.
        num_in_flight: micro-batches sent and not answered.
        num_waiting: micro-batches not sent yet.
        stages: in pipeline order.
    """

    epoch: int
    num_settled: int
    num_in_flight: int
    num_waiting: int
    stages: tuple[StageStatus, ...]


class WorkerRecord:
    """What the supervisor knows of one member of a stage's group.

    Attributes of those with siblings, seconds on the monotonic clock:
        retry_s: not before then is a worker started in the place of the one that is gone.
        rejoins_s: not before then does it compute again, having been set aside.
    """

    def __init__(self, load: Load) -> None:
        self.load = load
        self.worker: WorkerHandle | None = None
        self.pid = 0
        self.loaded = False
        self.connected_epoch = 0
        self.heard_s = 0.0
        self.gone_s: float | None = None
        self.stats = StageStats()
        self.stats_s = 0.0
        self.past = StageStats()
        self.num_restarts = -1
        self.num_losses = 0
        self.lost_s = 0.0
        self.retry_s = 0.0
        self.num_asides = 0
        self.rejoins_s = 0.0
        self.load_s = 0.0
        self.spans: tuple[Span, ...] = ()
        self._coming: list[Span] = []
        self.spans_complete = threading.Event()

    def take_spans(self, spans: tuple[Span, ...], *, last: bool) -> None:
        """Takes a part of a timeline; a whole one stands in the place of the one before.

        A worker tells all that it keeps each time, one telling after the other.
        """
        self._coming.extend(spans)
        if last:
            self.spans, self._coming = tuple(self._coming), []
            self.spans_complete.set()

    def forget_worker(self) -> None:
        """The worker is gone; its statistics stay."""
        self.past = added_stats(self.past, self.stats)
        self.stats = StageStats()
        self.worker = None
        self.gone_s = None
        self.pid = 0
        self.loaded = False
        self._coming = []

    @property
    def total(self) -> StageStats:
        """Statistics over all workers of this member; the memory is the present one's."""
        return added_stats(self.past, self.stats)


def added_stats(first: StageStats, second: StageStats) -> StageStats:
    """What two workers did together; the memory is the second one's."""
    summed = {
        name: getattr(first, name) + getattr(second, name) for name in StageStats.__struct_fields__
    }
    return StageStats(**{**summed, "rss_bytes": second.rss_bytes})
