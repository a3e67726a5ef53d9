"""The default engine: one process of this machine per stage, nothing to install or start.

A worker is ``python -m cutset.runtime.worker --control-fd N`` in a session of its own, so that
Ctrl-C at a terminal reaches the caller only, who then closes the workers in order. It holds one
end of a socket pair; when the caller dies in whatever way, the system closes the other end and
the worker leaves (see `cutset.runtime.worker`).
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from cutset.backends.allocator import malloc_environment
from cutset.engines.base import Command, Event, Exited, WorkerHandle
from cutset.engines.control import ControlSocket
from cutset.errors import EngineError
from cutset.host import core_numbers, num_usable_cores

_LOG = logging.getLogger(__name__)

_LAST_WORDS_LINES = 20
_REAP_TIMEOUT_S = 5.0


class LocalWorker:
    """A worker process of this machine; see `cutset.engines.base.WorkerHandle`.

    It begins as a spare: its events wait until `adopt` says which stage it is for. Two threads
    belong to it: one reads its control messages, one its standard error.
    """

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self._stage = -1
        self._process = process
        self._control = ControlSocket.for_session(connection)
        self._on_event: Callable[[WorkerHandle, Event], None] | None = None
        self._early: list[Event] = []
        self._lock = threading.Lock()
        self._last_words: collections.deque[str] = collections.deque(maxlen=_LAST_WORDS_LINES)
        self._gone = threading.Event()
        self._stderr_reader = threading.Thread(
            target=self._read_stderr, name=f"cutset-stderr-{process.pid}", daemon=True
        )
        self._event_reader = threading.Thread(
            target=self._read_events, name=f"cutset-control-{process.pid}", daemon=True
        )
        self._stderr_reader.start()
        self._event_reader.start()

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

    def kill(self) -> None:
        """Sends SIGKILL, which also ends a stopped process."""
        self._process.kill()

    def join(self, timeout_s: float) -> bool:
        """Waits until the process is gone and `Exited` was said; False when not in time."""
        return self._gone.wait(timeout_s)

    def _read_events(self) -> None:
        try:
            for event in self._control.messages():
                self._emit(event)
        except EngineError as error:
            self._last_words.append(str(error))
        # No control connection, no worker: one that closed it but lives on is ended.
        try:
            self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_REAP_TIMEOUT_S)
        self._stderr_reader.join(1.0)
        self._control.close()
        self._gone.set()
        self._emit(Exited(reason=self._describe_exit()))

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                text = line.decode(errors="replace").rstrip()
                self._last_words.append(text)
                _LOG.debug("stage %d (pid %d): %s", self._stage, self.pid, text)

    def _describe_exit(self) -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            status = f"was ended by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                status += " (by hand, for want of memory, or because it no longer answered)"
        else:
            status = f"left with exit status {code}"
        words = next((line for line in reversed(self._last_words) if line.strip()), "")
        return f"process {self.pid} {status}" + (f"; its last words: {words}" if words else "")


class LocalEngine:
    """Processes of this machine; see `cutset.engines.base.Engine`.

    Args:
        devices: name of each stage's device, for messages.
        num_threads: threads that each worker computes with.
        keep_spare: once a worker was lost, keep a process ready that has imported its libraries
            (most of what a start takes) to stand in for the next one. Costs the memory of an idle
            process, and nothing as long as no worker is lost.
        worker_command: the command line that starts a worker, without its options.
        shares_memory: whether neighbours share memory; otherwise they talk as they would on
            different hosts.
    """

    name = "local"
    host = "127.0.0.1"

    def __init__(
        self,
        devices: tuple[str, ...],
        *,
        num_threads: int,
        keep_spare: bool = True,
        worker_command: tuple[str, ...] = (sys.executable, "-m", "cutset.runtime.worker"),
        shares_memory: bool = True,
    ) -> None:
        self.shares_memory = shares_memory
        self._devices = devices
        self._worker_command = worker_command
        self._num_threads = num_threads
        self._keep_spare = keep_spare
        self._workers: list[LocalWorker] = []
        self._spare: LocalWorker | None = None
        self._started: set[int] = set()
        self._link_files: tuple[int, ...] = ()
        self._num_lost = 0

    def device_of(self, stage: int) -> str:
        """Name of the device that `stage` runs on."""
        return self._devices[stage]

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
        _LOG.info("stage %d: worker process %d", stage, worker.pid)
        return worker

    def standing(self) -> None:
        """Starts a spare process if a worker was lost and there is none."""
        if self._keep_spare and self._num_lost and self._spare is None:
            self._spare = self._spawn()

    def _spawn(self) -> LocalWorker:
        ours, theirs = socket.socketpair()
        try:
            # The arguments are ours alone, so nothing a bundle says reaches this command line.
            process = subprocess.Popen(  # noqa: S603
                [
                    *self._worker_command,
                    *("--control-fd", str(theirs.fileno())),
                    *("--link-fds", *(str(file) for file in self._link_files)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(), *self._link_files),
                start_new_session=True,
                env=self._environment(),
            )
        except OSError as error:
            ours.close()
            raise EngineError(f"a worker process cannot be started: {error}") from error
        finally:
            theirs.close()
        worker = LocalWorker(process, ours)
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

    def _environment(self) -> dict[str, str]:
        # OpenMP reads its number of threads once, when it is loaded; torch.set_num_threads alone
        # does not reach threads that other libraries make.
        return {
            # Its warnings (of addresses without a name, say) would pass for last words.
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            **os.environ,
            **malloc_environment(),
            "OMP_NUM_THREADS": str(self._num_threads),
            "MKL_NUM_THREADS": str(self._num_threads),
            # A file torch.py in the caller's working directory must not shadow the real one.
            "PYTHONSAFEPATH": "1",
        }


def cores_of(stage: int, num_stages: int, num_threads: int) -> tuple[int, ...]:
    """Cores for one stage, or none where this process may use too few or the system cannot tell."""
    if num_stages * num_threads > num_usable_cores():
        return ()
    return core_numbers()[stage * num_threads : (stage + 1) * num_threads]
