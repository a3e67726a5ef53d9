"""Brings the workers of a session up, watches them, and brings them up again.

One thread, the supervisor, does all of it. It goes round this circle, once for each epoch::

    bring up: start missing workers side by side, load, connect all links under a new epoch
    watch:    until a worker dies, freezes or computes for too long, or a link fails
    set back: take what is in flight back, end what must be ended, wait a little longer each time

After too many set-backs without a single answer between them it gives up: the session ends with
an error that says what was tried. Every wait has a limit.
"""

from __future__ import annotations

import itertools
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
    Load,
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
from cutset.runtime.callerend import CallerEnd
from cutset.runtime.ledger import Ledger
from cutset.runtime.status import Limits, StageRecord

_LOG = logging.getLogger(__name__)

_TICK_S = 0.25
_TICKS_PER_HEARTBEAT = 8
_GRACE_S = 0.5
_STOP_TIMEOUT_S = 1.0
_KILL_TIMEOUT_S = 5.0
_MAX_BACK_OFF_S = 5.0
_MAX_DOUBLINGS = 32
_UNSAID_S = 2.0
_CALLER = -1
# No descriptor, process, thread or memory left now. Python says the third by a RuntimeError.
_SHORTAGES = (OSError, RuntimeError, MemoryError)


class _SetbackError(Exception):
    """The epoch is over.

    `killer` is set where a worker died, `link` names one that failed where none did, `fatal` is set
    where trying again is useless, `moved` where the engine places a stage elsewhere.
    """

    def __init__(
        self,
        error: CutsetError,
        *,
        killer: StageFailed | None = None,
        link: str = "",
        fatal: bool = False,
        moved: bool = False,
    ) -> None:
        super().__init__(str(error))
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
        loads: what each stage is to load.
        caller_end: makes the caller's own circuits; closed by the supervisor at the end.
        ledger: whose micro-batches are to be computed.
        limits: how long and how often.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        loads: tuple[Load, ...],
        caller_end: CallerEnd,
        ledger: Ledger,
        limits: Limits,
    ) -> None:
        self._engine = engine
        self.stages = tuple(StageRecord(load) for load in loads)
        self._caller_end = caller_end
        self._ledger = ledger
        self._limits = limits
        self._events: queue.SimpleQueue[tuple[WorkerHandle | None, Event] | None] = (
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
        self._tick_s = min(_TICK_S, limits.heartbeat_s / _TICKS_PER_HEARTBEAT)
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
        return _STOP_TIMEOUT_S + _KILL_TIMEOUT_S * (len(self.stages) + 1)

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

    def collect(self, *, spans: bool, timeout_s: float) -> None:
        """Asks every worker for its statistics and waits until they are here, or the time is up."""
        asked_s = time.monotonic()
        for stage in self.stages:
            stage.spans_complete.clear()
            worker = stage.worker
            if worker is not None:
                worker.send(Collect(spans=spans))

        def answered() -> bool:
            return all(
                stage.worker is None
                or (stage.stats_s >= asked_s and (not spans or stage.spans_complete.is_set()))
                for stage in self.stages
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
        deadline_s = time.monotonic() + self._limits.start_timeout_s
        for index, stage in enumerate(self.stages):
            if stage.worker is None:
                stage.worker = self._start_worker(index)
                stage.heard_s = time.monotonic()
                stage.num_restarts += 1
        while not all(stage.loaded for stage in self.stages):
            self._step(deadline_s, "start and load its stage", lambda stage: stage.loaded)
        deadline_s = time.monotonic() + self._limits.connect_timeout_s
        circuit = self._make_links()
        while self._caller_connected != self.epoch or any(
            stage.connected_epoch != self.epoch for stage in self.stages
        ):
            self._step(deadline_s, "connect", lambda stage: stage.connected_epoch == self.epoch)
        _LOG.info("epoch %d: %d stages connected", self.epoch, len(self.stages))
        self._ledger.open_epoch(self.epoch, circuit.send)
        self._stands = True
        self._engine.standing()

    def _start_worker(self, index: int) -> WorkerHandle:
        """Starts a worker; what the system has none of now (processes, memory) it may have soon."""
        try:
            return self._engine.start(
                index, lambda w, e: self._events.put((w, e)), self._caller_end.link_files
            )
        except (EngineError, *_SHORTAGES) as error:
            device = self._engine.device_of(index)
            raise _SetbackError(
                EngineError(
                    f"the worker of stage {index} on {device} could not be started: {error}"
                )
            ) from error

    def _make_links(self) -> Circuit:
        """Tells everyone to connect under the present epoch; returns the caller's own circuit."""
        connect = self._caller_end.connect(self.epoch, _unsecured_links(self._engine))
        pairs: list[tuple[socket.socket, socket.socket]] = []
        try:
            while connect.on_host and len(pairs) <= len(self.stages):
                pairs.append(socket.socketpair())
            circuit = self._circuit = self._caller_end.make_circuit(
                connect,
                lambda address: self._events.put((None, address)),
                lambda epoch: self._events.put((None, Connected(epoch=epoch))),
                lambda event: self._events.put((None, event)),
                (pairs[-1][1], pairs[0][0]) if pairs else (),
            )
            circuit.start()
        except _SHORTAGES as error:
            for end in itertools.chain(*pairs):
                end.close()
            raise _SetbackError(EngineError(f"the links could not be made: {error}")) from error
        theirs = [(before[1], after[0]) for before, after in itertools.pairwise(pairs)]
        for index, stage in enumerate(self.stages):
            assert stage.worker is not None
            ends = theirs[index] if theirs else ()
            stage.worker.send(connect, tuple(end.fileno() for end in ends))
            # The worker has copies; as long as one of ours is open, its death would go unnoticed.
            for end in ends:
                end.close()
        return circuit

    def _watch(self) -> None:
        while True:
            self._step(None, "", lambda _: True)
            stalled_s = self._ledger.stalled_s()
            if stalled_s > self._limits.compute_timeout_s * (len(self.stages) + 1):
                raise _SetbackError(
                    LinkTimeout(
                        f"nothing came back from the last stage for {stalled_s:.0f} s",
                        link=f"stage {len(self.stages) - 1} -> caller",
                        seconds=stalled_s,
                    )
                )

    def _step(
        self, deadline_s: float | None, what: str, finished: Callable[[StageRecord], bool]
    ) -> None:
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
        if deadline_s is not None and time.monotonic() > deadline_s:
            late = next((i for i, s in enumerate(self.stages) if not finished(s)), None)
            if late is None:
                raise _SetbackError(EngineError(f"the caller did not {what} in time"))
            raise self._kill(late, f"did not {what} in time")

    def _is_stopping(self) -> bool:
        return self._dropped or self._stopping.is_set()

    def _handle(self, worker: WorkerHandle | None, event: Event) -> None:
        if worker is None:
            self._handle_callers(event)
            return
        stage = self.stages[worker.stage]
        if stage.worker is not worker:
            return  # a former worker's last words
        stage.heard_s = time.monotonic()
        if isinstance(event, Exited):
            raise self._bury(worker.stage, event.reason, moved=event.moved)
        if isinstance(event, LinkLost):
            self._lose_link(event)
        elif isinstance(event, Refused):
            fatal = event.fatal or stage.num_restarts == 0
            raise self._kill(worker.stage, event.message, error=_rebuilt(event), fatal=fatal)
        elif isinstance(event, BatchFailed):
            self._ledger.fail(event.epoch, event.sequence, self._failure(worker.stage, event))
        elif isinstance(event, Heartbeat):
            self._hear(stage, event)
        elif isinstance(event, Address):
            self._pass_on(event, worker.stage)
        else:
            self._note_progress(stage, event)

    def _handle_callers(self, event: Event) -> None:
        """An event of the caller's own end of the links."""
        if isinstance(event, Connected):
            self._caller_connected = event.epoch
        elif isinstance(event, LinkLost):
            self._lose_link(event)
        elif isinstance(event, Address):
            self._pass_on(event, _CALLER)

    def _pass_on(self, address: Address, origin: int) -> None:
        """Gives an address to whoever is at the other end of its link, in the present epoch."""
        last = len(self.stages)
        ends = {
            address.link - 1 if address.link else _CALLER,
            address.link if address.link < last else _CALLER,
        }
        if address.epoch != self.epoch or origin not in ends or not 0 <= address.link <= last:
            return
        (neighbour,) = ends - {origin}
        if neighbour == _CALLER:
            if self._circuit is not None:
                self._circuit.tell(address)
            return
        worker = self.stages[neighbour].worker
        if worker is not None:
            worker.send(address)

    def _note_progress(self, stage: StageRecord, event: Event) -> None:
        if isinstance(event, Started):
            stage.pid = event.pid
            assert stage.worker is not None
            stage.worker.send(stage.load)
        elif isinstance(event, Loaded):
            stage.loaded = True
            stage.load_s = event.load_s
            # The same backend for ever, so that a replacement gives the same numbers.
            stage.load = msgspec.structs.replace(stage.load, backend=event.backend)
        elif isinstance(event, Connected):
            stage.connected_epoch = event.epoch
        elif isinstance(event, Timeline):
            stage.take_spans(event.spans, last=event.last)
            if event.last:
                with self.changed:
                    self.changed.notify_all()

    def _hear(self, stage: StageRecord, event: Heartbeat) -> None:
        with self.changed:
            stage.stats = event.stats
            stage.stats_s = time.monotonic()
            self.changed.notify_all()
        if event.computing_s > self._limits.compute_timeout_s:
            raise self._kill(
                stage.load.stage, f"computed for {event.computing_s:.1f} s on one micro-batch"
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
            if item is not None and not isinstance(item[1], LinkLost):
                self._handle(*item)
        error = LinkTimeout(event.reason, link=event.link, seconds=event.seconds)
        raise _SetbackError(error, link=event.link)

    def _check_clocks(self) -> None:
        now_s = time.monotonic()
        slept_s = now_s - self._ticked_s
        self._ticked_s = now_s
        if slept_s > self._limits.heartbeat_s / 2:
            # It was this process that stood still (suspended, or starved): nobody else is late.
            for stage in self.stages:
                stage.heard_s = now_s
            return
        ended = self._circuit.ended if self._circuit is not None else None
        if ended is not None:
            raise _SetbackError(EngineError(f"the caller's thread {ended} ended without a word"))
        self._ask_processes(now_s)
        for index, stage in enumerate(self.stages):
            silent_s = now_s - stage.heard_s
            if stage.loaded and stage.worker and silent_s > self._limits.heartbeat_s:
                raise self._kill(index, f"was silent for {silent_s:.1f} s and taken for frozen")

    def _ask_processes(self, now_s: float) -> None:
        """Looks for workers that are gone though nothing said so, whatever may be the reason."""
        if now_s < self._asked_s + _TICK_S:
            return
        self._asked_s = now_s
        for index, stage in enumerate(self.stages):
            if stage.worker is None or stage.worker.is_running():
                continue
            if stage.gone_s is None:
                stage.gone_s = now_s
            elif now_s > stage.gone_s + _UNSAID_S:
                raise self._bury(index, "its process is gone, and nothing told of it")

    def _kill(
        self, index: int, reason: str, *, error: CutsetError | None = None, fatal: bool = False
    ) -> _SetbackError:
        worker = self.stages[index].worker
        assert worker is not None
        worker.kill()
        worker.join(_KILL_TIMEOUT_S)
        return self._bury(index, reason, error=error, fatal=fatal)

    def _bury(
        self,
        index: int,
        reason: str,
        *,
        error: CutsetError | None = None,
        fatal: bool = False,
        moved: bool = False,
    ) -> _SetbackError:
        self.stages[index].forget_worker()
        device = self._engine.device_of(index)
        killer = StageFailed(
            f"the worker of stage {index} on {device}: {reason}", stage=index, device=device
        )
        if moved:  # what was in flight had no part in it
            return _SetbackError(killer, moved=True)
        return _SetbackError(error or killer, killer=killer, fatal=fatal)

    def _failure(self, index: int, event: BatchFailed) -> CutsetError:
        if event.kind == "ContractViolation":
            return ContractViolation(
                event.message,
                boundary=event.boundary,
                expected=event.expected,
                actual=event.actual,
            )
        return StageFailed(event.message, stage=index, device=self._engine.device_of(index))

    # --- set-backs

    def _set_back(self, setback: _SetbackError) -> None:
        settled_before = self._ledger.num_settled
        if self._circuit is not None:
            self._circuit.close()
            self._circuit = None
        num_failed = self._ledger.close_epoch(setback.killer)
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
        ring = ("caller", *(f"stage {index}" for index in range(len(self.stages))), "caller")
        names = [f"{source} -> {target}" for source, target in itertools.pairwise(ring)]
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
        for stage in self.stages:
            if stage.worker is not None:
                stage.worker.send(Stop())
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        for stage in self.stages:
            if stage.worker is not None:
                stage.worker.join(max(0.0, deadline_s - time.monotonic()))
        self._engine.close()
        if self._circuit is not None:
            self._circuit.join()
            self._circuit = None


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
