"""A worker on another host, as the session sees it, whatever carries its messages."""

from __future__ import annotations

import abc
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from cutset.engines.protocol import (
    Command,
    Event,
    Exited,
    Load,
    Refused,
    Span,
    Timeline,
    WorkerHandle,
)
from cutset.engines.remote_host import HostAwayError, HostEndedError, RemoteHost
from cutset.errors import CutsetError, EngineError

if TYPE_CHECKING:
    from cutset.engines.remote_engine import RemoteEngine

_LOG = logging.getLogger(__name__)

HostT = TypeVar("HostT", bound=RemoteHost)


class RemoteWorker(abc.ABC, Generic[HostT]):
    """A worker on another host; see `cutset.engines.protocol.WorkerHandle`.

    A thread finds its host, delivers the shard and then passes events on.
    """

    def __init__(
        self,
        engine: RemoteEngine[HostT],
        stage: int,
        on_event: Callable[[WorkerHandle, Event], None],
    ) -> None:
        self._engine = engine
        self._stage = stage
        self._on_event = on_event
        self._host: HostT | None = None
        self._folder = ""
        self._offset_s = 0.0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"cutset-stage-{stage}", daemon=True)

    @abc.abstractmethod
    def _serve(self, host: HostT) -> None:
        """Starts the worker's process, delivers its shard and passes events on until it is gone."""

    @abc.abstractmethod
    def _tell(self, host: HostT, command: Command) -> None:
        """Delivers a command; to a dead worker it does nothing."""

    def begin(self) -> None:
        """Starts the thread; apart from making it, so that the engine knows the worker first."""
        self._thread.start()

    @property
    def stage(self) -> int:
        """Index of the stage that it was started for."""
        return self._stage

    @property
    def has_host(self) -> bool:
        """Whether it has found its node and has not ended."""
        return self._host is not None and not self._ended.is_set()

    def send(self, command: Command, files: tuple[int, ...] = ()) -> None:
        """Delivers `command`; to a dead worker it does nothing."""
        assert not files, "files do not cross between hosts"
        host = self._host
        if host is None or self._ended.is_set():
            return
        if isinstance(command, Load):
            folder = os.fsencode(self._folder)
            command = msgspec.structs.replace(command, bundle=folder, cpus=(), num_slots=0)
        self._tell(host, command)

    def is_running(self) -> bool:
        """Whether it has not ended; its node says when its process does."""
        return not self._gone.is_set()

    def kill(self) -> None:
        """Ends the worker; a host that cannot be reached ends it by itself, after a while."""
        self.end(Exited(reason="it was ended by the session"), keep_host=False)

    def join(self, timeout_s: float) -> bool:
        """Waits until `Exited` was said; False when not in time."""
        return self._gone.wait(timeout_s)

    def finish(self, timeout_s: float) -> None:
        """Waits for the thread."""
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def end(self, event: Exited, *, keep_host: bool) -> None:
        """Says `Exited`, once; with `keep_host` the node's process can start another worker."""
        with self._lock:
            if self._ended.is_set():
                return
            self._ended.set()
        if self._host is not None:
            self._engine.put_back(self._stage, self._host if keep_host else None, self._host)
        self._gone.set()
        self._on_event(self, event)

    def _run(self) -> None:
        try:
            host = self._engine.find_host(self._stage, self._ended)
            self._host = host
            if self._ended.is_set():
                host.kill()
                return
            self._serve(host)
        except HostEndedError:
            return
        except HostAwayError as error:
            self.end(Exited(reason=str(error)), keep_host=False)
        except CutsetError as error:
            # What the engine says is final: it has waited and tried elsewhere.
            fatal = isinstance(error, EngineError)
            kind = type(error).__name__
            self._emit(Refused(kind=kind, message=str(error), details={}, fatal=fatal))
        except Exception as error:  # noqa: BLE001  # told to the session, which must not hang
            _LOG.exception("stage %d", self._stage)
            reason = f"the engine failed: {error!r}"
            self._emit(Refused(kind="EngineError", message=reason, details={}, fatal=True))

    def _deliver(self, host: HostT) -> None:
        """Has the files of the stage on the host, and knows how its clock differs from ours."""
        self._folder = self._engine.deliver(host, self._stage)
        self._offset_s = host.clock_offset_s()

    def _pass_on(self, event: Event) -> None:
        """Tells the session of an event of the worker's own."""
        if isinstance(event, Timeline):
            event = self._on_our_clock(event)
        self._emit(event)

    def _emit(self, event: Event) -> None:
        if not self._ended.is_set():
            self._on_event(self, event)

    def _on_our_clock(self, event: Timeline) -> Timeline:
        offset_s = self._offset_s
        spans = tuple(
            Span(s.sequence, s.activity, s.start_s - offset_s, s.stop_s - offset_s)
            for s in event.spans
        )
        return msgspec.structs.replace(event, spans=spans)
