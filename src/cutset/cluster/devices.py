"""Devices, the directed links between them, and what several share, as values.

`cutset.cluster.wires` says what a message occupies; `cutset.cluster.cluster_file` reads and writes
all of it as a file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from difflib import get_close_matches

import msgspec

from cutset.cluster.wires import Medium, Port, Wires
from cutset.errors import PlanError


class Link(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What it costs to send: ``latency_s + num_bytes / bandwidth_bytes_per_s`` seconds.

    Attributes:
        bandwidth_bytes_per_s: above 0; infinity where bytes cost nothing.
        latency_s: seconds that every message costs, 0 or more.
        send_s_per_byte: seconds of computing that the sending device loses for each byte.
        receive_s_per_byte: seconds of computing that the receiving device loses for each byte.
        secured: whether bytes between hosts are encrypted and authenticated.
    """

    bandwidth_bytes_per_s: float = math.inf
    latency_s: float = 0.0
    send_s_per_byte: float = 0.0
    receive_s_per_byte: float = 0.0
    secured: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: the bandwidth is not above 0, or another number negative or not finite.
        """
        if not self.bandwidth_bytes_per_s > 0:
            raise ValueError(f"bandwidth must be above 0, got {self.bandwidth_bytes_per_s}")
        if not 0 <= self.latency_s < math.inf:
            raise ValueError(f"latency must be 0 or more and finite, got {self.latency_s}")
        for name in ("send_s_per_byte", "receive_s_per_byte"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")

    def transfer_s(self, num_bytes: float) -> float:
        """Seconds to send `num_bytes` as one message."""
        return self.latency_s + num_bytes / self.bandwidth_bytes_per_s


class LinkOverride(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The link from `source` to `target`, where it is not what it would be otherwise.

    Attributes:
        source: name of a device, or of the caller's machine.
        target: name of another.
        link: latency and bandwidth between the two.
        medium: name of the medium that it goes over, which it then has for as long as these say;
            None where it is a wire of its own.
    """

    source: str
    target: str
    link: Link
    medium: str | None = None


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place where stages can run.

    Attributes:
        name: unique in a cluster.
        speed: how fast it computes, relative to the device that was profiled; above 0.
        memory_bytes: what a stage may use there; None where memory is no limit.
        profile: file of its own measured costs, or None where `speed` scales another's.
        threads: threads that compute there, or None where nobody said.
        address: where an engine finds it, or None. For the engine ``ssh`` a user, host and port, or
            a name from the ssh configuration.
        listen: its address for its neighbours, where that is not the one that an engine finds out.
        python: the interpreter that runs Cutset there, where an engine starts it.
        folder: where an engine's processes work there, and keep shards; None for the home folder.
        env: variables of their environment, names and values.
        backends: what computes stages there, by full names; None where nobody said.
        worker_bytes: memory of a worker there before it has a stage; None where nobody measured.
        overhead_s: seconds that a stage there cannot compute, for each micro-batch, because its
            messages are received and sent; 0 where cores that do not compute do that.
        port: its connection, which all shares that it sends and receives.
    """

    name: str
    speed: float = 1.0
    memory_bytes: int | None = None
    profile: str | None = None
    threads: int | None = None
    address: str | None = None
    listen: str | None = None
    python: str | None = None
    folder: str | None = None
    env: tuple[tuple[str, str], ...] = ()
    backends: tuple[str, ...] | None = None
    worker_bytes: int | None = None
    overhead_s: float = 0.0
    port: Port = Port()

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: the name is empty, or a number out of its range.
        """
        if not self.name:
            raise ValueError("a device needs a name")
        if not 0 < self.speed < math.inf:
            raise ValueError(f"speed must be above 0 and finite, got {self.speed}")
        if self.memory_bytes is not None and self.memory_bytes < 0:
            raise ValueError(f"memory must be 0 or more, got {self.memory_bytes}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be 1 or more, got {self.threads}")
        _check_overhead(self.overhead_s)


class CallerMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine of a caller that is on none of the devices; it computes nothing.

    Attributes:
        name: what links and media call it.
        address: of its own addresses the one at which the devices reach it; None where an engine
            finds that out.
        port: its connection.
    """

    name: str = "caller"
    address: str | None = None
    port: Port = Port()

    def __post_init__(self) -> None:
        """Checks the name.

        Raises:
            ValueError: it is empty.
        """
        if not self.name:
            raise ValueError("the caller's machine needs a name")


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices and the links between any two of them.

    Attributes:
        devices: at least one; names are unique.
        link: the link between any two that no override names and that are on no common medium.
        overrides: directed exceptions, each pair at most once.
        caller: name of the device, or of `caller_machine`, where rows come from and answers go
            to: then the first stage's inputs and the last stage's outputs cost a transfer on
            other devices. None where the caller's links cost nothing.
        caller_overhead_s: seconds that a stage on the caller's device cannot compute, for each
            micro-batch, because the caller works there; besides the device's own overhead.
        media: what several machines share; two are on one in common, unless an override for them
            says which they use.
        caller_machine: the caller's own, where it is on none of the devices.
        engine: name of the engine that runs bundles on it, where the user names none; or None.
        ssh_config: file of OpenSSH's settings for that engine instead of the user's own, or None.
    """

    devices: tuple[Device, ...]
    link: Link = Link()
    overrides: tuple[LinkOverride, ...] = ()
    caller: str | None = None
    caller_overhead_s: float = 0.0
    media: tuple[Medium, ...] = ()
    caller_machine: CallerMachine | None = None
    engine: str | None = None
    ssh_config: str | None = None

    def __post_init__(self) -> None:
        """Checks names against each other.

        Raises:
            ValueError: no device, a name twice, a link, medium or caller that names no machine,
                an overhead of nobody, or two media between which nothing decides.
        """
        names = [device.name for device in self.devices]
        if not names:
            raise ValueError("a cluster needs at least one device")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"device name {name!r} is used {names.count(name)} times")
        own = None if self.caller_machine is None else self.caller_machine.name
        if own is not None and (own in names or own != self.caller):
            raise ValueError(
                f"caller is {self.caller!r}, and the caller's own machine {own!r}: they are one"
                " name, which no device has"
            )
        if self.caller is not None and self.caller not in (*names, own):
            raise ValueError(f"caller is {self.caller!r}, {no_device(self.caller, names)}")
        _check_overhead(self.caller_overhead_s)
        if self.caller_overhead_s and self.caller not in names:
            raise ValueError("caller_overhead needs a caller on a device")
        ends = names if own is None else [*names, own]
        self._check_overrides(ends)
        self._check_media(ends)

    def _check_media(self, names: list[str]) -> None:
        media = {medium.name: medium for medium in self.media}
        if len(media) < len(self.media):
            raise ValueError("two media have the same name")
        for medium in self.media:
            for name in medium.devices:
                if name not in names:
                    raise ValueError(
                        f"medium {medium.name!r} names {name!r}, {no_device(name, names)}"
                    )
        for override in self.overrides:
            if override.medium is not None:
                ends = override.source, override.target
                joined = media.get(override.medium)
                if joined is None or not {*ends} <= {*joined.devices}:
                    raise ValueError(
                        f"the link from {ends[0]!r} to {ends[1]!r} goes over medium"
                        f" {override.medium!r}, which does not join them"
                    )
        undecided = self.undecided_pair()
        if undecided is not None:
            raise ValueError(two_media(*undecided))

    def undecided_pair(self) -> tuple[str, str, list[str]] | None:
        """Two machines with several media in common and no override, and these; None if none."""
        given = {(o.source, o.target) for o in self.overrides}
        wires = Wires(self)
        for k, medium in enumerate(self.media):
            for other in self.media[k + 1 :]:
                both = [name for name in medium.devices if name in other.devices]
                for pair in itertools.permutations(both, 2):
                    if pair not in given:
                        return (*pair, wires.common_media(*pair))
        return None

    def _check_overrides(self, names: list[str]) -> None:
        pairs = [(override.source, override.target) for override in self.overrides]
        for pair in pairs:
            for name in pair:
                if name not in names:
                    raise ValueError(f"a link names {name!r}, {no_device(name, names)}")
            if pair[0] == pair[1]:
                raise ValueError(f"a link joins {pair[0]!r} to itself")
            if pairs.count(pair) > 1:
                raise ValueError(f"the link from {pair[0]!r} to {pair[1]!r} is given twice")

    @property
    def has_shared_wires(self) -> bool:
        """Whether it says of ports or media, so that links are no wires of their own."""
        ports = [device.port for device in self.devices]
        ports += [] if self.caller_machine is None else [self.caller_machine.port]
        return bool(self.media) or any(port != Port() for port in ports)

    def link_between(self, source: str, target: str) -> Link:
        """What a message alone from `source` to `target` takes; nothing within a device."""
        if source == target:
            return Link()
        way = Wires(self).between(source, target)
        return Link(
            bandwidth_bytes_per_s=way.uses[0].bytes_per_s,
            latency_s=way.uses[0].latency_s,
            send_s_per_byte=way.send_s_per_byte,
            receive_s_per_byte=way.receive_s_per_byte,
            secured=self.secured_between(source, target),
        )

    def secured_between(self, source: str | None, target: str | None) -> bool:
        """Whether bytes from one machine to another are encrypted; None is a caller not named."""
        given = {(o.source, o.target): o.link for o in self.overrides}
        return source == target or given.get((source or "", target or ""), self.link).secured

    def unsecured_links(self, devices: Sequence[str]) -> tuple[int, ...]:
        """Which links of a pipeline between hosts go without keys, as the cluster file wants it.

        Args:
            devices: of the stages, in order.

        Returns:
            Numbers of links: 0 leads from the caller to the first stage.
        """
        ring = itertools.pairwise((self.caller, *devices, self.caller))
        return tuple(i for i, ends in enumerate(ring) if not self.secured_between(*ends))

    def overhead_on(self, device: Device) -> float:
        """Seconds that a stage on `device` cannot compute, for each micro-batch."""
        return device.overhead_s + (self.caller_overhead_s if device.name == self.caller else 0.0)

    def caller_transfer_s(self, device: Device, num_bytes: float, *, back: bool) -> float:
        """Seconds of a message between the caller and a device; 0 where there is no caller.

        Within the caller's own device it takes what its two ends do: half of each overhead, for
        one of two messages.

        Args:
            device: of the first stage or, for the answer, of the last.
            num_bytes: of the message.
            back: True from the device to the caller.
        """
        if self.caller is None:
            return 0.0
        if device.name == self.caller:
            return self.overhead_on(device) / 2
        ends = (device.name, self.caller) if back else (self.caller, device.name)
        return self.link_between(*ends).transfer_s(num_bytes)

    def without(self, *names: str) -> Cluster:
        """The cluster that remains when the devices called `names` are gone.

        A caller that is gone is forgotten, and with it the cost of reaching it.

        Raises:
            ValueError: no device would remain.
        """
        is_gone = self.caller in names
        media = []
        for medium in self.media:
            left = tuple(name for name in medium.devices if name not in names)
            if len(left) > 1:
                media.append(msgspec.structs.replace(medium, devices=left))
        return msgspec.structs.replace(
            self,
            devices=tuple(d for d in self.devices if d.name not in names),
            overrides=tuple(
                o for o in self.overrides if o.source not in names and o.target not in names
            ),
            caller=None if is_gone else self.caller,
            caller_overhead_s=0.0 if is_gone else self.caller_overhead_s,
            media=tuple(media),
            caller_machine=None if is_gone else self.caller_machine,
        )


def _check_overhead(overhead_s: float) -> None:
    if not 0 <= overhead_s < math.inf:
        raise ValueError(f"overhead must be 0 or more and finite, got {overhead_s}")


def equal_cluster(num_devices: int) -> Cluster:
    """`num_devices` equal devices, ``device-0`` ..., with no memory limit and free links.

    Raises:
        PlanError: `num_devices` is below 1.
    """
    if num_devices < 1:
        raise PlanError(f"a plan needs at least 1 stage, got {num_devices}")
    return Cluster(devices=tuple(Device(name=f"device-{i}") for i in range(num_devices)))


def two_media(source: str, target: str, media: list[str]) -> str:
    """Says that nothing decides over which medium two machines send."""
    return (
        f"{source!r} and {target!r} are both on media {' and '.join(map(repr, media))}, and nothing"
        " says which of them they use; a [[link.between]] for the two with medium = ... does"
    )


def no_device(name: str, names: list[str]) -> str:
    """Says that no device is called `name`, and which were probably meant."""
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return f"which is no device of the cluster; {hint}"
