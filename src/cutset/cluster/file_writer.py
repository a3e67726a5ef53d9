"""Writes a cluster as the text of a cluster file, which `cutset.cluster.cluster_file` reads."""

from __future__ import annotations

import json
import math

from cutset.cluster.devices import Cluster, Device, Link
from cutset.cluster.wires import Medium, Port


def cluster_to_toml(cluster: Cluster) -> str:
    """The cluster as the text of a cluster file; reading it gives an equal cluster."""
    own = cluster.caller_machine
    lines: list[str] = []
    for key in ("engine", "ssh_config"):
        text = getattr(cluster, key)
        lines += [] if text is None else [f"{key} = {_quote(text)}"]
    if cluster.caller is not None and own is None:
        lines.append(f"caller = {_quote(cluster.caller)}")
        if cluster.caller_overhead_s:
            lines.append(f'caller_overhead = "{float(cluster.caller_overhead_s)!r} s"')
        lines.append("")
    for device in cluster.devices:
        lines += [*_device_lines(device), ""]
    if own is not None:
        lines += ["[caller]", f"name = {_quote(own.name)}"]
        lines += [] if own.address is None else [f"address = {_quote(own.address)}"]
        lines += [*_port_lines(own.port), ""]
    for medium in cluster.media:
        lines += [*_medium_lines(medium), ""]
    lines += ["[link]", *_link_lines(cluster.link, Link()), ""]
    for override in cluster.overrides:
        lines += ["[[link.between]]", f"from = {_quote(override.source)}"]
        lines.append(f"to = {_quote(override.target)}")
        lines += [] if override.medium is None else [f"medium = {_quote(override.medium)}"]
        lines += [*_link_lines(override.link, cluster.link), ""]
    return "\n".join(lines)


def _device_lines(device: Device) -> list[str]:
    lines = ["[[device]]", f"name = {_quote(device.name)}", f"speed = {float(device.speed)!r}"]
    for key in ("memory_bytes", "worker_bytes", "threads"):
        number = getattr(device, key)
        lines += [] if number is None else [f"{key} = {number}"]
    for key in ("profile", "address", "listen", "python", "folder"):
        text = getattr(device, key)
        lines += [] if text is None else [f"{key} = {_quote(text)}"]
    if device.env:
        pairs = ", ".join(f"{name} = {_quote(text)}" for name, text in device.env)
        lines.append(f"env = {{ {pairs} }}")
    if device.backends is not None:
        lines.append(f"backends = [{', '.join(map(_quote, device.backends))}]")
    if device.overhead_s:
        lines.append(f'overhead = "{float(device.overhead_s)!r} s"')
    return [*lines, *_port_lines(device.port)]


def _medium_lines(medium: Medium) -> list[str]:
    return [
        "[[medium]]",
        f"name = {_quote(medium.name)}",
        f"devices = [{', '.join(map(_quote, medium.devices))}]",
        _rate("bandwidth", medium.bandwidth_bytes_per_s),
        f'latency = "{float(medium.latency_s)!r} s"',
        *(["relayed = true"] if medium.relayed else []),
    ]


def _link_lines(link: Link, default: Link) -> list[str]:
    """The keys of a link; costs of bytes where they, or those of the default, are any."""
    lines = [
        _rate("bandwidth", link.bandwidth_bytes_per_s),
        f'latency = "{float(link.latency_s)!r} s"',
    ]
    for key, name in (("send_cost", "send_s_per_byte"), ("receive_cost", "receive_s_per_byte")):
        cost = float(getattr(link, name))
        lines += [f'{key} = "{cost!r} s/B"'] if cost or getattr(default, name) else []
    if link.secured != default.secured or not link.secured:
        lines.append(f'security = "{"curve" if link.secured else "none"}"')
    return lines


def _port_lines(port: Port) -> list[str]:
    rates = (("port_out", port.out_bytes_per_s), ("port_in", port.in_bytes_per_s))
    lines = [_rate(key, rate) for key, rate in rates if math.isfinite(rate)]
    return [*lines, *(['duplex = "half"'] if port.half_duplex else [])]


def _rate(key: str, bytes_per_s: float) -> str:
    rate = float(bytes_per_s)
    return f"{key} = inf" if math.isinf(rate) else f'{key} = "{rate!r} B/s"'


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
