"""Namespaces, the bridge, and token buckets: of directed pairs of nodes, of ports, and of media.

Every node's interface is called ``eth0``; its other end, ``port0``, ``port1`` ..., lies on the
bridge in the switch's namespace. A node has a route to each of the other nodes and to nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from testbed.commands import run_tool
from testbed.layout import PAYLOAD_SHARE, Layout, Node

NAMESPACES = Path("/run/netns")

_NOWHERE = "02:00:00:00:00:00"
_FRAME_BYTES = 1514
_BUCKET_S = 1.5e-3
_UNLIMITED = 65536
_WITH_ACKNOWLEDGEMENTS = 1 + 33 / _FRAME_BYTES  # 66 bytes for every second frame


def build_network(layout: Layout) -> None:
    """Makes the namespaces, joins them, and limits the links.

    Raises:
        TestbedError: the system refused a step.
    """
    run_tool(["ip", "netns", "add", layout.switch])
    switch = ["ip", "-netns", layout.switch]
    run_tool([*switch, "link", "add", "bridge", "type", "bridge"])
    run_tool([*switch, "link", "set", "bridge", "up"])
    for node in layout.nodes:
        port = _port(node)
        run_tool(["ip", "netns", "add", node.namespace])
        ends = ["type", "veth", "peer", "name", "eth0", "netns", node.namespace]
        run_tool([*switch, "link", "add", port, *ends])
        run_tool([*switch, "link", "set", port, "master", "bridge", "up"])
    for node in layout.nodes:
        inside = ["ip", "-netns", node.namespace]
        run_tool([*inside, "link", "set", "lo", "up"])
        run_tool([*inside, "address", "add", f"{node.address}/32", "dev", "eth0"])
        run_tool([*inside, "link", "set", "eth0", "up"])
        for other in layout.nodes:
            if other is not node:
                route = [f"{other.address}/32", "dev", "eth0", "src", node.address]
                run_tool([*inside, "route", "add", *route])
        _limit_node(layout, node)
    _share_wires(layout)


class _Flow(NamedTuple):
    """What a bucket is handed out to: packets from or to an address, and their own limit."""

    direction: str
    address: str
    bytes_per_s: float = math.inf


def _limit_node(layout: Layout, node: Node) -> None:
    """Gives `node` a bucket for each node that it sends to at a limited rate, and one for its port.

    The system must not hand whole bundles of frames to a bucket: a bundle passes at once and is
    paid for afterwards. At higher rates, where frames one by one would cost more processor than
    they do on a card of its own (some 40 us for each that passes, a tenth of a core at
    100 Mbit/s), a bundle and the bucket are what passes in `_BUCKET_S`.
    """
    rates = {rate.target: rate.bytes_per_s for rate in layout.rates if rate.source == node.name}
    others = [other for other in layout.nodes if other.name != node.name]
    port = _port_of(layout, node, "out")
    flows = [_Flow("dst", o.address, rates.get(o.name, math.inf)) for o in others]
    if rates or port is not None:
        _hand_out(node.namespace, "eth0", port, flows)
    into = _port_of(layout, node, "in")
    if into is not None:
        _hand_out(layout.switch, _port(node), into, [_Flow("src", o.address) for o in others])
    slowest = min((*rates.values(), *(wire.bytes_per_s for wire in layout.shared)), default=None)
    if slowest is not None:
        bundle = min(_UNLIMITED, max(2000, round(slowest * _BUCKET_S)))
        run_tool(
            ["ip", "-netns", node.namespace, "link", "set", "eth0", "gso_max_size", str(bundle)]
        )


def _port_of(layout: Layout, node: Node, kind: str) -> float | None:
    found = (w for w in layout.shared if w.kind == kind and node.name in w.nodes)
    return next((wire.bytes_per_s for wire in found), None)


def _share_wires(layout: Layout) -> None:
    """Gives each medium, and each port in half duplex, a bucket that frames of both ways pass.

    It is an ifb device in the switch's namespace: frames that come into the switch from a node, and
    those that leave it to one with such a port, are turned aside into it, and go on as they were
    when its bucket lets them. Each sender gets an even share of it while others send too.
    """
    tc = ["tc", "-netns", layout.switch]
    turning = set()
    for index, wire in enumerate(w for w in layout.shared if w.kind in ("half", "medium")):
        device = f"shared{index}"
        added = ["link", "add", device, "txqueuelen", "1000", "type", "ifb"]
        run_tool(["ip", "-netns", layout.switch, *added])
        run_tool(["ip", "-netns", layout.switch, "link", "set", device, "up"])
        flows = [_Flow("src", node.address) for node in layout.nodes]
        # Acknowledgements go the other way, through the same bucket.
        _hand_out(layout.switch, device, wire.bytes_per_s * _WITH_ACKNOWLEDGEMENTS, flows)
        members = [layout.node(name) for name in wire.nodes]
        for node in members:
            if node.name not in turning:
                turning.add(node.name)
                run_tool([*tc, "qdisc", "add", "dev", _port(node), "clsact"])
            turn = ["action", "mirred", "egress", "redirect", "dev", device]
            rule = [*tc, "filter", "add", "dev", _port(node)]
            if wire.kind == "half":
                for way in ("ingress", "egress"):
                    run_tool([*rule, way, "protocol", "ip", "u32", "match", "u32", "0", "0", *turn])
                continue
            for other in members:
                if other.name != node.name:
                    match = ["u32", "match", "ip", "dst", f"{other.address}/32"]
                    run_tool([*rule, "ingress", "protocol", "ip", *match, *turn])


def _hand_out(
    namespace: str, device: str, bytes_per_s: float | None, flows: Sequence[_Flow]
) -> None:
    """Limits what leaves a device: each flow to its own rate, and all together to `bytes_per_s`.

    The class of a hierarchical token bucket holds no more than one frame, so that a message of a
    few frames takes as long as its bytes need, or what passes in `_BUCKET_S`.
    """
    tc = ["tc", "-netns", namespace]
    run_tool([*tc, "qdisc", "add", "dev", device, "root", "handle", "1:", "htb"])
    top, total = "1:", math.inf
    if bytes_per_s is not None:
        top, total = "1:ffff", bytes_per_s
        run_tool(_bucket(tc, device, "1:", top, total, total))
    for number, flow in enumerate(flows, 1):
        most = min(flow.bytes_per_s, total)
        if math.isinf(most):
            continue
        name = f"1:{number:x}"
        run_tool(_bucket(tc, device, top, name, min(most, total / len(flows)), most))
        match = ["u32", "match", "ip", flow.direction, f"{flow.address}/32", "flowid", name]
        run_tool([*tc, "filter", "add", "dev", device, "parent", "1:", "protocol", "ip", *match])


def _bucket(
    tc: list[str], device: str, parent: str, name: str, own: float, most: float
) -> list[str]:
    """The command for a class that has `own` bytes of payload a second and may borrow to `most`."""
    least, ceiling = (max(1, round(rate / PAYLOAD_SHARE)) for rate in (own, most))
    size = str(max(_FRAME_BYTES + 86, round(ceiling * _BUCKET_S)))
    limits = ["rate", f"{least * 8}bit", "ceil", f"{ceiling * 8}bit", "burst", size]
    limits += ["cburst", size, "quantum", "1600"]
    return [
        *(*tc, "class", "add", "dev", device, "parent", parent),
        *("classid", name, "htb", *limits),
    ]


def remove_network(prefix: str) -> None:
    """Removes every namespace whose name begins with `prefix`; with it goes all that is in it.

    Raises:
        TestbedError: the system refused.
    """
    for namespace in namespaces(prefix):
        run_tool(["ip", "netns", "delete", namespace])


def namespaces(prefix: str) -> list[str]:
    """Names of the namespaces that begin with `prefix`."""
    if not NAMESPACES.is_dir():
        return []
    return sorted(path.name for path in NAMESPACES.iterdir() if path.name.startswith(prefix))


def cut_node(layout: Layout, node: Node) -> None:
    """Pulls the node's cable: it hears nothing and nobody hears it."""
    run_tool(["ip", "-netns", layout.switch, "link", "set", _port(node), "down"])


