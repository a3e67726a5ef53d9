"""Brings the workers of a session up, watches them, and brings them up again.

One thread, the supervisor, does all of it. It goes round this circle, once for each epoch::

    bring up: start missing workers side by side, load, connect all links under a new epoch
    watch:    until a worker dies, freezes or computes for too long, or a link fails
    set back: take what is in flight back, end what must be ended, wait a little longer each time

Where a stage has replicas (`cutset.runtime.crew`), an epoch begins without those that are away, and
ends when one of them comes.

After too many set-backs without a single answer between them it gives up: the session ends with
an error that says what was tried. Every wait has a limit.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable

import msgspec

from cutset import errors
from cutset.engines.protocol import (
    Address,
    BatchFailed,
    Collect,
    Connected,
    Engine,
    Event,
    Exited,
    Heartbeat,
    LinkLost,
    Loaded,
    Refused,
    Started,
    Stop,
    Timeline,
    WorkerHandle,
)
from cutset.errors import (
    BundleError,
    ContractViolation,
    CutsetError,
    EngineError,
    LinkTimeout,
    StageFailed,
)
from cutset.links.circuit import Circuit
from cutset.links.parcels import CALLER
from cutset.runtime.callerend import CallerEnd
from cutset.runtime.contract import ends_of
from cutset.runtime.crew import Crew
from cutset.runtime.ledger import Ledger
from cutset.runtime.routes import Groups, Routes
from cutset.runtime.status import Limits, WorkerRecord

_LOG = logging.getLogger(__name__)

_TICK_S = 0.25
_TICKS_PER_HEARTBEAT = 8
_GRACE_S = 0.5
_STOP_TIMEOUT_S = 1.0
_KILL_TIMEOUT_S = 5.0
_MAX_BACK_OFF_S = 5.0
_MAX_DOUBLINGS = 32
_UNSAID_S = 2.0
# No descriptor, process, thread or memory left now. Python says the third by a RuntimeError.
_SHORTAGES = (OSError, RuntimeError, MemoryError)


class _SetbackError(Exception):
    """The epoch is over.

    `killer` is set where a worker died, that of `member`; `link` names one that failed where none
    did; `fatal` is set where trying again is useless; `moved` where nothing failed: the engine
    places a stage elsewhere, or a replica comes or goes.
    """

    def __init__(
        self,
        error: CutsetError,
        *,
        killer: StageFailed | None = None,
        member: int = 0,
        link: str = "",
        fatal: bool = False,
        moved: bool = False,
    ) -> None:
        super().__init__(str(error))
        self.member = member
        self.error = error
        self.killer = killer
        self.link = link
        self.fatal = fatal
        self.moved = moved


class _StoppingError(Exception):
    """The session is being closed."""


class Supervisor:
    """Keeps the workers of one session running.

    Args:
        engine: starts workers; closed by the supervisor at the end.
        crew: the workers, none of them started yet.
        caller_end: makes the caller's own circuits; closed by the supervisor at the end.
        ledger: whose micro-batches are to be computed.
        limits: how long and how often.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        crew: Crew,
        caller_end: CallerEnd,
        ledger: Ledger,
        limits: Limits,
    ) -> None:
        self._engine = engine
        self._crew = crew
        self.workers = crew.workers
        self._caller_end = caller_end
        self._ledger = ledger
        self._limits = limits
        self._events: queue.SimpleQueue[tuple[int, WorkerHandle | None, Event] | None] = (
            queue.SimpleQueue()
        )
        self._stopping = threading.Event()
        self._dropped = False
        self._circuit: Circuit | None = None
        self._caller_connected = 0
        self._stands = False
        self._tried: list[str] = []
        self._num_setbacks = 0
        self._settled_at_setback = -1
        self._ticked_s = self._asked_s = time.monotonic()
        # More often than a silence of half the limit, which excuses everyone.
        patience_s = limits.heartbeat_s
        if crew.has_siblings:
            patience_s = min(patience_s, limits.sibling_s)
        self._patience_s = patience_s
        self._tick_s = min(_TICK_S, patience_s / _TICKS_PER_HEARTBEAT)
        self.epoch = 0
        self.up = threading.Event()
        self.changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="cutset-supervisor", daemon=True)

    def start(self) -> None:
        """Begins; `up` is set when the first epoch stands or the session has failed."""
        self._thread.start()

    @property
    def stop_limit_s(self) -> float:
        """How long `stop` takes at most."""
        return _STOP_TIMEOUT_S + _KILL_TIMEOUT_S * (len(self.workers) + 1)

    def is_here(self) -> bool:
        """Whether the calling thread is the supervisor's own."""
        return self._thread is threading.current_thread()

    def stop(self) -> None:
        """Ends the workers and waits until they are gone. Safe to call twice."""
        self._stopping.set()
        self._events.put(None)
        if self._thread.ident is not None and not self.is_here():
            self._thread.join(self.stop_limit_s)

    def drop(self) -> None:
        """Ends the workers without waiting and without a lock: for a destructor."""
        self._dropped = True
        self._events.put(None)
        if self._thread.ident is None:
            self._caller_end.close()

    @property
    def groups(self) -> Groups:
        """The groups of the pipeline."""
        return self._crew.groups

    def share(self, member: int) -> float:
        """The part of its stage's micro-batches that a member takes now."""
        routes = self._crew.routes
        return routes.share(member) if routes is not None else 0.0

    def collect(self, *, spans: bool, timeout_s: float) -> None:
        """Asks every worker for its statistics and waits until they are here, or the time is up."""
        asked_s = time.monotonic()
        for record in self.workers:
            record.spans_complete.clear()
            worker = record.worker
            if worker is not None:
                worker.send(Collect(spans=spans))

        def answered() -> bool:
            return all(
                record.worker is None
                or (record.stats_s >= asked_s and (not spans or record.spans_complete.is_set()))
                for record in self.workers
            )

        with self.changed:
            self.changed.wait_for(answered, timeout_s)

    # --- the supervisor's thread

    def _run(self) -> None:
        try:
            self._supervise()
        except _StoppingError:
            # Who closes the session fails what is open, after the workers are gone: a future whose
            # waiter was interrupted (Ctrl-C) may never give its lock back.
            if self._dropped:
                self._ledger.end(EngineError("the session was dropped without close()"))
            _LOG.debug("the session is being closed")
        except CutsetError as error:
            self._ledger.end(error)
        except BaseException as error:  # noqa: BLE001  # forwarded to every open request
            ending = EngineError(f"the session ended by a fault of its own: {error!r}")
            ending.__cause__ = error
            self._ledger.end(ending)
            _LOG.exception("the supervisor failed")
        finally:
            try:
                self._shut_down()
            finally:
                self._caller_end.close()
                self.up.set()

    def _supervise(self) -> None:
        while True:
            try:
                self._bring_up()
                self.up.set()
                self._watch()
            except _SetbackError as setback:  # noqa: PERF203  # once an epoch
                self._set_back(setback)

    def _bring_up(self) -> None:
        self.epoch += 1
        self._stands = False
        crew = self._crew
        deadline_s = time.monotonic() + self._limits.start_timeout_s
        self._start_workers()
        while not crew.is_complete(waits_for_all=not self.up.is_set() and not _is_past(deadline_s)):
            self._step(
                deadline_s,
                "start and load its stage",
                lambda member: crew.stands(crew.groups.places[member][0]),
            )
            self._start_workers()
        deadline_s = time.monotonic() + self._limits.connect_timeout_s
        routes = crew.muster()
        circuit = self._make_links(routes)

        def connected(member: int) -> bool:
            is_there = self.workers[member].connected_epoch == self.epoch
            return is_there or member not in routes.members

        while self._caller_connected != self.epoch or not all(map(connected, self._members)):
            self._step(deadline_s, "connect", connected)
        _LOG.info("epoch %d: %d workers connected", self.epoch, len(routes.members))
        self._ledger.open_epoch(self.epoch, circuit.send, routes)
        self._stands = True
        self._engine.standing()

    def _start_workers(self) -> None:
        """Starts those that are missing and due."""
        for record in self._crew.due():
            member = record.load.member
            try:
                record.worker = self._start_worker(member)
            except _SetbackError as setback:
                self._crew.bury(member)
                self._go_on_without(member, setback)
                continue
            record.heard_s = time.monotonic()
            record.num_restarts += 1

    def _start_worker(self, member: int) -> WorkerHandle:
        """Starts a worker; what the system has none of now (processes, memory) it may have soon."""
        try:
            return self._engine.start(
                member,
                lambda worker, event: self._events.put((member, worker, event)),
                self._caller_end.link_files,
            )
        except (EngineError, *_SHORTAGES) as error:
            raise _SetbackError(
                EngineError(f"the worker of {self._name(member)} could not be started: {error}")
            ) from error

    def _name(self, member: int) -> str:
        return f"{self._crew.groups.name(member)} on {self._engine.device_of(member)}"

    def _make_links(self, routes: Routes) -> Circuit:
        """Tells everyone to connect under the present epoch; returns the caller's own circuit."""
        connect = self._caller_end.connect(self.epoch, routes, _unsecured_links(self._engine))
        links = self._caller_end.links
        ends = {member: ends_of(links, member, routes) for member in (CALLER, *routes.members)}
        senders: dict[int, socket.socket] = {}
        receivers: dict[int, socket.socket] = {}
        try:
            if connect.on_host:
                for _, sending in ends.values():
                    for link in sending:
                        senders[link.index], receivers[link.index] = socket.socketpair()
            ours_in, ours_out = ends.pop(CALLER)
            circuit = self._circuit = self._caller_end.make_circuit(
                connect,
                lambda address: self._events.put((CALLER, None, address)),
                lambda epoch: self._events.put((CALLER, None, Connected(epoch=epoch))),
                lambda event: self._events.put((CALLER, None, event)),
                {
                    link.index: side[link.index]
                    for side, links in ((receivers, ours_in), (senders, ours_out))
                    for link in links
                    if connect.on_host
                },
            )
            circuit.start()
        except _SHORTAGES as error:
            for end in (*senders.values(), *receivers.values()):
                end.close()
            raise _SetbackError(EngineError(f"the links could not be made: {error}")) from error
        for member, (receiving, sending) in ends.items():
            worker = self.workers[member].worker
            assert worker is not None
            theirs = [receivers[link.index] for link in receiving if connect.on_host]
            theirs += [senders[link.index] for link in sending if connect.on_host]
            worker.send(connect, tuple(end.fileno() for end in theirs))
            # The worker has copies; as long as one of ours is open, its death would go unnoticed.
            for end in theirs:
                end.close()
        return circuit

    def _watch(self) -> None:
        while True:
            self._step(None, "", lambda _: True)
            self._start_workers()
            joining = self._crew.is_joined_by()
            if joining is not None:
                raise _SetbackError(EngineError(f"{self._name(joining)} joins"), moved=True)
            stalled_s = self._ledger.stalled_s()
            if stalled_s > self._limits.compute_timeout_s * (len(self._crew.groups.sizes) + 1):
                raise _SetbackError(
                    LinkTimeout(
                        f"nothing came back from the last stage for {stalled_s:.0f} s",
                        link=self._caller_end.links[-1].name,
                        seconds=stalled_s,
                    )
                )

    def _step(self, deadline_s: float | None, what: str, finished: Callable[[int], bool]) -> None:
        """Handles one event, or looks after the clocks when none comes within a tick.

        Raises:
            _SetbackError: the epoch is over.
            _StoppingError: the session is being closed.
        """
        try:
            item = self._events.get(timeout=self._tick_s)
        except queue.Empty:
            item = None
        if self._is_stopping():
            raise _StoppingError
        if item is not None:
            self._handle(*item)
        self._check_clocks()
        if deadline_s is not None and _is_past(deadline_s):
            late = next((member for member in self._members if not finished(member)), None)
            if late is None:
                raise _SetbackError(EngineError(f"the caller did not {what} in time"))
            raise self._kill(late, f"did not {what} in time")

    def _is_stopping(self) -> bool:
        return self._dropped or self._stopping.is_set()

    @property
    def _members(self) -> range:
        return range(len(self.workers))

    def _handle(self, member: int, worker: WorkerHandle | None, event: Event) -> None:
        if worker is None:
            self._handle_callers(event)
            return
        record = self.workers[member]
        if record.worker is not worker:
            return  # a former worker's last words
        record.heard_s = time.monotonic()
        if isinstance(event, Exited):
            self._go_on_without(member, self._bury(member, event.reason, moved=event.moved))
        elif isinstance(event, LinkLost):
            self._lose_link(event)
        elif isinstance(event, Refused):
            self._refuse(member, event)
        elif isinstance(event, BatchFailed):
            self._ledger.fail(event.epoch, event.sequence, self._failure(member, event))
        elif isinstance(event, Heartbeat):
            self._hear(record, event)
        elif isinstance(event, Address):
            self._pass_on(event, member)
        else:
            self._note_progress(record, event)

    def _refuse(self, member: int, event: Refused) -> None:
        fatal = event.fatal or self.workers[member].num_restarts == 0
        setback = self._kill(member, event.message, error=_rebuilt(event), fatal=fatal)
        if fatal and not self.up.is_set():
            raise setback
        self._go_on_without(member, setback)

    def _go_on_without(self, member: int, setback: _SetbackError) -> None:
        """Goes on where the member's siblings compute without it anyway.

        Raises:
            _SetbackError: `setback`, where they do not.
        """
        if not self._crew.is_dispensable(member):
            raise setback
        _LOG.warning("%s; its siblings go on", str(setback))

    def _handle_callers(self, event: Event) -> None:
        """An event of the caller's own end of the links."""
        if isinstance(event, Connected):
            self._caller_connected = event.epoch
        elif isinstance(event, LinkLost):
            self._lose_link(event)
        elif isinstance(event, Address):
            self._pass_on(event, CALLER)

    def _pass_on(self, address: Address, origin: int) -> None:
        """Gives an address to whoever is at the other end of its link, in the present epoch."""
        links = self._caller_end.links
        if address.epoch != self.epoch or not 0 <= address.link < len(links):
            return
        ends = {links[address.link].sender, links[address.link].receiver}
        if origin not in ends:
            return
        neighbour = min(ends - {origin}, default=CALLER)
        if neighbour == CALLER:
            if self._circuit is not None:
                self._circuit.tell(address)
            return
        worker = self.workers[neighbour].worker
        if worker is not None:
            worker.send(address)

    def _note_progress(self, record: WorkerRecord, event: Event) -> None:
        if isinstance(event, Started):
            record.pid = event.pid
            assert record.worker is not None
            record.worker.send(record.load)
        elif isinstance(event, Loaded):
            record.loaded = True
            record.load_s = event.load_s
            # The same backend for ever, so that a replacement gives the same numbers.
            record.load = msgspec.structs.replace(record.load, backend=event.backend)
        elif isinstance(event, Connected):
            record.connected_epoch = event.epoch
        elif isinstance(event, Timeline):
            record.take_spans(event.spans, last=event.last)
            if event.last:
                with self.changed:
                    self.changed.notify_all()

    def _hear(self, record: WorkerRecord, event: Heartbeat) -> None:
        with self.changed:
            record.stats = event.stats
            record.stats_s = time.monotonic()
            self.changed.notify_all()
        if event.computing_s > self._limits.compute_timeout_s:
            member = record.load.member
            self._go_on_without(
                member,
                self._kill(member, f"computed for {event.computing_s:.1f} s on one micro-batch"),
            )

    def _lose_link(self, event: LinkLost) -> None:
        if event.epoch != self.epoch:
            return
        # A neighbour's death closes its links a moment before the engine tells of the death.
        deadline_s = time.monotonic() + _GRACE_S
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                item = self._events.get(timeout=left_s)
            except queue.Empty:
                break
            if self._is_stopping():
                raise _StoppingError
            if item is not None and not isinstance(item[-1], LinkLost):
                self._handle(*item)
        error = LinkTimeout(event.reason, link=event.link, seconds=event.seconds)
        raise _SetbackError(error, link=event.link)

    def _check_clocks(self) -> None:
        now_s = time.monotonic()
        slept_s = now_s - self._ticked_s
        self._ticked_s = now_s
        if slept_s > self._patience_s / 2:
            # It was this process that stood still (suspended, or starved): nobody else is late.
            self._crew.excuse()
            return
        ended = self._circuit.ended if self._circuit is not None else None
        if ended is not None:
            raise _SetbackError(EngineError(f"the caller's thread {ended} ended without a word"))
        self._ask_processes(now_s)
        for member, record in enumerate(self.workers):
            silent_s = now_s - record.heard_s
            if not record.loaded or record.worker is None:
                continue
            if silent_s > self._limits.heartbeat_s:
                words = f"was silent for {silent_s:.1f} s and taken for frozen"
                self._go_on_without(member, self._kill(member, words))
            elif silent_s > self._limits.sibling_s and self._crew.can_be_set_aside(member):
                self._crew.set_aside(member)
                words = f"{self._name(member)} was silent for {silent_s:.1f} s and is set aside"
                raise _SetbackError(EngineError(words), moved=True)

    def _ask_processes(self, now_s: float) -> None:
        """Looks for workers that are gone though nothing said so, whatever may be the reason."""
        if now_s < self._asked_s + _TICK_S:
            return
        self._asked_s = now_s
        for member, record in enumerate(self.workers):
            if record.worker is None or record.worker.is_running():
                continue
            if record.gone_s is None:
                record.gone_s = now_s
            elif now_s > record.gone_s + _UNSAID_S:
                words = "its process is gone, and nothing told of it"
                self._go_on_without(member, self._bury(member, words))

    def _kill(
        self, member: int, reason: str, *, error: CutsetError | None = None, fatal: bool = False
    ) -> _SetbackError:
        worker = self.workers[member].worker
        if worker is not None:
            worker.kill()
            # Whoever has siblings is not waited for: they go on.
            worker.join(0.0 if self._crew.siblings(member) else _KILL_TIMEOUT_S)
        return self._bury(member, reason, error=error, fatal=fatal)

    def _bury(
        self,
        member: int,
        reason: str,
        *,
        error: CutsetError | None = None,
        fatal: bool = False,
        moved: bool = False,
    ) -> _SetbackError:
        self._crew.bury(member)
        stage, _ = self._crew.groups.places[member]
        killer = StageFailed(
            f"the worker of {self._name(member)}: {reason}",
            stage=stage,
            device=self._engine.device_of(member),
        )
        if moved:  # what was in flight had no part in it
            return _SetbackError(killer, moved=True)
        return _SetbackError(error or killer, killer=killer, member=member, fatal=fatal)

    def _failure(self, member: int, event: BatchFailed) -> CutsetError:
        if event.kind == "ContractViolation":
            return ContractViolation(
                event.message,
                boundary=event.boundary,
                expected=event.expected,
                actual=event.actual,
            )
        stage, _ = self._crew.groups.places[member]
        return StageFailed(event.message, stage=stage, device=self._engine.device_of(member))

    # --- set-backs

    def _set_back(self, setback: _SetbackError) -> None:
        settled_before = self._ledger.num_settled
        if self._circuit is not None:
            self._circuit.close()
            self._circuit = None
        num_failed = self._ledger.close_epoch(setback.killer, setback.member)
        self._crew.dismiss()
        # In words: whoever keeps the record would keep a traceback, and with it the epoch's memory.
        _LOG.warning("epoch %d is over: %s", self.epoch, str(setback))
        if setback.fatal:
            raise setback.error
        if setback.moved:
            return
        if self._is_waited_for(setback.link) and not self._stands:
            self._stopping.wait(_TICK_S)
            return
        if num_failed or settled_before != self._settled_at_setback:
            self._num_setbacks = 0
            self._tried.clear()
        self._settled_at_setback = self._ledger.num_settled
        self._num_setbacks += 1
        self._tried.append(str(setback))
        if self._num_setbacks > self._limits.max_restarts:
            raise self._give_up(setback)
        if self._num_setbacks > 1:
            doublings = min(self._num_setbacks - 2, _MAX_DOUBLINGS)
            pause_s = self._limits.back_off_s * 2**doublings
            self._stopping.wait(min(pause_s, _MAX_BACK_OFF_S))
            if self._is_stopping():
                raise _StoppingError

    def _is_waited_for(self, link: str) -> bool:
        """Whether the engine takes a link for a wire that is down; one of a package may not."""
        ask = getattr(self._engine, "link_lost", None)
        names = [each.name for each in self._caller_end.links]
        return ask is not None and link in names and bool(ask(names.index(link)))

    def _give_up(self, setback: _SetbackError) -> CutsetError:
        story = "; ".join(f"({number}) {text}" for number, text in enumerate(self._tried, 1))
        message = (
            f"the pipeline could not be kept up: {len(self._tried)} attempts without an answer"
            f" between them. {story}"
        )
        if setback.killer is not None:
            return StageFailed(message, stage=setback.killer.stage, device=setback.killer.device)
        return EngineError(message)

    def _shut_down(self) -> None:
        if self._circuit is not None:
            self._circuit.close()
        for record in self.workers:
            if record.worker is not None:
                record.worker.send(Stop())
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        for record in self.workers:
            if record.worker is not None:
                record.worker.join(max(0.0, deadline_s - time.monotonic()))
        self._engine.close()
        if self._circuit is not None:
            self._circuit.join()
            self._circuit = None


def _is_past(deadline_s: float) -> bool:
    return time.monotonic() > deadline_s


def _unsecured_links(engine: Engine) -> tuple[int, ...]:
    """What the engine says; one of another package may be older than the question."""
    ask = getattr(engine, "unsecured_links", None)
    return () if ask is None else tuple(ask())


def _rebuilt(event: Refused) -> CutsetError:
    """The error that a worker named, as an object of its class."""
    kind = getattr(errors, event.kind, EngineError)
    if isinstance(kind, type) and issubclass(kind, BundleError):
        try:
            return kind(event.message, **event.details)
        except TypeError:
            return BundleError(event.message, path=event.details.get("path"))
    return EngineError(event.message)
