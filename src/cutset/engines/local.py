"""The default engine: a process of this machine for each worker, nothing to install or start.

A worker is `cutset.runtime.worker`, begun by `cutset.launch` in a session of its own, so that
Ctrl-C at a terminal reaches the caller only, who then closes the workers in order. It holds one
end of a socket pair; when the caller dies in whatever way, the system closes the other end and
the worker leaves. Nothing listens.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from cutset.backends.allocator import malloc_environment
from cutset.engines.control import ControlSocket
from cutset.engines.protocol import Command, Event, Exited, WorkerHandle
from cutset.engines.registry import EngineSettings
from cutset.errors import EngineError
from cutset.host import core_numbers, num_usable_cores
from cutset.processes import LastWords, command_of, made_environment

if TYPE_CHECKING:
    from cutset.bundles.open import Bundle

_LOG = logging.getLogger(__name__)

_LEAVE_TIMEOUT_S = 0.5
_REAP_TIMEOUT_S = 5.0


class LocalWorker:
    """A worker process of this machine; see `cutset.engines.protocol.WorkerHandle`.

    It begins as a spare: its events wait until `adopt` says which stage it is for. Two threads
    belong to it: one reads its control messages, one its standard error.

    Raises:
        RuntimeError: the system has no thread left for them.
    """

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self._stage = -1
        self._process = process
        self._control = ControlSocket.for_session(connection)
        self._on_event: Callable[[WorkerHandle, Event], None] | None = None
        self._early: list[Event] = []
        self._lock = threading.Lock()
        self._gone = threading.Event()
        assert process.stderr is not None
        self._last_words = LastWords(process.stderr, str(process.pid))
        threading.Thread(
            target=self._read_events, name=f"cutset-control-{process.pid}", daemon=True
        ).start()

    @property
    def stage(self) -> int:
        """Index of the stage that it was started for."""
        return self._stage

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def adopt(self, stage: int, on_event: Callable[[WorkerHandle, Event], None]) -> None:
        """Makes it the worker of `stage`; what it said so far is told now."""
        with self._lock:
            self._stage = stage
            self._on_event = on_event
            early, self._early = self._early, []
        for event in early:
            on_event(self, event)

    def _emit(self, event: Event) -> None:
        with self._lock:
            on_event = self._on_event
            if on_event is None:
                self._early.append(event)
                return
        on_event(self, event)

    def send(self, command: Command, files: tuple[int, ...] = ()) -> None:
        """Delivers `command` and copies of `files`; to a dead worker it does nothing."""
        with contextlib.suppress(OSError):  # its Exited event says why
            self._control.send(command, files)

    def is_running(self) -> bool:
        """Whether the process is there, asked of the system."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Sends SIGKILL, which also ends a stopped process."""
        self._process.kill()

    def join(self, timeout_s: float) -> bool:
        """Waits until the process is gone and `Exited` was said; False when not in time."""
        return self._gone.wait(timeout_s)

    def _read_events(self) -> None:
        reason = ""
        try:
            try:
                for event in self._control.messages():
                    self._emit(event)
            except (EngineError, OSError) as error:
                self._last_words.add(str(error))
            self._reap()
            reason = self._describe_exit()
        finally:
            # Whatever failed above: a worker that is gone is always said to be.
            with contextlib.suppress(OSError):
                self._control.close()
            self._gone.set()
            self._emit(Exited(reason=reason or f"process {self.pid} is given up"))

    def _reap(self) -> None:
        """Makes the process end: without its control connection it is no worker."""
        try:
            self._process.wait(_LEAVE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_REAP_TIMEOUT_S)

    def _describe_exit(self) -> str:
        code = self._process.returncode
        if code is None:
            status = f"was killed and did not end within {_REAP_TIMEOUT_S:.0f} s"
        elif code < 0:
            status = ended_by(-code)
        else:
            status = f"left with exit status {code}"
        words = self._last_words.last()
        return f"process {self.pid} {status}" + (f"; its last words: {words}" if words else "")


def ended_by(number: int) -> str:
    """What a signal did to a worker."""
    why = " (by hand, for want of memory, or because it no longer answered)"
    return f"was ended by {signal_name(number)}" + (why if number == signal.SIGKILL else "")


def signal_name(number: int) -> str:
    """``"SIGKILL"``; a real-time signal has no name of its own: ``"SIGRTMIN+3"``."""
    try:
        return signal.Signals(number).name
    except ValueError:
        first = getattr(signal, "SIGRTMIN", 0)
        last = getattr(signal, "SIGRTMAX", 0)
        return f"SIGRTMIN+{number - first}" if first < number < last else f"signal {number}"