def mend_node(layout: Layout, node: Node) -> None:
    """Puts the cable back."""
    run_tool(["ip", "-netns", layout.switch, "link", "set", _port(node), "up"])


def cut_pair(node: Node, other: Node) -> None:
    """Loses whatever the two send each other; both still reach the rest."""
    for here, there in ((node, other), (other, node)):
        entry = [there.address, "lladdr", _NOWHERE, "dev", "eth0", "nud", "permanent"]
        run_tool(["ip", "-netns", here.namespace, "neighbour", "replace", *entry])


def mend_pair(node: Node, other: Node) -> None:
    """Undoes `cut_pair`; harmless where nothing was cut."""
    for here, there in ((node, other), (other, node)):
        if there.address in _lost_from(here):
            entry = [there.address, "dev", "eth0"]
            run_tool(["ip", "-netns", here.namespace, "neighbour", "delete", *entry])


def cuts_of(layout: Layout, node: Node) -> list[str]:
    """What `node` is cut off from: ``["all"]``, or names of nodes."""
    shown = run_tool(["ip", "-json", "-netns", layout.switch, "link", "show", _port(node)])
    if "UP" not in json.loads(shown)[0]["flags"]:
        return ["all"]
    lost = _lost_from(node)
    return [other.name for other in layout.nodes if other.address in lost]


def _lost_from(node: Node) -> set[str]:
    shown = run_tool(["ip", "-json", "-netns", node.namespace, "neighbour", "show"])
    return {entry["dst"] for entry in json.loads(shown) if entry.get("lladdr") == _NOWHERE}


def _port(node: Node) -> str:
    return f"port{node.index}"
