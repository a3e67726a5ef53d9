"""From a cluster file to the numbers and names of a testbed; nothing is touched here."""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from cutset.cluster.devices import Cluster, Device
from cutset.cluster.ssh_address import read_ssh_address
from cutset.cluster.wires import Port, Wires
from testbed.errors import TestbedError

RAY_BYTES = 512 * 2**20
"""A device's memory is what a stage may use; Ray's own processes get this much beside it. They
take 155 MiB on an idle node (Ray 2.60: raylet, two agents, log monitor), and the workers that it
keeps ready come on top."""

PAYLOAD_SHARE = 1448 / 1514
"""Bytes of payload in a byte on the wire: TCP with time stamps over Ethernet, frames of 1500
bytes. A cluster file's bandwidth counts bytes of tensors, so the bucket is that much larger."""

_ROUNDING = 1e-9
_NAME = re.compile(r"[a-z0-9]{1,12}")
_SUBNET = ipaddress.IPv4Network("10.77.0.0/24")


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A device as the testbed builds it.

    Attributes:
        name: of the device.
        index: counts the nodes from 0, which is Ray's head.
        address: IPv4 address of its one interface.
        namespace: name of its network namespace.
        cores: its share of the processor, above 0: 0.5 is half a core.
        cpus: the machine's processors that it runs on, by number.
        num_threads: what Ray counts as its processors.
        memory_bytes: what its processes may use in all; None where memory is no limit.
    """

    name: str
    index: int
    address: str
    namespace: str
    cores: float
    cpus: tuple[int, ...]
    num_threads: int
    memory_bytes: int | None


class Rate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The token bucket between two nodes, one way: payload in bytes per second."""

    source: str
    target: str
    bytes_per_s: float


