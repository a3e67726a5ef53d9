"""An engine in one file: each worker a process of this machine, neighbours over TCP."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Callable

from cutset import Bundle
from cutset.engines.control import ControlSocket
from cutset.engines.protocol import Command, Event, Exited, WorkerHandle
from cutset.engines.registry import EngineSettings
from cutset.errors import EngineError
from cutset.processes import command_of, made_environment


class PlainWorker:
    """A worker process; its control messages go over a socket pair."""

    def __init__(
        self, stage: int, num_threads: int, on_event: Callable[[WorkerHandle, Event], None]
    ) -> None:
        self.stage = stage
        self._on_event = on_event
        self._gone = threading.Event()
        ours, theirs = socket.socketpair()
        with theirs:
            control = theirs.fileno()
            self._process = subprocess.Popen(
                [
                    *command_of("worker", caller=os.getpid(), control=control),
                    *("--control-fd", str(control), "--listen-host", "127.0.0.1"),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(control,),
                env=made_environment(num_threads),
            )
        self._control = ControlSocket.for_session(ours)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(EngineError, OSError):
            for event in self._control.messages():
                self._on_event(self, event)
        self._process.kill()  # no control connection, no worker
        code = self._process.wait()
        with contextlib.suppress(OSError):
            self._control.close()
        self._gone.set()
        self._on_event(self, Exited(reason=f"the process left with status {code}"))

    def send(self, command: Command, files: tuple[int, ...] = ()) -> None:
        with contextlib.suppress(OSError):  # Exited says why
            self._control.send(command, files)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def join(self, timeout_s: float) -> bool:
        return self._gone.wait(timeout_s)


class PlainEngine:
    """Starts workers; see `cutset.engines.protocol.Engine`."""

    name = "plain"
    shares_memory = False

    def __init__(self, devices: tuple[str, ...], num_threads: int) -> None:
        self._devices = devices
        self._num_threads = num_threads
        self._workers: list[PlainWorker] = []

    def device_of(self, stage: int) -> str:
        return self._devices[stage]

    def start(
        self,
        stage: int,
        on_event: Callable[[WorkerHandle, Event], None],
        link_files: tuple[int, ...],
    ) -> PlainWorker:
        assert not link_files  # it shares no memory
        try:
            worker = PlainWorker(stage, self._num_threads, on_event)
        except OSError as error:
            raise EngineError(f"a worker cannot be started: {error}") from error
        self._workers.append(worker)
        return worker

    def standing(self) -> None:
        """Nothing to prepare for the next loss."""

    def close(self) -> None:
        for worker in self._workers:
            worker.kill()
        for worker in self._workers:
            worker.join(5.0)


class Plain(EngineSettings):
    """What ``--engine plain`` stands for."""

    name = "plain"

    def engine_for(self, bundle: Bundle, *, num_threads: int) -> PlainEngine:
        devices = tuple(stage.device for stage in bundle.manifest.plan.stages)
        return PlainEngine(devices, num_threads)
