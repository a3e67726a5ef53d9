"""The twin for groups: every partition into stages, every assignment of disjoint groups.

What a plan costs follows from messages and devices by name; of the planner nothing is used but the
values that say what a cluster and a model are.
"""

import dataclasses
import itertools
import math

import msgspec
import numpy as np

from cutset.cluster.devices import Link
from cutset.costs.cost_model import CostModel
from wires_twin import WiresTwin, draw_cluster, draw_codecs, draw_costs, lost_of


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How a drawn problem is to be planned."""

    most: int
    serial: bool
    num_stages: int | None


class GroupsTwin(WiresTwin):
    """Costs of plans with groups on one cluster without media."""

    def message_s(self, a, b, num_bytes):
        if a is None or b is None:
            return 0.0
        if a == b:
            return lost_of(self.cluster, self.devices[a]) / 2
        return self.send(a, b, num_bytes, {})[0]

    def period(self, edges, groups, codecs=()):
        """Seconds between two micro-batches, with the best charges; infinite where none."""
        cuts = len(groups) - 1
        if any(
            math.isinf(self.compute(edges, k, a, len(groups)))
            for k, g in enumerate(groups)
            for a in g
        ):
            return math.inf
        charges = [()] if self.serial else itertools.product((True, False), repeat=cuts)
        return max(
            self.floor(edges, groups),
            min(
                max(self.stage(edges, groups, codecs, k, charge) for k in range(cuts + 1))
                for charge in charges
            ),
        )

    def sizes(self, edges, codecs):
        found = [self.costs.cut_bytes_per_row[e] * self.costs.micro_batch for e in edges]
        for k, codec in enumerate(codecs, start=1):
            if codec is not None:
                found[k] = codec.cut_bytes[edges[k]]
        return found

    def compute(self, edges, k, name, num_stages):
        device, (start, stop) = self.devices[name], edges[k : k + 2]
        needed = self.costs.memory_bytes(start, stop, num_stages=num_stages)
        if device.memory_bytes is not None and needed > device.memory_bytes:
            return math.inf
        return min(sum(e.seconds[start:stop]) for e in self.costs.seconds) / device.speed

    def coding(self, edges, codecs, k, name):
        total = 0.0
        if k and codecs[k - 1] is not None:
            total += codecs[k - 1].decode_s[edges[k]]
        if k < len(codecs) and codecs[k] is not None:
            total += codecs[k].encode_s[edges[k + 1]]
        return total * self.slowness(name)

    def stage(self, edges, groups, codecs, k, charge):
        """The least period with which a group keeps up: from its members' fixed and own times."""
        codecs = codecs or (None,) * (len(groups) - 1)
        members = [self.member(edges, groups, codecs, k, a, charge) for a in groups[k]]
        if any(math.isinf(t) for own in members for _, t in own):
            return math.inf
        fixed = [own for own in members if any(k for k, _ in own)]
        assert len(fixed) <= 1  # the caller is on one device
        rates = [
            1 / m if (m := max(t for _, t in own)) else math.inf
            for own in members
            if own not in fixed
        ]
        least = max(k for own in members for k, _ in own)
        if math.inf in rates:
            return least
        rate = sum(rates)
        if not fixed:
            return 1 / rate
        return max(least, *((1 + k / t) / (rate + 1 / t) if t else 0.0 for k, t in fixed[0]))

    def member(self, edges, groups, codecs, k, a, charge):
        """(seconds of every micro-batch, seconds of each of its own) of all that it keeps busy."""
        home, last = self.cluster.caller, len(groups) - 1
        sizes = self.sizes(edges, codecs)
        before = groups[k - 1] if k else [home]
        after = groups[k + 1] if k < last else [home]
        own = self.compute(edges, k, a, len(groups)) + self.devices[a].overhead_s
        own += self.coding(edges, codecs, k, a)
        taken = [0.0 if b in (a, None) else self.pair(b, a)[1].receive_s_per_byte for b in before]
        given = [0.0 if b in (a, None) else self.pair(a, b)[1].send_s_per_byte for b in after]
        own += sizes[k] * max(taken) + sizes[k + 1] * max(given)
        link_in = max(self.message_s(b, a, sizes[k]) for b in before)
        link_out = max(self.message_s(a, b, sizes[k + 1]) for b in after)
        fixed = ports_in = ports_out = 0.0
        keeps_in, keeps_out = (k == 0 and len(groups[0]) == 1), (k == last and len(groups[-1]) == 1)
        if a == home:
            fixed += self.cluster.caller_overhead_s
            others = [name for name in self.devices if name != home]
            if not keeps_in:
                ports_out = sizes[0]
                fixed += sizes[0] * max(
                    (self.pair(a, b)[1].send_s_per_byte for b in others), default=0
                )
            if not keeps_out:
                ports_in = sizes[-1]
                fixed += sizes[-1] * max(
                    (self.pair(b, a)[1].receive_s_per_byte for b in others), default=0
                )
        port = self.ports[a]
        into = 0.0 if k == 0 and home in (a, None) else sizes[k] / port.in_bytes_per_s
        out = 0.0 if k == last and home in (a, None) else sizes[k + 1] / port.out_bytes_per_s
        always_in, always_out = ports_in / port.in_bytes_per_s, ports_out / port.out_bytes_per_s
        wires = [(always_in, into), (always_out, out)]
        if port.half_duplex:
            wires = [(always_in + always_out, into + out)]
        if self.serial:
            return [(fixed, own + link_in + link_out), *wires]
        found = [(fixed, own), *wires]
        if k == 0 or charge[k - 1]:
            found.append((0.0, link_in))
        if k == last or not charge[k]:
            found.append((0.0, link_out))
        return found

    def floor(self, edges, groups):
        home = self.cluster.caller
        if home is None:
            return 0.0
        port, sizes = self.ports[home], self.sizes(edges, ())
        there = 0.0 if list(groups[0]) == [home] else sizes[0] / port.out_bytes_per_s
        back = 0.0 if list(groups[-1]) == [home] else sizes[-1] / port.in_bytes_per_s
        return there + back if port.half_duplex else max(there, back)

    def latency(self, edges, groups, codecs=()):
        """Seconds for one micro-batch on the worst of its routes."""
        codecs = codecs or (None,) * (len(groups) - 1)
        sizes, home = self.sizes(edges, codecs), self.cluster.caller
        worst = 0.0
        for route in itertools.product(*groups):
            places = (home, *route, home)
            total = sum(
                self.message_s(a, b, sizes[k])
                for k, (a, b) in enumerate(itertools.pairwise(places))
            )
            for k, a in enumerate(route):
                total += self.compute(edges, k, a, len(groups)) + self.coding(edges, codecs, k, a)
            worst = max(worst, total)
        return worst

    def every_group_plan(self, wanted):
        """Yields (edges, groups, codecs) of every plan, memory aside."""
        num, names = self.costs.num_pieces, list(self.devices)
        for size in range(1, min(num, len(names)) + 1):
            if wanted.num_stages not in (None, size):
                continue
            for places in itertools.product(range(size + 1), repeat=len(names)):
                groups = [
                    [n for n, p in zip(names, places, strict=True) if p == k] for k in range(size)
                ]
                if any(not 1 <= len(group) <= wanted.most for group in groups):
                    continue
                for inner in itertools.combinations(range(1, num), size - 1):
                    edges = (0, *inner, num)
                    for codecs in self.codecs_of(edges):
                        yield edges, groups, codecs

    def best_period(self, wanted, max_latency_s=math.inf):
        best = math.inf
        for plan in self.every_group_plan(wanted):
            period = self.period(*plan)
            if period < best and self.latency(*plan) <= max_latency_s * (1 + 1e-9):
                best = period
        return best