class SharedWire(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One token bucket for several pairs of nodes.

    Attributes:
        name: as plans call it: ``"medium air"``, ``"port out of pi-1"``.
        kind: ``"out"`` and ``"in"`` are a node's port, one way; ``"half"`` is one for both ways;
            a ``"medium"`` is passed by all that its nodes send each other.
        nodes: names of those on it; one, but for a medium.
        bytes_per_s: payload in a second. Of a medium that relays half of what it carries, as every
            frame is on it twice.
    """

    name: str
    kind: Literal["out", "in", "half", "medium"]
    nodes: tuple[str, ...]
    bytes_per_s: float


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A testbed as names and numbers.

    Attributes:
        name: told apart from other testbeds by it; part of all that is made.
        nodes: in the order of the cluster file; the caller's first.
        rates: of the directed pairs that have a limit of their own.
        shared: what several pairs share.
        notices: what the cluster file asks for and the testbed cannot give.
    """

    name: str
    nodes: tuple[Node, ...]
    rates: tuple[Rate, ...]
    notices: tuple[str, ...]
    shared: tuple[SharedWire, ...] = ()

    @property
    def prefix(self) -> str:
        """What the names of its namespaces and control groups begin with."""
        return prefix_of(self.name)

    @property
    def switch(self) -> str:
        """Name of the namespace that holds the bridge."""
        return f"{self.prefix}switch"

    @property
    def head(self) -> Node:
        """The node that runs Ray's head."""
        return self.nodes[0]

    def node(self, name: str) -> Node:
        """The node called `name`.

        Raises:
            TestbedError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise TestbedError(f"testbed {self.name!r} has no node {name!r}; it has {known}")


def prefix_of(name: str) -> str:
    """What the names of everything that testbed `name` makes begin with.

    Raises:
        TestbedError: the name is none.
    """
    if not _NAME.fullmatch(name):
        raise TestbedError(
            f"a testbed cannot be called {name!r}: 1 to 12 small letters and digits, for"
            " it becomes part of the names of namespaces and sockets, which are short"
        )
    return f"cutset-{name}-"


def layout_of(
    cluster: Cluster, *, name: str, machine_cpus: Sequence[int], spare_bytes: int = RAY_BYTES
) -> Layout:
    """Says what testbed `name` of `cluster` is made of, on a machine with these processors.

    Ray's head is the cluster's caller, or else its first device. A caller's own machine is a node
    that may use the whole machine's processors. `spare_bytes` are a node's memory beside what a
    stage may use there.

    Raises:
        TestbedError: the name, an address or a speed that cannot be had.
    """
    prefix = prefix_of(name)
    devices = sorted(cluster.devices, key=lambda device: device.name != cluster.caller)
    own = cluster.caller_machine
    taken = {device.address for device in devices} | {own.address if own else None}
    free = (str(host) for host in _SUBNET.hosts() if str(host) not in taken)
    cores = [_cores(device, len(machine_cpus)) for device in devices]
    cpus = _places(cores, machine_cpus)
    nodes = []
    if own is not None:
        nodes.append(
            Node(
                name=own.name,
                index=0,
                address=_address(own.name, own.address, free),
                namespace=f"{prefix}0",
                cores=float(len(machine_cpus)),
                cpus=tuple(machine_cpus),
                num_threads=1,
                memory_bytes=None,
            )
        )
    for index, device in enumerate(devices):
        memory, place = device.memory_bytes, len(nodes)
        nodes.append(
            Node(
                name=device.name,
                index=place,
                address=_address(device.name, device.address, free),
                namespace=f"{prefix}{place}",
                cores=cores[index],
                cpus=cpus[index],
                num_threads=device.threads or 1,
                memory_bytes=None if memory is None else memory + spare_bytes,
            )
        )
    addresses = [node.address for node in nodes]
    for node in nodes:
        if addresses.count(node.address) > 1:
            raise TestbedError(f"address {node.address} of {node.name} belongs to two devices")
    return Layout(
        name=name,
        nodes=tuple(nodes),
        rates=_rates(cluster),
        shared=_shared(cluster),
        notices=tuple(_notices(cluster, nodes, len(machine_cpus))),
    )


def _address(name: str, wanted: str | None, free: Iterator[str]) -> str:
    if wanted is None:
        address = next(free, None)
        if address is None:
            raise TestbedError(f"device {name}: the addresses of {_SUBNET} are used up")
        return address
    try:
        return str(ipaddress.IPv4Address(read_ssh_address(wanted).host))
    except ValueError:
        raise TestbedError(
            f"device {name}: address {wanted!r} is no IPv4 address; leave it out,"
            " and the testbed chooses one"
        ) from None


def _cores(device: Device, machine_cores: int) -> float:
    threads = device.threads or 1
    if device.speed > 1 or device.speed * threads > machine_cores:
        raise TestbedError(
            f"device {device.name}: speed {device.speed:g} on {threads} threads cannot be had: a"
            f" thread here has speed 1 at most, and the machine {machine_cores} cores; divide the"
            " speeds of all devices by the same number"
        )
    return device.speed * threads


def _places(cores: Sequence[float], machine_cpus: Sequence[int]) -> list[tuple[int, ...]]:
    """The processors of each node, as few as its share needs; those with the most room first.

    A share is handed out by processor and in slices, and what is left of a slice on one is lost to
    the others: a node with half a core that wanders over two gets much less than that. Nodes that
    together want more than there is may run everywhere.
    """
    room = dict.fromkeys(machine_cpus, 1.0)
    places: list[tuple[int, ...]] = [tuple(machine_cpus)] * len(cores)
    if sum(cores) > len(machine_cpus) + _ROUNDING:
        return places
    for index in sorted(range(len(cores)), key=lambda index: -cores[index]):
        count = math.ceil(cores[index] - _ROUNDING)
        chosen = sorted(room, key=lambda cpu: -room[cpu])[:count]
        if sum(room[cpu] for cpu in chosen) < cores[index] - _ROUNDING:
            chosen = list(machine_cpus)  # no few of them have room for it together
        for cpu in chosen:
            room[cpu] -= cores[index] / len(chosen)
        places[index] = tuple(sorted(chosen))
    return places


def _rates(cluster: Cluster) -> tuple[Rate, ...]:
    """Of the pairs that a wire of their own limits; what they share with others limits the rest."""
    wires, names = Wires(cluster), list(_ports(cluster))
    ways = ((pair, wires.between(*pair)) for pair in itertools.permutations(names, 2))
    return tuple(
        Rate(source=source, target=target, bytes_per_s=way.uses[0].bytes_per_s)
        for (source, target), way in ways
        if not way.limit and not math.isinf(way.uses[0].bytes_per_s)
    )


def _ports(cluster: Cluster) -> dict[str, Port]:
    """The connection of every node by its name."""
    own = cluster.caller_machine
    return {device.name: device.port for device in cluster.devices} | (
        {own.name: own.port} if own else {}
    )


def _shared(cluster: Cluster) -> tuple[SharedWire, ...]:
    """The buckets of ports and media.

    Raises:
        TestbedError: a node is on a medium and has a port in half duplex, or is on two media.
    """
    wires, found = Wires(cluster), []
    for node, port in _ports(cluster).items():
        out, into = wires.port_names(node)
        each: list[tuple[str, Literal["out", "in", "half"], float]] = [
            (out, "out", port.out_bytes_per_s),
            (into, "in", port.in_bytes_per_s),
        ]
        if port.half_duplex:
            each = [(out, "half", min(port.out_bytes_per_s, port.in_bytes_per_s))]
        found += [
            SharedWire(name=name, kind=kind, nodes=(node,), bytes_per_s=rate)
            for name, kind, rate in each
            if not math.isinf(rate)
        ]
        if len(on := [m.name for m in cluster.media if node in m.devices]) > (not port.half_duplex):
            raise TestbedError(
                f"device {node}: a node passes one bucket besides its port's in full duplex;"
                f" it is on {', '.join(on)}{' with a port in half duplex' * port.half_duplex}"
            )
    for medium in cluster.media:
        found.append(
            SharedWire(
                name=f"medium {medium.name}",
                kind="medium",
                nodes=medium.devices,
                bytes_per_s=medium.bandwidth_bytes_per_s / medium.hops,
            )
        )
    return tuple(found)


def _notices(cluster: Cluster, nodes: list[Node], machine_cores: int) -> Iterator[str]:
    names = list(_ports(cluster))
    late = {
        f"{source} -> {target} ({link.latency_s * 1e3:g} ms)"
        for source, target in itertools.permutations(names, 2)
        if (link := cluster.link_between(source, target)).latency_s > 0
    }
    if late:
        yield (
            "latency is not emulated: messages take what the bridge takes, about 0.1 ms; the"
            f" cluster file asks for {', '.join(sorted(late))}"
        )
    devices = {device.name for device in cluster.devices}
    total = sum(node.cores for node in nodes if node.name in devices)
    if total > machine_cores:
        yield (
            f"the nodes' shares add up to {total:g} cores and the machine has {machine_cores}:"
            " none is kept to processors of its own, and busy nodes take from one another, so that"
            " nothing that is timed there is what the shares say"
        )
    for device in cluster.devices:
        if device.profile is not None:
            yield (
                f"{device.name} has a profile of its own, which says nothing of this machine; it"
                f" gets the share that its speed says, {device.speed:g}"
            )
