"""Namespaces, the bridge, and a token bucket for every directed pair of nodes.

Every node's interface is called ``eth0``; its other end, ``port0``, ``port1`` ..., lies on the
bridge in the switch's namespace. A node has a route to each of the other nodes and to nothing else.
"""

from __future__ import annotations

import json
from pathlib import Path

from testbed.commands import run_tool
from testbed.layout import PAYLOAD_SHARE, Layout, Node

NAMESPACES = Path("/run/netns")

_NOWHERE = "02:00:00:00:00:00"
_FRAME_BYTES = 1514
_BUCKET_S = 1.5e-3
_UNLIMITED = 65536


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
        _limit_links(layout, node)


def _limit_links(layout: Layout, node: Node) -> None:
    """Gives `node` a bucket for each node that it sends to at a limited rate.

    The class of a hierarchical token bucket holds no more than one frame, so that a message of a
    few frames takes as long as its bytes need. For the same reason the system must not hand whole
    bundles of frames to it: a bundle passes at once and is paid for afterwards. At higher rates,
    where frames one by one would cost more processor than they do on a card of its own (some 40 us
    for each that passes, a tenth of a core at 100 Mbit/s), a bundle and the bucket are what passes
    in `_BUCKET_S`.
    """
    rates = {rate.target: rate.bytes_per_s for rate in layout.rates if rate.source == node.name}
    if not rates:
        return
    tc = ["tc", "-netns", node.namespace]
    run_tool([*tc, "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb"])
    for other in layout.nodes:
        if other.name not in rates:
            continue
        wire_bytes_per_s = rates[other.name] / PAYLOAD_SHARE
        bucket = str(max(_FRAME_BYTES + 86, round(wire_bytes_per_s * _BUCKET_S)))
        rate = f"{max(8, round(wire_bytes_per_s * 8))}bit"
        number = f"1:{other.index + 1:x}"
        limits = ["rate", rate, "ceil", rate, "burst", bucket, "cburst", bucket, "quantum", "1600"]
        run_tool(
            [*tc, "class", "add", "dev", "eth0", "parent", "1:", "classid", number, "htb", *limits]
        )
        match = ["u32", "match", "ip", "dst", f"{other.address}/32", "flowid", number]
        run_tool([*tc, "filter", "add", "dev", "eth0", "parent", "1:", "protocol", "ip", *match])
    bundle = min(_UNLIMITED, max(2000, round(min(rates.values()) * _BUCKET_S)))
    run_tool(["ip", "-netns", node.namespace, "link", "set", "eth0", "gso_max_size", str(bundle)])


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
