"""The engine for many machines: an actor of a Ray cluster for each stage, on its device's node.

Ray keeps membership, placement and authentication, and carries control messages. Tensors never
pass through it: neighbours send them to each other, as the workers of any engine do between hosts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from cutset.cluster.devices import Cluster
from cutset.engines.placement import cluster_of_plan
from cutset.engines.protocol import Event, WorkerHandle
from cutset.engines.ray.host_calls import Host
from cutset.engines.ray.nodes import (
    find_node,
    import_ray,
    join_cluster,
    living_nodes,
    require_nodes,
)
from cutset.engines.ray.programs_on_nodes import all_nodes, programs_on_nodes
from cutset.engines.ray.ray_worker import RayWorker
from cutset.engines.ray.stage_host import make_host
from cutset.engines.registry import EngineSettings, StagePrograms
from cutset.engines.remote_engine import RemoteEngine
from cutset.engines.remote_host import (
    HostAwayError,
    HostEndedError,
    MeasuringHosts,
    require_same_version,
)
from cutset.progress import Progress

if TYPE_CHECKING:
    from cutset.bundles.open import Bundle

_PAUSE_S = 0.25


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

    def measuring_hosts(self) -> AbstractContextManager[MeasuringHosts]:
        """All living nodes of the cluster.

        Raises:
            EngineError: no Ray or no cluster, on entering.
        """
        return all_nodes(self.address)


class RayEngine(RemoteEngine[Host]):
    """Actors of a Ray cluster; see `cutset.engines.protocol.Engine`.

    Args:
        bundle: whose stages run.
        settings: which cluster.
        num_threads: threads that each worker computes with.

    Raises:
        EngineError: as `RayCluster.engine_for`.
    """

    name = "ray"

    def __init__(self, bundle: Bundle, settings: RayCluster, *, num_threads: int) -> None:
        super().__init__(
            bundle,
            settings.cluster,
            replan_after_s=settings.replan_after_s,
            num_threads=num_threads,
        )
        self._addresses = {device.name: device.address for device in self._cluster.devices}
        self._shunned: set[str] = set()
        self._ray = import_ray()
        self._joined = join_cluster(self._ray, settings.address)
        try:
            require_nodes(
                living_nodes(self._ray),
                {name: self._addresses.get(name) for name in self._placement},
            )
            machine = self._cluster.caller_machine
            own = None if machine is None else machine.address
            self.host: str = own or self._ray.util.get_node_ip_address()
        except BaseException:
            self.close()
            raise

    def _new_worker(self, stage: int, on_event: Callable[[WorkerHandle, Event], None]) -> RayWorker:
        return RayWorker(self, stage, on_event)

    def close(self) -> None:
        """Ends every actor, and leaves the cluster if this engine joined it."""
        if self._closed.is_set():
            return
        super().close()
        if self._joined:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._ray.shutdown()

    def _new_host(self, device: str, ended: threading.Event) -> Host:
        begun_s = time.monotonic()
        limit_s = self._limit_s(device)
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
            host = Host(self._ray, make_host(self._ray, node.node_id), node, device, ended)
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
            require_same_version(about, device)
            return host
        waited_s = time.monotonic() - begun_s
        raise HostAwayError(f"device {device} stayed away for {waited_s:.0f} s: {reason}")

    def _returned(self, lost: Collection[str]) -> set[str]:
        nodes = [n for n in living_nodes(self._ray) if n.node_id not in self._shunned]
        return {name for name in lost if find_node(nodes, name, self._addresses.get(name))}
