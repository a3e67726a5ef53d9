"""The part of the Ray engine that runs on a node: an actor with one worker process.

The worker is the local engine's: a child process that computes, connected to this one by a socket
pair. This process imports neither torch nor a backend; it receives shards, passes control messages
on, and leaves when its session is silent for too long. Whatever ends it, the worker ends too.

Everything crosses as numbers, text and bytes; control messages are the JSON lines of
`cutset.engines.protocol`, decoded strictly at both ends.
"""

from __future__ import annotations

import collections
import functools
import os
import queue
import threading
import time
from concurrent.futures import Future
from typing import Any

import msgspec

from cutset.engines.local import LocalEngine, LocalWorker
from cutset.engines.node_service import NodeService
from cutset.engines.protocol import Command, Event, WorkerHandle
from cutset.errors import EngineError

GROUPS = {"commands": 1, "files": 1, "events": 1}
"""Ray runs the calls of a group one after the other in order, and the groups side by side."""

LEASE_S = 20.0
"""A host ends itself after so many seconds in which its session did not ask for anything."""

LINGER_S = 1.0
_START_TIMEOUT_S = 30.0
_LEASE_CHECK_S = 0.5


class StageHost(NodeService):
    """Serves a node as `NodeService` does, and runs one worker; see the module.

    Args:
        lease_s: it ends itself after so many seconds in which nobody asked for events.
        linger_s: how long a call for events, or for what a program printed, waits.
    """

    def __init__(self, lease_s: float, linger_s: float) -> None:
        super().__init__(linger_s)
        self._lease_s = lease_s
        self._events: collections.deque[bytes] = collections.deque()
        self._changed = threading.Condition()
        self._engine: LocalEngine | None = None
        self._worker: LocalWorker | None = None
        self._number = 0
        self._commands = msgspec.json.Decoder(Command)
        self._jobs: queue.SimpleQueue[tuple[int, str, Future[None]]] = queue.SimpleQueue()
        # Linux ends a worker with the *thread* that started it; Ray's threads come and go.
        threading.Thread(target=self._keep, name="cutset-host", daemon=True).start()

    # --- commands

    def start_worker(self, num_threads: int, listen_host: str) -> None:
        """Starts a worker process.

        Raises:
            EngineError: the system refuses another process.
        """
        self._touch()
        done: Future[None] = Future()
        self._jobs.put((num_threads, listen_host, done))
        done.result(_START_TIMEOUT_S)

    def command(self, line: bytes) -> None:
        """Hands a control message to the worker."""
        self._touch()
        worker = self._worker
        if worker is not None:
            worker.send(self._commands.decode(line))

    # --- events

    def next_events(self) -> list[bytes]:
        """Waits a little for events of the worker; returns those that came, oldest first."""
        with self._changed:
            self._touch()
            self._changed.wait_for(lambda: bool(self._events), self._linger_s)
            self._touch()
            lines = list(self._events)
            self._events.clear()
        return lines

    # --- inside

    def _keep(self) -> None:
        """Starts workers when asked to, and ends this process when the session is gone."""
        while True:
            try:
                num_threads, listen_host, done = self._jobs.get(timeout=_LEASE_CHECK_S)
            except queue.Empty:
                if time.monotonic() - self._heard_s > self._lease_s:
                    self._leave()
                continue
            try:
                self._start(num_threads, listen_host)
            except EngineError as error:
                done.set_exception(error)
            except Exception as error:  # noqa: BLE001  # this thread must stay, for the next one
                done.set_exception(EngineError(f"a worker cannot be started: {error!r}"))
            else:
                done.set_result(None)

    def _leave(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self.close()
        os._exit(0)

    def _start(self, num_threads: int, listen_host: str) -> None:
        if self._engine is not None:
            self._engine.close()
        with self._changed:
            self._number += 1
            self._events.clear()
        note = functools.partial(self._note, self._number)
        self._engine = LocalEngine(
            ("",),
            num_threads=num_threads,
            keep_spare=False,
            listen_host=listen_host,
        )
        self._worker = self._engine.start(0, note, ())

    def _note(self, number: int, _worker: WorkerHandle, event: Event) -> None:
        with self._changed:
            if number == self._number:  # else a former worker's last words
                self._events.append(msgspec.json.encode(event))
                self._changed.notify_all()


def make_host(ray: Any, node_id: str) -> Any:
    """A `StageHost` on the node; returns Ray's handle at once.

    Args:
        ray: the package, which is imported only where it is needed.
        node_id: Ray's name of the node.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor = ray.remote(
        num_cpus=0,
        max_restarts=0,
        max_task_retries=0,
        concurrency_groups=GROUPS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
    )
    return actor(StageHost).remote(LEASE_S, LINGER_S)
