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
import platform
import queue
import threading
import time
from concurrent.futures import Future
from typing import Any

import msgspec

from cutset.bundles.cache import Incoming, ShardCache, default_cache_folder, stage_files
from cutset.bundles.manifest import FileEntry
from cutset.engines.local import LocalEngine, LocalWorker
from cutset.engines.protocol import Command, Event, WorkerHandle
from cutset.errors import EngineError
from cutset.version import __version__

GROUPS = {"commands": 1, "files": 1, "events": 1}
"""Ray runs the calls of a group one after the other in order, and the groups side by side."""

LEASE_S = 20.0
"""A host ends itself after so many seconds in which its session did not ask for anything."""

LINGER_S = 1.0
_START_TIMEOUT_S = 30.0
_LEASE_CHECK_S = 0.5


class StageHost:
    """Keeps the shards of a node and runs one worker; see the module.

    Args:
        lease_s: it ends itself after so many seconds in which nobody asked for events.
        linger_s: how long a call for events waits for one.
    """

    def __init__(self, lease_s: float, linger_s: float) -> None:
        self._lease_s = lease_s
        self._linger_s = linger_s
        self._cache = ShardCache(default_cache_folder())
        self._incoming: Incoming | None = None
        self._events: collections.deque[bytes] = collections.deque()
        self._changed = threading.Condition()
        self._engine: LocalEngine | None = None
        self._worker: LocalWorker | None = None
        self._number = 0
        self._commands = msgspec.json.Decoder(Command)
        self._heard_s = time.monotonic()
        self._jobs: queue.SimpleQueue[tuple[int, str, Future[None]]] = queue.SimpleQueue()
        # Linux ends a worker with the *thread* that started it; Ray's threads come and go.
        threading.Thread(target=self._keep, name="cutset-host", daemon=True).start()

    # --- commands

    def hello(self) -> dict[str, str]:
        """What is installed here."""
        self._touch()
        return {
            "cutset": __version__,
            "python": platform.python_version(),
            "pid": str(os.getpid()),
        }

    def clock(self) -> float:
        """This host's monotonic clock."""
        self._touch()
        return time.monotonic()

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

    # --- files

    def missing_manifest(self, entry: tuple[str, int, str]) -> bool:
        """Whether the manifest (path, bytes, sha256) is not here."""
        self._touch()
        return bool(self._cache.missing([_entry(entry)]))

    def missing_files(self, manifest_sha256: str, stage: int) -> list[str]:
        """Paths of the files of `stage` that are not here."""
        self._touch()
        files = stage_files(self._cache.manifest(manifest_sha256), stage)
        return [entry.path for entry in self._cache.missing(files)]

    def begin_file(self, entry: tuple[str, int, str]) -> None:
        """Begins to take a file (path, bytes, sha256)."""
        self._touch()
        if self._incoming is not None:
            self._incoming.abandon()
        self._incoming = self._cache.receive(_entry(entry))

    def append(self, data: bytes) -> None:
        """Takes the next piece of the file."""
        self._touch()
        if self._incoming is None:
            raise EngineError("a piece of a file came, but no file was begun")
        try:
            self._incoming.append(data)
        except BaseException:
            self._incoming.abandon()
            self._incoming = None
            raise

    def finish_file(self) -> None:
        """Checks the file and keeps it."""
        self._touch()
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            raise EngineError("a file was ended, but none was begun")
        try:
            incoming.finish()
        except BaseException:
            incoming.abandon()
            raise

    def stage_folder(self, manifest_sha256: str, stage: int) -> str:
        """The folder with a bundle's manifest and the files of `stage`, all of them here."""
        self._touch()
        return str(self._cache.stage_folder(manifest_sha256, stage))

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

    def _touch(self) -> None:
        self._heard_s = time.monotonic()

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


def make_host(ray: Any, kind: type[StageHost], node_id: str) -> Any:
    """An actor of class `kind` on the node; returns Ray's handle at once.

    Args:
        ray: the package, which is imported only where it is needed.
        kind: `StageHost` or what is made of it.
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
    return actor(kind).remote(LEASE_S, LINGER_S)


def _entry(fields: tuple[str, int, str]) -> FileEntry:
    path, num_bytes, sha256 = fields
    return FileEntry(path=path, num_bytes=num_bytes, sha256=sha256)
