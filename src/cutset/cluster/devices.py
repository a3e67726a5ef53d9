"""Devices and the directed links between them, as values.

`cutset.cluster.cluster_file` reads and writes them as a file.
"""

from __future__ import annotations

import math
from difflib import get_close_matches

import msgspec

from cutset.errors import PlanError


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it costs to send: ``latency_s + num_bytes / bandwidth_bytes_per_s`` seconds.

    Attributes:
        bandwidth_bytes_per_s: above 0; infinity where bytes cost nothing.
        latency_s: seconds that every message costs, 0 or more.
        send_s_per_byte: seconds of computing that the sending device loses for each byte.
        receive_s_per_byte: seconds of computing that the receiving device loses for each byte.
    """

    bandwidth_bytes_per_s: float = math.inf
    latency_s: float = 0.0
    send_s_per_byte: float = 0.0
    receive_s_per_byte: float = 0.0

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
    """The link from device `source` to device `target`, where it is not the default one."""

    source: str
    target: str
    link: Link


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A place where stages can run.

    Attributes:
        name: unique in a cluster.
        speed: how fast it computes, relative to the device that was profiled; above 0.
        memory_bytes: what a stage may use there; None where memory is no limit.
        profile: file of its own measured costs, or None where `speed` scales another's.
        threads: threads that compute there, or None where nobody said.
        address: where an engine finds it, or None.
        overhead_s: seconds that a stage there cannot compute, for each micro-batch, because its
            messages are received and sent; 0 where cores that do not compute do that.
    """

    name: str
    speed: float = 1.0
    memory_bytes: int | None = None
    profile: str | None = None
    threads: int | None = None
    address: str | None = None
    overhead_s: float = 0.0

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


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Devices and the links between any two of them.

    Attributes:
        devices: at least one; names are unique.
        link: the link between any two that no override names.
        overrides: directed exceptions, each pair at most once.
        caller: name of the device where rows come from and answers go to: then the first
            stage's inputs and the last stage's outputs cost a transfer on other devices. None
            where the caller's links cost nothing.
        caller_overhead_s: seconds that a stage on the caller's device cannot compute, for each
            micro-batch, because the caller works there; besides the device's own overhead.
    """

    devices: tuple[Device, ...]
    link: Link = Link()
    overrides: tuple[LinkOverride, ...] = ()
    caller: str | None = None
    caller_overhead_s: float = 0.0

    def __post_init__(self) -> None:
        """Checks names against each other.

        Raises:
            ValueError: no device, a name twice, a link or caller that names no device, or an
                overhead of nobody.
        """
        names = [device.name for device in self.devices]
        if not names:
            raise ValueError("a cluster needs at least one device")
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"device name {name!r} is used {names.count(name)} times")
        self._check_overrides(names)
        if self.caller is not None and self.caller not in names:
            raise ValueError(f"caller is {self.caller!r}, {no_device(self.caller, names)}")
        _check_overhead(self.caller_overhead_s)
        if self.caller_overhead_s and self.caller is None:
            raise ValueError("caller_overhead needs a caller")

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

    def link_between(self, source: str, target: str) -> Link:
        """The link from `source` to `target`; one that costs nothing within a device."""
        if source == target:
            return Link()
        for override in self.overrides:
            if (override.source, override.target) == (source, target):
                return override.link
        return self.link

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
        return Cluster(
            devices=tuple(d for d in self.devices if d.name not in names),
            link=self.link,
            overrides=tuple(
                o for o in self.overrides if o.source not in names and o.target not in names
            ),
            caller=None if is_gone else self.caller,
            caller_overhead_s=0.0 if is_gone else self.caller_overhead_s,
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


def no_device(name: str, names: list[str]) -> str:
    """Says that no device is called `name`, and which were probably meant."""
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return f"which is no device of the cluster; {hint}"
