"""Whether every device of a cluster can be used by ssh, and what mends it where one cannot."""

from __future__ import annotations

import itertools
import secrets
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

import msgspec

from cutset.cluster.devices import Cluster, Device
from cutset.engines.remote_host import HostAwayError
from cutset.engines.ssh.client import Target, targets_of
from cutset.engines.ssh.connection import SshHost, TroubleError, settle_addresses
from cutset.engines.ssh.ssh_engine import GREETING_TIMEOUT_S
from cutset.engines.ssh.troubles import Trouble
from cutset.errors import BundleError
from cutset.progress import Progress, no_progress


class WireState(msgspec.Struct, frozen=True, kw_only=True):
    """What one device reaches another with.

    Attributes:
        target: the other device.
        bytes_per_s: over plain TCP; None where it was not reached.
        latency_s: of a small message, one way.
        problem: why it was not reached, or nothing.
    """

    target: str
    bytes_per_s: float | None = None
    latency_s: float | None = None
    problem: str = ""


class HostState(msgspec.Struct, frozen=True, kw_only=True):
    """One device.

    Attributes:
        name: of the device.
        address: as the cluster file has it; None for the caller's own machine.
        trouble: why it cannot be used; None where it can.
        python: version of its Python.
        cutset: version of its Cutset.
        num_cores: how many threads may compute at once.
        memory_bytes: free memory.
        backends: what computes stages there.
        wires: to the other devices, in the cluster's order.
    """

    name: str
    address: str | None
    trouble: Trouble | None = None
    python: str | None = None
    cutset: str | None = None
    num_cores: int | None = None
    memory_bytes: int | None = None
    backends: tuple[str, ...] = ()
    wires: tuple[WireState, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it can be used, and reaches all others that can."""
        return self.trouble is None and not any(wire.problem for wire in self.wires)


def check_hosts(cluster: Cluster, *, progress: Progress = no_progress) -> tuple[HostState, ...]:
    """Logs in to every device, asks what it has, and measures its wires to the others.

    Args:
        cluster: whose devices.
        progress: told of every step.

    Raises:
        EngineError: there is no ssh, or an address is none.
    """
    targets = list(targets_of(cluster).values())
    progress("logging in")
    hosts: dict[str, SshHost] = {}
    try:
        with ThreadPoolExecutor(len(targets)) as pool:
            reached = list(pool.map(reach, targets))
        for host in reached:
            if isinstance(host, SshHost):
                hosts[host.device] = host
        settle_addresses(cluster, list(hosts.values()))
        states = {
            target.device.name: _state_of(target, found)
            for target, found in zip(targets, reached, strict=True)
        }
        able = {name: hosts[name] for name, state in states.items() if state.trouble is None}
        wires: dict[str, list[WireState]] = {name: [] for name in able}
        for source, target in itertools.permutations(able, 2):
            progress(f"measuring {source} -> {target}")
            wires[source].append(_wire(able[source], able[target]))
    finally:
        for ending in [host.kill() for host in hosts.values()]:
            ending.join(1.0)
    return tuple(
        msgspec.structs.replace(state, wires=tuple(wires.get(name, ())))
        for name, state in states.items()
    )


def reach(target: Target) -> SshHost | Trouble:
    """Logs in to a device; says why where that does not work."""
    try:
        return SshHost(target, threading.Event(), timeout_s=GREETING_TIMEOUT_S)
    except TroubleError as error:
        return error.trouble


def _state_of(target: Target, found: SshHost | Trouble) -> HostState:
    device = target.device
    if isinstance(found, Trouble):
        return HostState(name=device.name, address=device.address, trouble=found)
    try:
        facts, backends = found.ask("facts"), tuple(found.ask("backends"))
    except (HostAwayError, BundleError) as error:
        trouble = Trouble(kind="other", text=str(error), mend="")
        return HostState(name=device.name, address=device.address, trouble=trouble)
    return HostState(
        name=device.name,
        address=device.address,
        trouble=_trouble_with(device, backends),
        python=found.about["python"],
        cutset=found.about["cutset"],
        num_cores=facts["num_cores"],
        memory_bytes=facts["memory_bytes"],
        backends=backends,
    )


def _trouble_with(device: Device, backends: Collection[str]) -> Trouble | None:
    if not backends:
        return Trouble(
            kind="cutset",
            text="no backend there can compute a stage",
            mend="`cutset hosts install --cluster FILE`, or install onnxruntime or torch there",
        )
    lacking = [name for name in device.backends or () if name not in backends]
    if lacking:
        return Trouble(
            kind="backend",
            text=f"it has {', '.join(backends)}, and not {', '.join(lacking)} of the cluster file",
            mend="install that there, or take it out of the device's backends",
        )
    return None


def pairs_without_keys(cluster: Cluster) -> tuple[tuple[str, str], ...]:
    """The machines between which rows are neither encrypted nor their senders proven.

    The caller's machine is among them by its name, or as ``"the caller"``.
    """
    names: list[str | None] = [device.name for device in cluster.devices]
    if cluster.caller not in names:
        names.insert(0, cluster.caller)
    return tuple(
        (a or "the caller", b or "the caller")
        for a, b in itertools.combinations(names, 2)
        if not (cluster.secured_between(a, b) and cluster.secured_between(b, a))
    )


def _wire(source: SshHost, target: SshHost) -> WireState:
    """Measures the way from one device to another, while nothing else is measured."""
    token = secrets.token_hex(16)
    to = target.device
    try:
        port = target.ask("open_port", target.address)
        with ThreadPoolExecutor(1) as pool:
            served = pool.submit(target.ask, "serve_wire", token)
            try:
                rate, latency_s = source.ask("measure_wire", target.address, port, token)
            finally:
                served.exception()  # what went wrong is the other end's to say
    except (HostAwayError, BundleError) as error:
        mend = f"let TCP connections from {source.device} to {target.address} through"
        return WireState(target=to, problem=f"{error}; {mend}")
    return WireState(target=to, bytes_per_s=rate, latency_s=latency_s)
