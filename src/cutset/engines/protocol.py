"""What the runtime asks of an engine, and the messages between a session and its workers.

An engine starts worker processes, delivers small control messages to and from them, and notices
when one ends. It never touches a tensor: those go from neighbour to neighbour. An engine is two
protocols (`Engine`, `WorkerHandle`), behind which processes of this machine, Ray actors or
anything else may stand.

The life of a worker, as messages (commands to the right, events to the left)::

    session                              worker
       | <------------------------ Started |   its libraries are imported
       | Load ---------------------------> |
       | <------------- Loaded or Refused  |
       | Connect(epoch) -----------------> |   makes its links anew, drops what it held
       | <-------- Address(epoch) -------> |   between hosts: passed on to the neighbour
       | <--------------- Connected(epoch) |
       | <---------------------- Heartbeat |   all the time; carries the statistics
       | <------------ BatchFailed(epoch)  |   one micro-batch could not be computed
       | <--------------- LinkLost(epoch)  |   the session then connects under a new epoch
       | Stop ---------------------------> |
       | <------------------------- Exited |   said by the engine, not by the worker

Control messages are not sent per micro-batch, so their cost does not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

import msgspec


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Base of the control messages: frozen, strict, told apart by the class's name."""


class Load(_Message, frozen=True, kw_only=True):
    """Load one stage of a bundle.

    Attributes:
        bundle: folder of the bundle, as the worker sees it, in the system's own bytes: a name need
            not be text.
        stage: index of the stage.
        member: the worker's own number: members of groups are numbered through the pipeline.
        backend: name of the backend, or ``"auto"``.
        micro_batch: most rows that a micro-batch may have.
        num_threads: threads to compute with.
        cpus: cores to pin the worker to; empty leaves that to the system.
        heartbeat_s: the session takes a worker for frozen after this many silent seconds.
        num_spans: how many micro-batches to keep a timeline of; 0 keeps none.
        num_slots: slots of the memory shared with each neighbour; 0 where none is shared.
        num_in_flight: most micro-batches that are on their way through this worker at a time.
    """

    bundle: bytes
    stage: int
    member: int
    backend: str
    micro_batch: int
    num_threads: int
    cpus: tuple[int, ...]
    heartbeat_s: float
    num_spans: int
    num_slots: int
    num_in_flight: int


class Connect(_Message, frozen=True, kw_only=True):
    """Make all links anew under `epoch`; whatever belongs to an older epoch is dropped.

    Attributes:
        epoch: counts up from 1 within a session.
        weights: of each stage's replicas, from which routes follow (`cutset.runtime.routes`); 0 for
            one that is not there in this epoch, to and from which no link is made.
        connect_timeout_s: how long to wait for a neighbour to connect.
        link_timeout_s: how long a neighbour may be silent or refuse to take a tensor.
        on_host: all neighbours are on this host; with the command come this worker's ends of the
            epoch's socket pairs, those that receive first, each in the order of the links.
        unsecured_links: numbers of the links between hosts that are made without keys.
    """

    epoch: int
    weights: tuple[tuple[int, ...], ...]
    connect_timeout_s: float
    link_timeout_s: float
    on_host: bool = False
    unsecured_links: tuple[int, ...] = ()


