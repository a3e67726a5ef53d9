"""Runs measuring programs on the nodes of a Ray cluster where a bundle's stages are.

One node after the other: nodes that share something do not disturb each other. The shards that a
program needs stay there, for the session that follows.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cutset.bundles.manifest import manifest_file
from cutset.bundles.open import Bundle
from cutset.cluster.devices import Cluster
from cutset.engines.ray.host_calls import Host
from cutset.engines.ray.nodes import (
    RayNode,
    find_node,
    import_ray,
    join_cluster,
    living_nodes,
    require_nodes,
)
from cutset.engines.ray.stage_host import make_host
from cutset.engines.remote_host import HostAwayError, require_same_version
from cutset.errors import EngineError
from cutset.progress import Progress

_JOIN_S = 5.0


class NodePrograms:
    """See `cutset.engines.registry.StagePrograms`; made by `programs_on_nodes`."""

    def __init__(
        self,
        ray: Any,
        bundle: Bundle,
        nodes: dict[str, RayNode],
        progress: Progress,
    ) -> None:
        self._ray = ray
        self._bundle = bundle
        self._nodes = nodes
        self._progress = progress

    def run(
        self, stage: int, program: str, arguments: list[str], *, num_threads: int, limit_s: float
    ) -> str:
        """Runs a program on the node of a stage, and returns what it printed.

        Raises:
            EngineError: it failed, or the node does not answer.
            BundleError: the node cannot keep the stage's shard.
        """
        device = self._bundle.manifest.plan.stages[stage].device
        node = self._nodes[device]
        actor = make_host(self._ray, node.node_id)
        host = Host(self._ray, actor, node, device, threading.Event())
        try:
            self._progress(f"bringing stage {stage} to {device}")
            require_same_version(host.ask("hello"), device)
            folder = Path(self._bundle.directory)
            files = {entry.path: entry for entry in self._bundle.manifest.files}
            there = host.deliver(folder, manifest_file(folder), files, stage)
            self._progress(f"timing stage {stage} on {device}")
            host.ask("start_program", program, [there, *arguments], num_threads)
            return host.program_result(limit_s)
        except HostAwayError as error:
            raise EngineError(str(error)) from error
        finally:
            host.kill().join(_JOIN_S)


@contextlib.contextmanager
def programs_on_nodes(
    bundle: Bundle, address: str, cluster: Cluster, progress: Progress
) -> Iterator[NodePrograms]:
    """Joins a Ray cluster for as long as programs run on its nodes.

    Args:
        bundle: whose stages; their plan names the devices.
        address: of the cluster.
        cluster: the devices' addresses.
        progress: told of every step.

    Raises:
        EngineError: no Ray or no cluster, or a device is none of its nodes.
    """
    ray = import_ray()
    joined = join_cluster(ray, address)
    try:
        addresses = {device.name: device.address for device in cluster.devices}
        wanted = {
            stage.device: addresses.get(stage.device) for stage in bundle.manifest.plan.stages
        }
        living = living_nodes(ray)
        require_nodes(living, wanted)
        found = {name: find_node(living, name, where) for name, where in wanted.items()}
        nodes = {name: node for name, node in found.items() if node is not None}
        yield NodePrograms(ray, bundle, nodes, progress)
    finally:
        if joined:
            ray.shutdown()
