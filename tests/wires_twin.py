"""The twin for clusters: what plans cost on wires as they are, from first principles.

Every plan names its devices. Messages are listed one by one and added up on whatever they pass;
nothing of the planner is used but the values that say what a cluster and a model are.
"""

import itertools
import math

import msgspec
import numpy as np

from cutset.cluster.devices import CallerMachine, Cluster, Device, Link, LinkOverride
from cutset.cluster.wires import Medium, Port
from cutset.costs.cost_model import CodecCosts, CostModel, PieceSeconds, PixelCosts


def draw_costs(rng, num):
    """A model of `num` pieces with small whole numbers, so that many plans are equally good."""
    return CostModel(
        micro_batch=int(rng.integers(1, 3)),
        positions=tuple(range(num + 1)),
        names=tuple(f"n{k}" for k in range(num + 1)),
        kinds=("block",) * (num + 1),
        cut_bytes_per_row=tuple(int(b) for b in rng.integers(0, 12, num + 1)),
        flops_per_row=(1,) * num,
        own_weight_bytes=tuple(int(b) for b in rng.integers(0, 9, num)),
        shared_weights=(),
        peak_bytes_per_row=(0,) * num,
        seconds=tuple(
            PieceSeconds(
                device="", backend=name, seconds=tuple(float(s) for s in rng.integers(0, 9, num))
            )
            for name in ("a", "b")
        ),
        window=0,
    )


def draw_codecs(rng, num):
    """One codec or two, each for some of the inner boundaries."""
    return tuple(
        CodecCosts(
            name=name,
            cut_bytes=(
                None,
                *(int(rng.integers(0, 9)) if rng.random() < 0.8 else None for _ in range(num - 1)),
                None,
            ),
            encode_s=tuple(float(s) for s in rng.integers(0, 3, num + 1)),
            decode_s=tuple(float(s) for s in rng.integers(0, 3, num + 1)),
        )
        for name in ("fp16", "int8")[: int(rng.integers(1, 3))]
    )


def draw_cluster(rng):
    """Up to four devices with any mixture of ports, media, links, costs of bytes and callers."""
    names = [f"d{k}" for k in range(int(rng.integers(1, 5)))]
    caller = [None, "laptop", *names][int(rng.integers(len(names) + 2))]
    ends = [*names, "laptop"] if caller == "laptop" else names

    def rate():
        return float(rng.choice([0.5, 1.0, 2.0, 5.0]))

    def port():
        kind = rng.random()
        if kind < 0.3:
            return Port()
        half = bool(rng.random() < 0.5)
        out, back = rate(), rate()
        if not half and kind < 0.5:
            out = math.inf
        return Port(out_bytes_per_s=out, in_bytes_per_s=back, half_duplex=half)

    same = port() if rng.random() < 0.4 else None

    def link():
        return Link(
            bandwidth_bytes_per_s=float(rng.choice([0.5, 1.0, 4.0, math.inf])),
            latency_s=float(rng.choice([0.0, 0.5, 1.0])),
            send_s_per_byte=float(rng.choice([0.0, 0.0, 0.25])),
            receive_s_per_byte=float(rng.choice([0.0, 0.0, 0.5])),
        )

    media = []
    for k in range(int(rng.integers(0, 3)) if len(ends) > 1 else 0):
        size = len(ends) if rng.random() < 0.5 else int(rng.integers(2, len(ends) + 1))
        media.append(
            Medium(
                name=f"m{k}",
                devices=tuple(rng.permutation(ends)[:size].tolist()),
                bandwidth_bytes_per_s=rate() * 2,
                latency_s=float(rng.choice([0.0, 0.5])),
                relayed=bool(rng.random() < 0.5),
            )
        )
    overrides = []
    for a, b in itertools.permutations(ends, 2):
        common = [m.name for m in media if {a, b} <= {*m.devices}]
        if len(common) > 1 or rng.random() < 0.15:
            over = common[int(rng.integers(len(common)))] if common else None
            medium = over if rng.random() < 0.7 else None
            overrides.append(LinkOverride(source=a, target=b, link=link(), medium=medium))
    return Cluster(
        devices=tuple(
            Device(
                name=name,
                speed=float(rng.choice([0.5, 1.0])),
                memory_bytes=None if rng.random() < 0.7 else int(rng.integers(8, 25)),
                overhead_s=float(rng.choice([0.0, 0.0, 0.5])),
                port=port() if same is None else same,
            )
            for name in names
        ),
        link=link(),
        overrides=tuple(overrides),
        caller=caller,
        caller_overhead_s=float(rng.choice([0.0, 1.0])) if caller in names else 0.0,
        media=tuple(media),
        caller_machine=CallerMachine(name="laptop", port=port()) if caller == "laptop" else None,
    )