class LocalEngine:
    """Processes of this machine; see `cutset.engines.protocol.Engine`.

    Args:
        devices: name of each member's device, for messages.
        num_threads: threads that each worker computes with.
        keep_spare: once a worker was lost, keep a process ready that has imported its libraries
            (most of what a start takes) to stand in for the next one. Costs the memory of an idle
            process, and nothing as long as no worker is lost.
        worker_command: the command line that starts a worker, without its options; where None, of
            `cutset.runtime.worker`.
        listen_host: the address on which a worker listens for its neighbours, where it does.
        shares_memory: whether neighbours share memory; otherwise they talk as they would on
            different hosts.
    """

    name = "local"
    runs_groups = True

    def __init__(
        self,
        devices: tuple[str, ...],
        *,
        num_threads: int,
        keep_spare: bool = True,
        worker_command: tuple[str, ...] | None = None,
        listen_host: str = "127.0.0.1",
        shares_memory: bool = True,
    ) -> None:
        self.shares_memory = shares_memory
        self._devices = devices
        self._worker_command = worker_command
        self._listen_host = listen_host
        self._num_threads = num_threads
        self._keep_spare = keep_spare
        self._workers: list[LocalWorker] = []
        self._spare: LocalWorker | None = None
        self._started: set[int] = set()
        self._link_files: tuple[int, ...] = ()
        self._num_lost = 0

    def device_of(self, stage: int) -> str:
        """Name of the device that a member runs on."""
        return self._devices[stage]

    def unsecured_links(self) -> tuple[int, ...]:
        """None: where there are links at all, they have keys."""
        return ()

    def link_lost(self, link: int) -> bool:
        """Never a wire: where there are links within a host, they end with a process."""
        del link
        return False

    def start(
        self,
        stage: int,
        on_event: Callable[[WorkerHandle, Event], None],
        link_files: tuple[int, ...],
    ) -> LocalWorker:
        """Starts a worker process, or takes the spare one, without waiting for it.

        Raises:
            EngineError: the system refuses another process.
        """
        self._num_lost += stage in self._started
        self._started.add(stage)
        self._link_files = link_files
        worker, self._spare = self._spare, None
        if worker is None or worker.join(0):
            worker = self._spawn()
        worker.adopt(stage, on_event)
        _LOG.info("member %d: worker process %d", stage, worker.pid)
        return worker

    def standing(self) -> None:
        """Starts a spare process if a worker was lost and there is none."""
        if self._keep_spare and self._num_lost and self._spare is None:
            try:
                self._spare = self._spawn()
            except EngineError as error:
                _LOG.info("no spare: %s", error)  # it is asked for again after the next loss

    def _spawn(self) -> LocalWorker:
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise EngineError(f"a worker process cannot be started: {error}") from error
        process: subprocess.Popen[bytes] | None = None
        try:
            control = theirs.fileno()
            command = self._worker_command or command_of(
                "worker", caller=os.getpid(), control=control
            )
            # The arguments are ours alone, so nothing a bundle says reaches this command line.
            process = subprocess.Popen(  # noqa: S603
                [
                    *command,
                    *("--control-fd", str(control), "--listen-host", self._listen_host),
                    *("--link-fds", *(str(file) for file in self._link_files)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(control, *self._link_files),
                start_new_session=True,
                env={**made_environment(self._num_threads), **malloc_environment()},
            )
            worker = LocalWorker(process, ours)
        except (OSError, RuntimeError, MemoryError) as error:
            ours.close()
            if process is not None:
                process.kill()
                process.wait()
                assert process.stderr is not None
                process.stderr.close()
            raise EngineError(f"a worker process cannot be started: {error}") from error
        finally:
            theirs.close()
        self._workers = [other for other in self._workers if not other.join(0)]
        self._workers.append(worker)
        return worker

    def close(self) -> None:
        """Kills the processes that still run and waits for their end."""
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join(_REAP_TIMEOUT_S)
        self._workers.clear()


class LocalMachine(EngineSettings):
    """This machine, the default."""

    name = "local"
    runs_groups = True

    def engine_for(self, bundle: Bundle, *, num_threads: int) -> LocalEngine:
        """Prepares to run a bundle here."""
        devices = tuple(
            replica.device for stage in bundle.manifest.plan.stages for replica in stage.group
        )
        return LocalEngine(devices, num_threads=num_threads)


def cores_of(stage: int, num_stages: int, num_threads: int) -> tuple[int, ...]:
    """Cores for one worker; none where this process may use too few or the system cannot tell."""
    if num_stages * num_threads > num_usable_cores():
        return ()
    return core_numbers()[stage * num_threads : (stage + 1) * num_threads]
