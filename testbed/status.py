"""How a testbed is, node by node."""

from __future__ import annotations

import msgspec

from testbed import network
from testbed.cgroups import Cgroups
from testbed.faults import has_raylet
from testbed.layout import Node
from testbed.nodes import group_of, processes_on
from testbed.state import State


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node, now.

    Attributes:
        name: of the device.
        address: of its interface.
        cores: its share.
        memory_use_bytes: what its processes use.
        memory_bytes: what they may use; None where memory is no limit.
        num_processes: how many there are.
        raylet: whether Ray's daemon runs.
        sshd: whether an ssh server listens.
        frozen: whether it was frozen.
        cut_from: nodes that it is cut off from; ``("all",)`` where its cable is out.
    """

    name: str
    address: str
    cores: float
    memory_use_bytes: int
    memory_bytes: int | None
    num_processes: int
    raylet: bool
    sshd: bool
    frozen: bool
    cut_from: tuple[str, ...]


def status_of(state: State, cgroups: Cgroups, node: Node) -> NodeStatus:
    """Looks at `node`."""
    group = group_of(state.layout, node)
    lines = processes_on(state, cgroups, node).values()
    return NodeStatus(
        name=node.name,
        address=node.address,
        cores=node.cores,
        memory_use_bytes=cgroups.memory_use_bytes(group),
        memory_bytes=node.memory_bytes,
        num_processes=len(lines),
        raylet=has_raylet(lines),
        sshd=any("sshd: " in line and "[listener]" in line for line in lines),
        frozen=cgroups.is_frozen(group),
        cut_from=tuple(network.cuts_of(state.layout, node)),
    )


def describe(status: NodeStatus) -> str:
    """One line for people."""
    mib = 2**20
    limit = "" if status.memory_bytes is None else f" of {status.memory_bytes / mib:.0f}"
    parts = [
        f"{status.name:<12} {status.address:<15} {status.cores:5.0%} of a core",
        f"{status.memory_use_bytes / mib:.0f}{limit} MiB",
        f"{status.num_processes} processes",
        "sshd" if status.sshd else "raylet" if status.raylet else "no raylet",
    ]
    if status.frozen:
        parts.append("frozen")
    if status.cut_from:
        parts.append(f"cut off from {', '.join(status.cut_from)}")
    return ", ".join(parts)
