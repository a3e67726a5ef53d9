"""Measuring programs on the nodes of a Ray cluster where a bundle's stages are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from cutset.bundles.open import Bundle
from cutset.cluster.devices import Cluster
from cutset.engines.ray.host_calls import Host
from cutset.engines.ray.nodes import (
    find_node,
    import_ray,
    join_cluster,
    living_nodes,
    require_nodes,
)
from cutset.engines.ray.stage_host import make_host
from cutset.engines.remote_host import require_same_version
from cutset.engines.remote_programs import RemotePrograms
from cutset.progress import Progress


@contextlib.contextmanager
def programs_on_nodes(
    bundle: Bundle, address: str, cluster: Cluster, progress: Progress
) -> Iterator[RemotePrograms]:
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

        def connect(device: str) -> Host:
            node = nodes[device]
            host = Host(ray, make_host(ray, node.node_id), node, device, threading.Event())
            require_same_version(host.ask("hello"), device)
            return host

        yield RemotePrograms(bundle, connect, progress)
    finally:
        if joined:
            ray.shutdown()
