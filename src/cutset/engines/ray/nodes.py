"""Ray itself: joining a cluster, and which of its nodes is which device."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import signal
import socket
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from cutset.engines.registry import require_package
from cutset.errors import EngineError

_LISTENER_TIMEOUT_S = 10.0
RESOURCE_PREFIX = "device:"
"""A node that was started with the custom resource ``device:NAME`` is the device NAME."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RayNode:
    """A living node of the cluster.

    Attributes:
        node_id: Ray's name for it; another one after every start.
        name: as given to ``ray start --node-name``; its address by default.
        address: of its interface to the cluster.
        devices: names from its custom resources ``device:NAME``.
    """

    node_id: str
    name: str
    address: str
    devices: tuple[str, ...]

    def is_device(self, name: str, address: str | None) -> bool:
        """Whether this node is the device called `name`, which may have an address."""
        return name in (*self.devices, self.name, self.address) or self.address == address


def import_ray() -> Any:
    """The package Ray.

    Raises:
        EngineError: it is not installed.
    """
    require_package("ray", "ray", "cutset[ray]")
    import ray

    return ray


def join_cluster(ray: Any, address: str) -> bool:
    """Makes this process a driver of the cluster at `address`.

    Args:
        ray: the package.
        address: ``HOST:PORT`` of the head, or ``"auto"`` for the cluster of this machine.

    Returns:
        False where this process is in a cluster already, which is then used as it is.

    Raises:
        EngineError: there is no cluster, or it refuses this process.
    """
    if ray.is_initialized():
        return False
    _require_listener(address)
    try:
        with _signal_handlers_kept():
            ray.init(
                address=address,
                namespace=f"cutset-{secrets.token_hex(8)}",
                log_to_driver=False,
                logging_level="error",
            )
    except Exception as error:
        # Ray raises many kinds here, RuntimeError and ValueError among them.
        # To one with the wrong token it says no more than that it cannot connect.
        text = " ".join(str(error).split())
        raise EngineError(
            f"the Ray cluster at {address!r} cannot be joined. Either it is not there: start its"
            " head with `ray start --head`, and have this machine join it with `ray start"
            " --address=HOST:PORT`. Or it refuses this process: set RAY_AUTH_MODE=token, and"
            " RAY_AUTH_TOKEN_PATH to a file with the head's token (by default ~/.ray/auth_token)."
            f" (Ray said: {text[:300]})"
        ) from error
    return True


def _require_listener(address: str) -> None:
    """Checks that something listens at ``HOST:PORT``; Ray itself tries for minutes.

    Raises:
        EngineError: nothing does.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return  # "auto", "ray://HOST:PORT", and what else Ray understands
    try:
        socket.create_connection((host.strip("[]"), int(port)), _LISTENER_TIMEOUT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:  # a port or a host that none can be
        raise EngineError(
            f"nothing listens at {address} ({error}). Is that where the head was started with `ray"
            " start --head --port=PORT`, and does a firewall let this machine reach it?"
        ) from error


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Ray puts its own handler for SIGTERM in place of the caller's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    former = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, former, strict=True):
            if handler is not None:
                signal.signal(number, handler)


def living_nodes(ray: Any) -> tuple[RayNode, ...]:
    """The nodes that Ray holds for alive; a silent one is among them for half a minute.

    Raises:
        EngineError: the head does not answer.
    """
    try:
        entries = ray.nodes()
    except Exception as error:
        raise EngineError(f"Ray's head does not answer: {error}") from error
    return tuple(
        RayNode(
            node_id=entry["NodeID"],
            name=entry.get("NodeName") or entry["NodeManagerAddress"],
            address=entry["NodeManagerAddress"],
            devices=tuple(
                name.removeprefix(RESOURCE_PREFIX)
                for name in entry.get("Resources", {})
                if name.startswith(RESOURCE_PREFIX)
            ),
        )
        for entry in entries
        if entry["Alive"]
    )


def find_node(
    nodes: Sequence[RayNode], device: str, address: str | None, shunned: Collection[str] = ()
) -> RayNode | None:
    """The node that is `device`, or None.

    Args:
        nodes: the living ones.
        device: its name.
        address: its address, where a cluster file gives one.
        shunned: ids of nodes that did not answer; one of them is taken only where there is no
            other. A node that lost its power and came back is there twice for a while.

    Raises:
        EngineError: several nodes could be it.
    """
    found = [node for node in nodes if node.is_device(device, address)]
    fresh = [node for node in found if node.node_id not in shunned]
    candidates = fresh or found
    if len({node.address for node in candidates}) > 1:
        each = ", ".join(f"{node.name} at {node.address}" for node in candidates)
        raise EngineError(
            f"device {device!r} could be any of several nodes: {each}; give each node a name of"
            " its own with `ray start --node-name`"
        )
    return candidates[-1] if candidates else None


def require_nodes(nodes: Sequence[RayNode], devices: Mapping[str, str | None]) -> None:
    """Checks that every device (name to address) is a node.

    Raises:
        EngineError: one is not; the message says how to make it one.
    """
    for device, address in devices.items():
        if find_node(nodes, device, address) is None:
            known = ", ".join(f"{node.name} at {node.address}" for node in nodes)
            raise EngineError(
                f"no node of the cluster is the plan's device {device!r}; there is {known}. Start"
                f" Ray there with `ray start --address=... --node-name={device}`, or plan with a"
                " cluster file that names the nodes"
            )
