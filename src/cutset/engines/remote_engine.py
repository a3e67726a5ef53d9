"""What engines for several hosts share: delivery of shards, and devices that do not answer.

A host receives the files of its own stage only, and keeps them. When a device does not answer, its
stage waits for it; one that stays away for `replan_after_s` is given up, and the stages are placed
on those that remain. One that comes back gets its stages again. Where only the way between two
devices is gone for so long, the stages are placed so that those are no neighbours.
"""

from __future__ import annotations

import abc
import logging
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Generic

from cutset.bundles.manifest import manifest_file
from cutset.cluster.devices import Cluster
from cutset.engines.placement import (
    cluster_of_plan,
    links_of,
    place_stages,
    require_backends,
)
from cutset.engines.protocol import Event, Exited, WorkerHandle
from cutset.engines.remote_host import HostAwayError
from cutset.engines.remote_worker import HostT, RemoteWorker
from cutset.errors import EngineError

if TYPE_CHECKING:
    from cutset.bundles.open import Bundle

_LOG = logging.getLogger(__name__)

_FIRST_LIMIT_S = 60.0
_JOIN_S = 5.0


class RemoteEngine(abc.ABC, Generic[HostT]):
    """Processes of other hosts; see `cutset.engines.protocol.Engine`.

    Args:
        bundle: whose stages run.
        cluster: the devices; where None, what the bundle's plan tells of them.
        replan_after_s: a device that stays away for so long is given up; above 0.
        num_threads: threads that each worker computes with.

    Raises:
        ValueError: `replan_after_s` is not above 0.
    """

    shares_memory = False

    def __init__(
        self, bundle: Bundle, cluster: Cluster | None, *, replan_after_s: float, num_threads: int
    ) -> None:
        if not replan_after_s > 0:
            raise ValueError(f"replan_after_s must be above 0, got {replan_after_s}")
        self.num_threads = num_threads
        self._bundle = bundle
        # Shards are sent again to a node that lost them, after the caller may have gone elsewhere.
        self._folder = Path(bundle.directory).absolute()
        self._replan_after_s = replan_after_s
        self._cluster = cluster or cluster_of_plan(bundle.manifest.plan)
        self._lock = threading.RLock()
        self._workers: list[RemoteWorker[HostT]] = []
        self._current: dict[int, RemoteWorker[HostT]] = {}
        self._hosts: dict[int, HostT] = {}
        self._lost: set[str] = set()
        self._first_s: dict[str, float] = {}
        self._deliveries: dict[str, threading.Lock] = {}
        self._closed = threading.Event()
        self._placement = place_stages(bundle.manifest, self._cluster, ())
        self._have_stood: set[frozenset[str]] = set()
        self._cut: set[frozenset[str]] = set()
        self._failing_since_s: dict[frozenset[str], float] = {}
        declared = {device.name: device.backends for device in self._cluster.devices}
        for stage, device in enumerate(self._placement):
            if (names := declared.get(device)) is not None:
                require_backends(bundle.manifest, stage, device, names)
        self._manifest_entry = manifest_file(self._folder)

    @abc.abstractmethod
    def _new_worker(
        self, stage: int, on_event: Callable[[WorkerHandle, Event], None]
    ) -> RemoteWorker[HostT]:
        """A worker that has not begun."""

    @abc.abstractmethod
    def _new_host(self, device: str, ended: threading.Event) -> HostT:
        """A process on `device`, once that answers.

        Raises:
            HostAwayError: it does not within `_limit_s`.
            HostEndedError: nobody wants it any more.
            EngineError: it can never run this bundle.
        """

    @abc.abstractmethod
    def _returned(self, lost: Collection[str]) -> set[str]:
        """Which of the devices that were given up answer again."""

    def device_of(self, stage: int) -> str:
        """Name of the device that `stage` runs on now."""
        return self._placement[stage]

    def unsecured_links(self) -> tuple[int, ...]:
        """Numbers of the links that go without keys, as the cluster file wants it."""
        unsecured = self._cluster.unsecured_links(self._placement)
        if unsecured:
            _LOG.warning("links %s go without keys", ", ".join(map(str, unsecured)))
        return unsecured

    def start(
        self,
        stage: int,
        on_event: Callable[[WorkerHandle, Event], None],
        link_files: tuple[int, ...],
    ) -> RemoteWorker[HostT]:
        """Starts a worker on the stage's device, without waiting for it."""
        assert not link_files, "memory is not shared between hosts"
        worker = self._new_worker(stage, on_event)
        with self._lock:
            self._workers = [other for other in self._workers if not other.join(0)]
            self._workers.append(worker)
            self._current[stage] = worker
        worker.begin()
        return worker

    def link_lost(self, link: int) -> bool:
        """Waits for a wire that once stood, and after `replan_after_s` does without it."""
        with self._lock:
            ends = links_of(self._placement, self._cluster.caller)[link]
            if ends not in self._have_stood:
                return False
            now_s = time.monotonic()
            if now_s < self._failing_since_s.setdefault(ends, now_s) + self._replan_after_s:
                return True
            _LOG.warning("nothing passes between %s", " and ".join(sorted(ends)))
            try:
                self._place(self._lost, None, self._cut | {ends})
            except EngineError as reason:
                _LOG.warning("%s; it is waited for", reason)
        return True

    def standing(self) -> None:
        """Notes which wires carry the pipeline."""
        with self._lock:
            self._failing_since_s.clear()
            ways = links_of(self._placement, self._cluster.caller)
            self._have_stood.update(ends for ends in ways if len(ends) > 1)

    def close(self) -> None:
        """Ends every process on every host."""
        if self._closed.is_set():
            return
        self._closed.set()
        with self._lock:
            workers, self._workers = self._workers, []
            hosts, self._hosts = list(self._hosts.values()), {}
        for worker in workers:
            worker.kill()
        deadline_s = time.monotonic() + _JOIN_S
        for ending in [host.kill() for host in hosts]:
            ending.join(max(0.0, deadline_s - time.monotonic()))
        for worker in workers:
            worker.finish(max(0.0, deadline_s - time.monotonic()))

    # --- what workers use

    def find_host(self, stage: int, ended: threading.Event) -> HostT:
        """A process on the stage's device, ready to start a worker; waits for it if need be.

        Raises:
            HostEndedError: the worker ended meanwhile.
            EngineError: the device stays away and the stages find no other place; or it cannot
                run this bundle.
        """
        self._welcome_back()
        while True:
            device = self._placement[stage]
            with self._lock:
                host = self._hosts.pop(stage, None)
            if host is not None and host.device == device:
                try:
                    host.ended = ended
                    host.ask("hello", timeout_s=self._replan_after_s)
                except HostAwayError:
                    host.kill()
                else:
                    return host
            elif host is not None:
                host.kill()
            begun_s = time.monotonic()
            try:
                host = self._new_host(device, ended)
            except HostAwayError as error:
                self._give_up(device, stage, error)
            else:
                self._first_s.setdefault(device, time.monotonic() - begun_s)
                return host

    def put_back(self, stage: int, kept: HostT | None, host: HostT) -> None:
        """Keeps a host whose worker is gone for the stage's next one, or ends it."""
        with self._lock:
            if kept is not None and not self._closed.is_set():
                self._hosts[stage] = kept
                return
        host.kill()

    def deliver(self, host: HostT, stage: int) -> str:
        """Sends what the node does not have of the stage's files; returns their folder there.

        Raises:
            HostAwayError: the node does not answer.
            BundleError: the node cannot keep them.
            EngineError: nothing there can compute the stage.
        """
        if self._bundle.manifest.stages[stage].model is None:
            names = host.ask("backends")
            require_backends(self._bundle.manifest, stage, host.device, names)
        with self._lock:
            delivery = self._deliveries.setdefault(host.device, threading.Lock())
        files = {entry.path: entry for entry in self._bundle.manifest.files}
        with delivery:
            return host.deliver(self._folder, self._manifest_entry, files, stage)

    # --- inside

    def _limit_s(self, device: str) -> float:
        """How long a device may take to start a process before it is given up.

        A slow node needs long for that; it is given what it needed the first time.
        """
        first_s = self._first_s.get(device)
        return _FIRST_LIMIT_S if first_s is None else self._replan_after_s + 2 * first_s

    def _give_up(self, device: str, stage: int, error: HostAwayError) -> None:
        """Places the stages without `device`.

        Raises:
            EngineError: they find no place.
        """
        with self._lock:
            if device in self._lost:
                return  # another of its stages noticed first
            _LOG.warning("%s; the stages are placed without it", error)
            try:
                self._place(self._lost | {device}, stage)
            except EngineError as reason:
                raise EngineError(f"{error}; {reason}") from reason

    def _welcome_back(self) -> None:
        """Places stages on their own devices again where these came back."""
        with self._lock:
            back = self._returned(self._lost) if self._lost else set()
            if back:
                _LOG.warning("%s came back", ", ".join(sorted(back)))
                # Whatever kept them away may have been what cut their wires too.
                self._place(
                    self._lost - back, None, {ends for ends in self._cut if not ends & back}
                )

    def _place(
        self, lost: set[str], stage: int | None, cut: set[frozenset[str]] | None = None
    ) -> None:
        """Places the stages without `lost`; the workers of those that move end, but `stage`'s.

        Where `cut` says nothing, the wires that were given up stay so.
        """
        before = self._placement
        cut = self._cut if cut is None else cut
        self._placement = place_stages(self._bundle.manifest, self._cluster, lost, cut)
        self._lost, self._cut = lost, cut
        for index, worker in self._current.items():
            device = self._placement[index]
            if index != stage and device != before[index] and worker.has_host:
                reason = f"it moves from {before[index]} to {device}"
                threading.Thread(
                    target=worker.end,
                    args=(Exited(reason=reason, moved=True),),
                    kwargs={"keep_host": False},
                    daemon=True,
                ).start()
        _LOG.warning("stages are placed on %s", ", ".join(self._placement))
