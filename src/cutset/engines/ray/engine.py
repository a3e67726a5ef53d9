"""The engine for many machines: an actor of a Ray cluster for each stage, on its device's node.

Ray keeps membership, placement and authentication, and carries control messages. Tensors never
pass through it: neighbours send them to each other with torch.distributed, as the local engine's
workers would between hosts. A node receives the files of its own stage only, and keeps them.

When a device does not answer, its stage waits for it; one that stays away for `replan_after_s`
is given up, and the stages are placed on those that remain.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from cutset.bundles.manifest import manifest_file
from cutset.cluster.devices import Cluster
from cutset.engines.placement import cluster_of_plan, place_stages
from cutset.engines.protocol import Event, Exited, WorkerHandle
from cutset.engines.ray.host_calls import (
    Host,
    HostAwayError,
    HostEndedError,
    require_same_version,
)
from cutset.engines.ray.nodes import (
    find_node,
    import_ray,
    join_cluster,
    living_nodes,
    require_nodes,
)
from cutset.engines.ray.programs_on_nodes import programs_on_nodes
from cutset.engines.ray.remote_worker import RayWorker
from cutset.engines.ray.stage_host import StageHost, make_host
from cutset.engines.registry import EngineSettings, StagePrograms
from cutset.errors import EngineError
from cutset.progress import Progress

if TYPE_CHECKING:
    from cutset.bundles.open import Bundle

_LOG = logging.getLogger(__name__)

_FIRST_LIMIT_S = 60.0
_PAUSE_S = 0.25
_JOIN_S = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RayCluster(EngineSettings):
    """Which Ray cluster to run on, and how.

    Attributes:
        address: ``HOST:PORT`` of the head, or ``"auto"`` for the cluster that this machine is in.
        replan_after_s: a device that stays away for so long is given up; above 0.
        cluster: speeds, links and addresses of the devices, for that case; where None, what the
            bundle's plan tells of them.
    """

    name = "ray"
    package = "ray"
    install = "cutset[ray]"
    options = frozenset({"address", "replan_after_s", "cluster"})
    # The engine has limits of its own for what can hang; a large shard takes its time.
    start_timeout_s = 900.0

    address: str = "auto"
    replan_after_s: float = 10.0
    cluster: Cluster | None = None

    def engine_for(self, bundle: Bundle, *, num_threads: int) -> RayEngine:
        """Joins the cluster and prepares to run `bundle` there.

        Raises:
            EngineError: Ray is not installed, there is no cluster, it refuses this process, or a
                device of the plan is not one of its nodes.
            ValueError: `replan_after_s` is not above 0.
        """
        if not self.replan_after_s > 0:
            raise ValueError(f"replan_after_s must be above 0, got {self.replan_after_s}")
        return RayEngine(bundle, self, num_threads=num_threads)

    def stage_programs(
        self, bundle: Bundle, progress: Progress
    ) -> AbstractContextManager[StagePrograms]:
        """Runs programs on the nodes that the bundle's stages will be on.

        Raises:
            EngineError: as `engine_for`, on entering.
        """
        cluster = self.cluster or cluster_of_plan(bundle.manifest.plan)
        return programs_on_nodes(bundle, self.address, cluster, progress)


class RayEngine:
    """Actors of a Ray cluster; see `cutset.engines.protocol.Engine`.

    Args:
        bundle: whose stages run.
        settings: which cluster.
        num_threads: threads that each worker computes with.

    Raises:
        EngineError: as `RayCluster.engine_for`.
    """

    name = "ray"
    shares_memory = False

    def __init__(self, bundle: Bundle, settings: RayCluster, *, num_threads: int) -> None:
        self.num_threads = num_threads
        self._bundle = bundle
        # Shards are sent again to a node that lost them, after the caller may have gone elsewhere.
        self._folder = Path(bundle.directory).absolute()
        self._settings = settings
        self._cluster = settings.cluster or cluster_of_plan(bundle.manifest.plan)
        self._addresses = {device.name: device.address for device in self._cluster.devices}
        self._ray = import_ray()
        self._joined = join_cluster(self._ray, settings.address)
        self._lock = threading.RLock()
        self._workers: list[RayWorker] = []
        self._current: dict[int, RayWorker] = {}
        self._hosts: dict[int, Host] = {}
        self._lost: set[str] = set()
        self._shunned: set[str] = set()
        self._first_s: dict[str, float] = {}
        self._deliveries: dict[str, threading.Lock] = {}
        self._closed = threading.Event()
        try:
            self._placement = place_stages(bundle.manifest, self._cluster, ())
            require_nodes(
                living_nodes(self._ray),
                {name: self._addresses.get(name) for name in self._placement},
            )
            self.host: str = self._ray.util.get_node_ip_address()
            self._manifest_entry = manifest_file(self._folder)
        except BaseException:
            self.close()
            raise

    def device_of(self, stage: int) -> str:
        """Name of the device that `stage` runs on now."""
        return self._placement[stage]

    def start(
        self,
        stage: int,
        on_event: Callable[[WorkerHandle, Event], None],
        link_files: tuple[int, ...],
    ) -> RayWorker:
        """Starts a worker on the stage's node, without waiting for it."""
        assert not link_files, "memory is not shared between hosts"
        worker = RayWorker(self, stage, on_event)
        with self._lock:
            self._workers = [other for other in self._workers if not other.join(0)]
            self._workers.append(worker)
            self._current[stage] = worker
        worker.begin()
        return worker

    def standing(self) -> None:
        """Nothing to prepare: a node's host process stays when its worker dies."""

    def close(self) -> None:
        """Ends every actor, and leaves the cluster if this engine joined it."""
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
        if self._joined:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._ray.shutdown()

    # --- what workers use

    def find_host(self, stage: int, ended: threading.Event) -> Host:
        """A process on the stage's node, ready to start a worker; waits for it if need be.

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
                    host.ask("hello", timeout_s=self._settings.replan_after_s)
                except HostAwayError:
                    host.kill()
                else:
                    return host
            elif host is not None:
                host.kill()
            try:
                return self._new_host(device, ended)
            except HostAwayError as error:
                self._give_up(device, stage, error)

    def put_back(self, stage: int, kept: Host | None, host: Host) -> None:
        """Keeps a host whose worker is gone for the stage's next one, or ends it."""
        with self._lock:
            if kept is not None and not self._closed.is_set():
                self._hosts[stage] = kept
                return
        host.kill()

    def deliver(self, host: Host, stage: int) -> str:
        """Sends what the node does not have of the stage's files; returns their folder there.

        Raises:
            HostAwayError: the node does not answer.
            BundleError: the node cannot keep them.
        """
        with self._lock:
            delivery = self._deliveries.setdefault(host.device, threading.Lock())
        files = {entry.path: entry for entry in self._bundle.manifest.files}
        with delivery:
            return host.deliver(self._folder, self._manifest_entry, files, stage)

    # --- inside

    def _new_host(self, device: str, ended: threading.Event) -> Host:
        """An actor on the node of `device`, once that answers.

        Raises:
            HostAwayError: it does not in time.
        """
        begun_s = time.monotonic()
        first_s = self._first_s.get(device)
        # A slow node needs long to start a process; it is given what it needed the first time.
        limit_s = _FIRST_LIMIT_S if first_s is None else self._settings.replan_after_s + 2 * first_s
        reason = "it is not in the cluster"
        while (left_s := begun_s + limit_s - time.monotonic()) > 0:
            if ended.is_set():
                raise HostEndedError
            node = find_node(
                living_nodes(self._ray), device, self._addresses.get(device), self._shunned
            )
            if node is None:
                ended.wait(_PAUSE_S)
                continue
            host = Host(
                self._ray, make_host(self._ray, StageHost, node.node_id), node, device, ended
            )
            try:
                about = host.ask("hello", timeout_s=left_s)
            except HostAwayError as error:
                reason = str(error)
                host.kill()
                self._shunned.add(node.node_id)
                ended.wait(_PAUSE_S)
                continue
            except HostEndedError:
                host.kill()
                raise
            self._first_s.setdefault(device, time.monotonic() - begun_s)
            require_same_version(about, device)
            return host
        waited_s = time.monotonic() - begun_s
        raise HostAwayError(f"device {device} stayed away for {waited_s:.0f} s: {reason}")

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
            if not self._lost:
                return
            nodes = [n for n in living_nodes(self._ray) if n.node_id not in self._shunned]
            back = {
                name for name in self._lost if find_node(nodes, name, self._addresses.get(name))
            }
            if back:
                _LOG.warning("%s came back", ", ".join(sorted(back)))
                self._place(self._lost - back, None)

    def _place(self, lost: set[str], stage: int | None) -> None:
        """Places the stages without `lost`; the workers of those that move end, but `stage`'s."""
        before = self._placement
        self._placement = place_stages(self._bundle.manifest, self._cluster, lost)
        self._lost = lost
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