class Address(_Message, frozen=True, kw_only=True):
    """Where one end of a link between hosts is; the session passes it to the other end.

    Attributes:
        epoch: of the link.
        link: its index.
        public_key: of this end, made for this link and epoch alone; 32 bytes in Z85.
        endpoint: ``"tcp://10.0.0.2:41234"`` where this end listens; empty where it connects.
    """

    epoch: int
    link: int
    public_key: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-zA-Z.\-:+=^!/*?&<>()[\]{}@%$#]{40}$")]
    endpoint: Annotated[str, msgspec.Meta(max_length=256)] = ""


class Collect(_Message, frozen=True, kw_only=True):
    """Send the statistics now; with `spans`, the timeline too."""

    spans: bool


class Stop(_Message, frozen=True, kw_only=True):
    """Leave."""


Command = Load | Connect | Address | Collect | Stop


class StageStats(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a worker did since it was loaded.

    Attributes:
        num_rows: rows computed.
        num_micro_batches: micro-batches computed.
        busy_s: seconds spent computing.
        waiting_s: seconds in which the computing thread waited for work.
        receiving_s: seconds from the arrival of a header to the end of its tensors.
        sending_s: seconds spent handing outputs to the next process.
        received_bytes: bytes of tensors received.
        sent_bytes: bytes of tensors sent.
        rss_bytes: resident memory of the process.
    """

    num_rows: int = 0
    num_micro_batches: int = 0
    busy_s: float = 0.0
    waiting_s: float = 0.0
    receiving_s: float = 0.0
    sending_s: float = 0.0
    received_bytes: int = 0
    sent_bytes: int = 0
    rss_bytes: int = 0


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One thing that one process did to one micro-batch.

    Attributes:
        sequence: number of the micro-batch.
        activity: ``"receive"``, ``"compute"`` or ``"send"``.
        start_s: beginning on the host's monotonic clock.
        stop_s: end on the same clock.
    """

    sequence: int
    activity: str
    start_s: float
    stop_s: float


class Started(_Message, frozen=True, kw_only=True):
    """The worker runs and has imported its libraries."""

    pid: int


class Loaded(_Message, frozen=True, kw_only=True):
    """The stage is ready to compute with `backend`; loading took `load_s` seconds."""

    backend: str
    load_s: float


class Refused(_Message, frozen=True, kw_only=True):
    """The stage cannot be loaded.

    Attributes:
        kind: name of the class in `cutset.errors`.
        message: what went wrong.
        details: the attributes of the error, those that are strings.
        fatal: trying again is useless, also where the stage was loaded before.
    """

    kind: str
    message: str
    details: dict[str, str]
    fatal: bool = False


class Connected(_Message, frozen=True, kw_only=True):
    """All links of the worker stand under `epoch`."""

    epoch: int


class LinkLost(_Message, frozen=True, kw_only=True):
    """A link of `epoch` failed.

    Attributes:
        epoch: the epoch that is over because of it.
        link: ``"stage 0 -> stage 1"``; the caller is called ``caller``.
        seconds: how long was waited for the neighbour, 0 where it closed the link.
        reason: what was seen.
    """

    epoch: int
    link: str
    seconds: float
    reason: str


class BatchFailed(_Message, frozen=True, kw_only=True):
    """A micro-batch could not be computed; it left the pipeline here.

    Attributes:
        epoch: the epoch in which it was sent.
        sequence: number of the micro-batch.
        kind: ``"ContractViolation"`` or ``"StageFailed"``.
        message: what to tell the caller.
        boundary: where, for a ContractViolation.
        expected: the promised tensor, for a ContractViolation.
        actual: the tensor that came, for a ContractViolation.
    """

    epoch: int
    sequence: int
    kind: str
    message: str
    boundary: str = ""
    expected: str = ""
    actual: str = ""


class Heartbeat(_Message, frozen=True, kw_only=True):
    """The worker lives.

    Attributes:
        stats: what it did so far.
        computing_s: for how long it has been computing the present micro-batch; 0 if none.
        epoch: the newest epoch it heard of.
    """

    stats: StageStats
    computing_s: float
    epoch: int


class Timeline(_Message, frozen=True, kw_only=True):
    """A part of the worker's timeline; `last` marks the final part."""

    spans: tuple[Span, ...]
    last: bool


class Exited(_Message, frozen=True, kw_only=True):
    """The worker is gone.

    Attributes:
        reason: made of its exit status and its last words.
        moved: the engine ended it itself, to place its stage elsewhere: no fault of the stage's.
    """

    reason: str
    moved: bool = False


Event = (
    Started
    | Loaded
    | Refused
    | Address
    | Connected
    | LinkLost
    | BatchFailed
    | Heartbeat
    | Timeline
    | Exited
)


class WorkerHandle(Protocol):
    """One started worker, as the session sees it."""

    @property
    def stage(self) -> int:
        """The member that it was started for: its stage's index where no stage has a group."""

    def send(self, command: Command, files: tuple[int, ...] = ()) -> None:
        """Delivers `command`. To a dead worker it does nothing: `Exited` tells of the death.

        Args:
            command: what to do.
            files: descriptors that go with it, of which the worker gets copies; none where the
                engine does not share memory.
        """

    def is_running(self) -> bool:
        """Whether it is there, asked of the system and not of what it said."""

    def kill(self) -> None:
        """Ends the worker at once, also a frozen one; harmless when it is gone."""

    def join(self, timeout_s: float) -> bool:
        """Waits until the worker is gone and `Exited` was said; False when it is not in time."""


class Engine(Protocol):
    """Starts workers and watches them."""

    @property
    def name(self) -> str:
        """``"local"``, ``"ray"``, ..."""

    @property
    def shares_memory(self) -> bool:
        """Whether neighbours, the session's process among them, can map one another's files."""

    def device_of(self, stage: int) -> str:
        """Name of the device that a member runs on, for messages."""

    def unsecured_links(self) -> tuple[int, ...]:
        """Numbers of the links that are made without keys now; none where their user wants none."""

    def start(
        self,
        stage: int,
        on_event: Callable[[WorkerHandle, Event], None],
        link_files: tuple[int, ...],
    ) -> WorkerHandle:
        """Starts a worker for a member, without waiting for it.

        Args:
            stage: number of the member, counted through the groups of the plan: the index of the
                stage where no stage has a group. An engine that starts members of groups says so
                by an attribute `runs_groups` that is True; no other is given such a plan.
            on_event: called from a thread of the engine's for every event of the worker; the
                last event is `Exited`.
            link_files: descriptors of every link's shared memory, in the order of the links;
                empty where none is shared.

        Raises:
            EngineError: the worker could not be started.
        """

    def link_lost(self, link: int) -> bool:
        """Called when a link failed, or could not be made, and no worker was seen to die of it.

        Args:
            link: its number; 0 leads from the caller to the first stage.

        Returns:
            Whether it is a wire that the engine waits for, or has just placed the stages around:
            then an attempt that did not come to stand does not count.
        """

    def standing(self) -> None:
        """Called when the pipeline works, or works again: time to prepare for the next loss."""

    def close(self) -> None:
        """Kills what still runs and frees what the engine holds."""