def draw_groups(seed, *, most_devices=4, most_pieces=5):
    """A model, a cluster without media, and what is wanted."""
    rng = np.random.default_rng((seed, 22))
    costs: CostModel = draw_costs(rng, int(rng.integers(1, most_pieces + 1)))
    if rng.random() < 0.25:
        costs = msgspec.structs.replace(costs, codecs=draw_codecs(rng, min(costs.num_pieces, 9)))
    while (cluster := draw_cluster(rng)).media or len(cluster.devices) > most_devices:
        pass
    if len(cluster.devices) >= 3 and most_devices > 4 and cluster.caller_machine is None:
        extra = msgspec.structs.replace(cluster.devices[-1], name="d9")
        cluster = msgspec.structs.replace(cluster, devices=(*cluster.devices, extra))
    if rng.random() < 0.5:
        cluster = msgspec.structs.replace(cluster, overrides=())
    if rng.random() < 0.3:
        cluster = msgspec.structs.replace(cluster, link=Link(bandwidth_bytes_per_s=math.inf))
    if rng.random() < 0.3:  # memory that binds by the number of stages
        costs = msgspec.structs.replace(costs, window=None)
    count = min(len(cluster.devices), costs.num_pieces)
    wanted = Wanted(
        most=int(rng.integers(1, len(cluster.devices) + 1)) if rng.random() < 0.3 else 9,
        serial=bool(rng.random() < 0.25),
        num_stages=None if rng.random() < 0.8 else int(rng.integers(1, count + 1)),
    )
    return costs, cluster, wanted, rng