class WiresTwin:
    """Costs of plans on one cluster."""

    def __init__(self, costs, cluster, *, serial):
        self.costs, self.cluster, self.serial = costs, cluster, serial
        self.devices = {device.name: device for device in cluster.devices}
        self.ports = {name: device.port for name, device in self.devices.items()}
        if cluster.caller_machine is not None:
            self.ports["laptop"] = cluster.caller_machine.port

    def pair(self, a, b):
        """The link of two machines, how often a message is on it, and its medium."""
        for override in self.cluster.overrides:
            if (override.source, override.target) == (a, b):
                media = [m for m in self.cluster.media if m.name == override.medium]
                return override.link, override.link, media
        media = [m for m in self.cluster.media if a in m.devices and b in m.devices]
        own = media[0] if media else self.cluster.link
        return own, self.cluster.link, media

    def send(self, a, b, num_bytes, busy):
        """Sends a message; returns its seconds, and what its bytes take at both ends."""
        own, costs, media = self.pair(a, b)
        times = 1 + bool(media and media[0].relayed)
        latency_s = times * own.latency_s
        slow = [times / own.bandwidth_bytes_per_s]
        if media:
            key = "medium", media[0].name
            busy[key] = busy.get(key, 0) + latency_s + num_bytes * slow[0]
        for name, way, rate in (
            (a, "out", self.ports[a].out_bytes_per_s),
            (b, "in", self.ports[b].in_bytes_per_s),
        ):
            key = name, "both" if self.ports[name].half_duplex else way
            busy[key] = busy.get(key, 0) + num_bytes / rate
            slow.append(1 / rate)
        seconds = latency_s + num_bytes * max(slow)
        return seconds, num_bytes * costs.send_s_per_byte, num_bytes * costs.receive_s_per_byte

    def cost(self, edges, names, codecs):
        """Period and latency of a plan, infinite where memory or a backend allows none."""
        costs, home = self.costs, self.cluster.caller
        sizes = [costs.cut_bytes_per_row[e] * costs.micro_batch for e in edges]
        busy = {}
        compute, lost = [], {}
        coding_s = [0.0] * len(names)
        if costs.pixels is not None:
            sizes[0] = costs.pixels.num_bytes
            coding_s[0] = costs.pixels.read_s * self.slowness(names[0])
        for k, codec in enumerate(codecs, start=1):
            if codec is not None:
                sizes[k] = codec.cut_bytes[edges[k]]
                coding_s[k - 1] += codec.encode_s[edges[k]] * self.slowness(names[k - 1])
                coding_s[k] += codec.decode_s[edges[k]] * self.slowness(names[k])
        for k, name in enumerate(names):
            device = self.devices[name]
            limit = device.memory_bytes
            if limit is not None and sum(costs.own_weight_bytes[edges[k] : edges[k + 1]]) > limit:
                return math.inf, math.inf
            times = [sum(e.seconds[edges[k] : edges[k + 1]]) for e in costs.seconds]
            compute.append(min(times) / device.speed)
            lost[name] = device.overhead_s
            if name == home:
                lost[name] += self.cluster.caller_overhead_s
        moves = []
        places = [home, *names, home]
        for k, (a, b) in enumerate(itertools.pairwise(places)):
            if a is None or b is None:
                moves.append(0.0)
                continue
            if a == b:
                moves.append(lost_of(self.cluster, self.devices[a]) / 2)
                continue
            seconds, given, taken = self.send(a, b, sizes[k], busy)
            moves.append(seconds)
            is_outer = k in (0, len(names))
            for name, part in ((a, given), (b, taken)):
                if name in lost and not (is_outer and name == home):
                    lost[name] += part
        # The caller's own part counts as the dearest of its links would have it.
        others = [name for name in self.devices if name != home]
        if home in names and others:
            if names[0] != home:
                dearest = max(self.pair(home, b)[1].send_s_per_byte for b in others)
                lost[home] += sizes[0] * dearest
            if names[-1] != home:
                dearest = max(self.pair(a, home)[1].receive_s_per_byte for a in others)
                lost[home] += sizes[-1] * dearest
        loads = [
            c + lost[name] + coding
            for c, name, coding in zip(compute, names, coding_s, strict=True)
        ]
        if self.serial:
            loads = [moves[k] + load + moves[k + 1] for k, load in enumerate(loads)]
        else:
            loads += moves
        return max([*loads, *busy.values()]), sum(compute) + sum(moves) + sum(coding_s)

    def slowness(self, name):
        """A codec takes as long as pieces do."""
        return 1 / self.devices[name].speed

    def codecs_of(self, edges):
        """Every choice of codecs for the inner edges."""
        choices = [
            [None, *(c for c in self.costs.codecs if c.cut_bytes[e] is not None)]
            for e in edges[1:-1]
        ]
        return itertools.product(*choices)

    def every_plan(self, *, fixed_order=False, num_stages=None):
        """Yields (edges, names, period, latency) of every plan that is possible."""
        num, names = self.costs.num_pieces, list(self.devices)
        choose = itertools.combinations if fixed_order else itertools.permutations
        for size in range(1, min(num, len(names)) + 1):
            if num_stages not in (None, size):
                continue
            for inner in itertools.combinations(range(1, num), size - 1):
                for order in choose(names, size):
                    edges = (0, *inner, num)
                    for codecs in self.codecs_of(edges):
                        period, latency = self.cost(edges, order, codecs)
                        if math.isfinite(period):
                            yield edges, order, period, latency


def lost_of(cluster, device):
    return device.overhead_s + (cluster.caller_overhead_s if device.name == cluster.caller else 0.0)


def draw(seed):
    """A model, a cluster, and how it is to be planned."""
    rng = np.random.default_rng(seed)
    costs = draw_costs(rng, int(rng.integers(1, 6)))
    if seed % 2:
        apart = np.random.default_rng((seed, 1))
        costs = msgspec.structs.replace(costs, codecs=draw_codecs(apart, costs.num_pieces))
        if apart.random() < 0.5:
            num_bytes, read_s = int(apart.integers(0, 9)), float(apart.integers(3))
            pixels = PixelCosts(num_bytes=num_bytes, read_s=read_s)
            costs = msgspec.structs.replace(costs, pixels=pixels)
    cluster = draw_cluster(rng)
    choice = {"serial": bool(rng.random() < 0.25), "fixed_order": bool(rng.random() < 0.25)}
    most = min(len(cluster.devices), costs.num_pieces)
    choice["num_stages"] = None if rng.random() < 0.7 else int(rng.integers(1, most + 1))
    return costs, cluster, choice, rng
