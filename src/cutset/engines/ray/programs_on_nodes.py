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
from cutset.engines.ray.stage_host import LEASE_S, make_host
from cutset.engines.remote_host import MeasuringHosts, require_same_version
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


@contextlib.contextmanager
def all_nodes(address: str) -> Iterator[MeasuringHosts]:
    """A process on every living node of a Ray cluster.

    Args:
        address: of the cluster.

    Raises:
        EngineError: no Ray or no cluster.
    """
    ray = import_ray()
    joined = join_cluster(ray, address)
    hosts: dict[str, Host] = {}
    done, never = threading.Event(), threading.Event()
    try:
        nodes = {node.devices[0] if node.devices else node.name: node for node in living_nodes(ray)}
        for name, node in sorted(nodes.items()):
            hosts[name] = Host(ray, make_host(ray, node.node_id), node, name, never)
        threading.Thread(target=_keep, args=(hosts, done), daemon=True).start()
        yield MeasuringHosts(
            hosts=hosts, caller_address=ray.util.get_node_ip_address(), cluster=None
        )
    finally:
        done.set()
        for host in hosts.values():
            host.kill().join(1.0)
        if joined:
            ray.shutdown()


def _keep(hosts: dict[str, Host], done: threading.Event) -> None:
    """Lets hosts whose turn it is not know that they are still wanted."""
    while not done.wait(LEASE_S / 4):
        for host in hosts.values():
            with contextlib.suppress(Exception):  # whoever asks it next says so
                host.tell("clock")
