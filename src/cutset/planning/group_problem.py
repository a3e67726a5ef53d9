"""The planner's problem where a stage may have a group of devices, and what any answer costs.

A member of a group that takes a share s of its stage's micro-batches is busy for s times what one
takes, and so is each wire that only it uses. So in a plan of period T it can take the least of
T / t over all t of its own, and the group can keep up where these shares add up to 1 at least: T is
then 1 / the sum of its members' rates. docs/planning.md has the rule and its proof.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from cutset.cluster.devices import Cluster
from cutset.cluster.wires import Wires
from cutset.planning.deadline import OverBudget
from cutset.planning.formulate import BuiltProblem
from cutset.planning.problem import ROUNDING, ChainProblem
from cutset.planning.totals import Floats, Ints

Demands: TypeAlias = "list[tuple[Floats, Floats]]"
"""Of one member, for each thing that it alone keeps busy: seconds of every micro-batch of the plan
whatever its share, and seconds of each of its own."""

MAX_CHOICES = 1 << 17
"""Of devices by class; 16 distinct ones and one more have as many."""

LEAST_SHARE = 1e-9
"""Of a member that has no time for more: it is in the group all the same."""

MOST_SHARE = 2.0
"""Shares are cut off here: what lies above 1 makes no difference."""


class GroupStage(NamedTuple):
    """Pieces `start` up to `stop` on so many devices of each class."""

    start: int
    stop: int
    members: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many devices."""
        return sum(self.members)

    @property
    def classes(self) -> list[int]:
        """Classes that have a device in it."""
        return [c for c, count in enumerate(self.members) if count]


GroupStages: TypeAlias = tuple[GroupStage, ...]


class Partners(NamedTuple):
    """What a member's messages take at each boundary, whoever is on the other side.

    Attributes:
        link_in: seconds of the link from a neighbour before it, shape (n + 1,).
        link_out: seconds of the link to one after it, shape (n + 1,).
        bytes_in: seconds of computing that receiving takes, shape (n + 1,).
        bytes_out: seconds of computing that sending takes, shape (n + 1,).
    """

    link_in: Floats
    link_out: Floats
    bytes_in: Floats
    bytes_out: Floats


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GroupProblem:
    """Cover n pieces with stages on disjoint groups of devices.

    Attributes:
        chain: the pieces, devices and links; without media, and its ports are here.
        most: the largest size of a group.
        steady_s: of `chain.overhead_s` the seconds that come with every micro-batch of the plan,
            whatever a device's share, shape (C,): what the caller takes on its own device.
        port_in_s: of each class's port for a byte that it receives, shape (C,); 0 for no limit.
        port_out_s: the same for one that it sends.
        half_duplex: whether it cannot do both at once, for each class.
        has_caller: whether inputs come from and outputs go to some machine.
        caller_class: class of the caller's device, -1 where it is on none.
        caller_port_s: of the caller's port for a byte received and sent, 0 for no limit.
        caller_half: whether that port cannot do both at once.
    """

    chain: ChainProblem
    most: int
    steady_s: Floats
    port_in_s: Floats
    port_out_s: Floats
    half_duplex: tuple[bool, ...]
    has_caller: bool = False
    caller_class: int = -1
    caller_port_s: tuple[float, float] = (0.0, 0.0)
    caller_half: bool = False

    @property
    def num_devices(self) -> int:
        """How many devices there are."""
        return sum(self.chain.counts)

    @functools.cached_property
    def steps(self) -> tuple[GroupProblem, ...]:
        """As `ChainProblem.steps`; one where memory does not depend on the number of stages."""
        return tuple(dataclasses.replace(self, chain=chain) for chain in self.chain.steps)

    @functools.cached_property
    def compute_s(self) -> tuple[Floats, ...]:
        """Seconds of every stage on each class, shape (n, n + 1) each; infinity for never."""
        num = self.chain.num_pieces
        starts, stops = np.arange(num)[:, None], np.arange(num + 1)[None, :]
        tables = [np.full((num, num + 1), math.inf) for _ in self.chain.counts]
        for v in self.chain.variants:
            seconds = v.totals.between(starts, stops)
            seconds[(stops <= starts) | (stops > v.furthest[:, None])] = math.inf
            for table in (v.room, v.possible):
                if table is not None:
                    seconds[~(table > 0)] = math.inf
            np.minimum(tables[v.device_class], seconds, out=tables[v.device_class])
        return tuple(tables)

    def partners(self, device_class: int, before: Sequence[int], after: Sequence[int]) -> Partners:
        """The dearest of a member's messages from and to devices of these classes."""
        return self._partners(device_class, before, after, np.maximum)

    def any_partners(self, device_class: int, *, dearest: bool) -> Partners:
        """The dearest, or the cheapest, of a member's messages, whoever its neighbours are."""
        before = [a for a, b in self.chain.pairs if b == device_class]
        after = [b for a, b in self.chain.pairs if a == device_class]
        return self._partners(device_class, before, after, np.maximum if dearest else np.minimum)

    def _partners(
        self, own: int, before: Sequence[int], after: Sequence[int], choose: np.ufunc
    ) -> Partners:
        chain, costs = self.chain, self.chain.byte_costs
        size = chain.num_pieces + 1
        never, nothing = np.full(size, math.inf), np.zeros(size)
        link_in = [chain.link_row_s(a, own) for a in before]
        link_out = [chain.link_row_s(own, b) for b in after]
        bytes_in, bytes_out = [nothing], [nothing]
        if costs is not None:
            crossing = chain.cut_bytes
            bytes_in = [crossing * costs.receive_s_per_byte[a, own] for a in before] or bytes_in
            bytes_out = [crossing * costs.send_s_per_byte[own, b] for b in after] or bytes_out
        return Partners(
            choose.reduce(link_in or [never]),
            choose.reduce(link_out or [never]),
            choose.reduce(bytes_in) + (nothing if costs is None else costs.decode_s[own]),
            choose.reduce(bytes_out) + (nothing if costs is None else costs.encode_s[own]),
        )

    @functools.cached_property
    def has_equal_partners(self) -> bool:
        """Whether a message takes the same between any two devices."""
        tables = [self.chain.link_latency_s, self.chain.link_s_per_byte]
        if self.chain.byte_costs is not None:
            costs = self.chain.byte_costs
            tables += [costs.send_s_per_byte, costs.receive_s_per_byte]
        return all(len({float(table[pair]) for pair in self.chain.pairs}) <= 1 for table in tables)

    def demands(
        self,
        device_class: int,
        starts: Ints,
        stops: Ints,
        partners: tuple[Floats, Floats, Floats, Floats],
        *,
        is_alone: bool,
    ) -> Demands:
        """What a member of a group keeps busy; all arrays are broadcast against each other.

        Args:
            device_class: the member's.
            starts: where stages begin.
            stops: where they end.
            partners: of `Partners` what counts at these places: 0 for a link that the neighbours
                are charged with.
            is_alone: whether the group has this member only.
        """
        chain, costs, own = self.chain, self.chain.byte_costs, device_class
        is_first, is_last = starts == 0, stops == chain.num_pieces
        link_in = np.where(is_first, chain.source_s[own], partners[0])
        link_out = np.where(is_last, chain.sink_s[own], partners[1])
        work = self.compute_s[own][starts, stops] + (chain.overhead_s[own] - self.steady_s[own])
        steady = np.full(np.broadcast(starts, stops).shape, self.steady_s[own])
        keeps_in, keeps_out = is_first & is_alone, is_last & is_alone
        if costs is not None:
            first_s = costs.first_s[own] + costs.decode_s[own, 0]
            work = work + np.where(is_first, first_s, partners[2])
            work = work + np.where(is_last, costs.last_s[own], partners[3])
            steady = steady + np.where(keeps_in, 0.0, costs.not_first_s[own])
            steady = steady + np.where(keeps_out, 0.0, costs.not_last_s[own])
        nothing = np.zeros(steady.shape)
        if chain.serial:
            found = [(steady, work + link_in + link_out)]
        else:
            found = [(steady, work), (nothing, link_in + nothing), (nothing, link_out + nothing)]
        return found + self._port_demands(own, starts, stops, keeps_in, keeps_out)

    def _port_demands(
        self, own: int, starts: Ints, stops: Ints, keeps_in: Ints, keeps_out: Ints
    ) -> Demands:
        if not (self.port_in_s[own] or self.port_out_s[own]):
            return []
        chain, is_caller = self.chain, own == self.caller_class
        first_bytes, last_bytes = chain.cut_bytes[0], chain.cut_bytes[-1]
        is_first, is_last = starts == 0, stops == chain.num_pieces
        outside = self.has_caller and not is_caller
        taken = np.where(is_first, first_bytes * outside, chain.cut_bytes[starts])
        given = np.where(is_last, last_bytes * outside, chain.cut_bytes[stops])
        shape = np.broadcast(starts, stops).shape
        into, out = (
            np.broadcast_to(row * rate, shape)
            for row, rate in ((taken, self.port_in_s[own]), (given, self.port_out_s[own]))
        )
        got, sent = np.zeros(shape), np.zeros(shape)
        if is_caller:
            got = got + np.where(keeps_out, 0.0, last_bytes * self.port_in_s[own])
            sent = sent + np.where(keeps_in, 0.0, first_bytes * self.port_out_s[own])
        if self.half_duplex[own]:
            return [(got + sent, into + out)]
        return [(got, into), (sent, out)]

    def floor_s(self, stages: GroupStages | None = None) -> float:
        """Seconds that the caller's port is busy in a plan.

        Args:
            stages: the plan; None for any in which the caller's device has no part.
        """
        first_s = float(self.chain.cut_bytes[0]) * self.caller_port_s[1]
        last_s = float(self.chain.cut_bytes[-1]) * self.caller_port_s[0]
        if stages is not None and self.caller_class >= 0:
            alone = tuple(int(c == self.caller_class) for c in range(self.chain.num_classes))
            first_s *= stages[0].members != alone
            last_s *= stages[-1].members != alone
        return first_s + last_s if self.caller_half else max(first_s, last_s)

    def period_s(self, stages: GroupStages) -> float:
        """Seconds between two micro-batches: the best that shares and charges allow."""
        floor_s = self.floor_s(stages)
        return max(floor_s, *(seconds for seconds, _ in self._charged(stages)))

    def shares(self, stages: GroupStages) -> tuple[tuple[float, ...], ...]:
        """For each stage the share of a member of each class; 0 where it has none."""
        return tuple(
            _shares(demands, stage.members, seconds)
            for stage, (seconds, demands) in zip(stages, self._charged(stages), strict=True)
        )

    def _charged(self, stages: GroupStages) -> list[tuple[float, dict[int, Demands]]]:
        """Period and members' demands of each stage, with the best charges of its links.

        What crosses a cut between two groups is charged to those who send or to those who receive:
        a link carries no more than the smaller of its ends' shares, whatever the routes.
        """
        if self.chain.serial:
            return [self._stage(stages, k, True, True) for k in range(len(stages))]
        # Charges of the cut before: True for those who receive.
        ways: dict[bool, tuple[float, list[tuple[float, dict[int, Demands]]]]] = {True: (0.0, [])}
        for k in range(len(stages)):
            after: dict[bool, tuple[float, list[tuple[float, dict[int, Demands]]]]] = {}
            for to_receivers in (False, True) if k + 1 < len(stages) else (True,):
                for before, (worst_s, done) in ways.items():
                    found = self._stage(stages, k, before, not to_receivers)
                    value_s = max(worst_s, found[0])
                    if to_receivers not in after or value_s < after[to_receivers][0]:
                        after[to_receivers] = value_s, [*done, found]
            ways = after
        return min(ways.values(), key=lambda way: way[0])[1]

    def _stage(
        self, stages: GroupStages, k: int, pays_in: bool, pays_out: bool
    ) -> tuple[float, dict[int, Demands]]:
        stage = stages[k]
        before = stages[k - 1].classes if k else []
        after = stages[k + 1].classes if k + 1 < len(stages) else []
        starts, stops = np.array([stage.start]), np.array([stage.stop])
        demands = {}
        for c in stage.classes:
            rows = self.partners(c, before, after)
            ends = (
                rows.link_in[starts] if pays_in and k else np.zeros(1),
                rows.link_out[stops] if pays_out and after else np.zeros(1),
                rows.bytes_in[starts],
                rows.bytes_out[stops],
            )
            demands[c] = self.demands(c, starts, stops, ends, is_alone=stage.size == 1)
        return _group_s(demands, stage.members), demands

    def lost_s(self, stages: GroupStages) -> list[dict[int, tuple[float, float]]]:
        """For each stage and class: seconds that a member is busy, wires aside.

        The first with every micro-batch of the plan, the second with each of its own.
        """
        apart = dataclasses.replace(self, chain=dataclasses.replace(self.chain, serial=False))
        found = []
        for k in range(len(stages)):
            _, demands = apart._stage(stages, k, False, False)
            found.append({c: next(_lines(own)) for c, own in demands.items()})
        return found

    def latency_s(self, stages: GroupStages) -> float:
        """Seconds for one micro-batch alone on the worst of its routes."""
        return max(self.route_latencies(stages).values())

    def route_latencies(self, stages: GroupStages) -> dict[int, float]:
        """Of the worst route to each class of the last stage."""
        chain = self.chain
        codecs = chain.byte_costs
        found: dict[int, float] = {}
        for k, stage in enumerate(stages):
            here = {}
            for c in stage.classes:
                own_s = float(self.compute_s[c][stage.start, stage.stop])
                if k == 0:
                    first_s = 0.0 if codecs is None else float(codecs.decode_s[c, 0])
                    here[c] = own_s + float(chain.source_s[c]) + first_s
                else:
                    hop = {b: float(chain.hop_row("latency", b, c)[stage.start]) for b in found}
                    here[c] = own_s + max(found[b] + hop[b] for b in found)
            found = here
        return {c: seconds + float(chain.sink_s[c]) for c, seconds in found.items()}

    def mean_latency_s(self, stages: GroupStages) -> float:
        """Seconds for one micro-batch alone, on average over routes that are independent."""
        shares = self.shares(stages)
        weights = [
            {c: s.members[c] * own[c] for c in s.classes}
            for s, own in zip(stages, shares, strict=True)
        ]
        chain, codecs = self.chain, self.chain.byte_costs
        total = 0.0
        for k, stage in enumerate(stages):
            for c, weight in weights[k].items():
                total += weight * float(self.compute_s[c][stage.start, stage.stop])
                if k == 0:
                    total += weight * float(chain.source_s[c])
                    total += 0.0 if codecs is None else weight * float(codecs.decode_s[c, 0])
                else:
                    for b, other in weights[k - 1].items():
                        hop = float(chain.hop_row("latency", b, c)[stage.start])
                        total += weight * other * hop
        return total + sum(w * float(chain.sink_s[c]) for c, w in weights[-1].items())

    def fits(self, stages: GroupStages) -> bool:
        """Whether memory allows each stage on each of its devices, in a plan of so many."""
        return all(
            any(
                math.isfinite(v.cost_s(stage.start, stage.stop))
                and (v.room is None or v.room[stage.start, stage.stop] >= len(stages))
                for v in self.chain.of_class(c)
            )
            for stage in stages
            for c in stage.classes
        )


def caps(demands: Demands, limit_s: float) -> Floats:
    """The largest share of a member in a plan of this period, up to `MOST_SHARE`; 0 for none."""
    least = np.full(demands[0][0].shape, MOST_SHARE)
    for steady, each in demands:
        room = limit_s - steady
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(each > 0, room / each, math.inf)
        share[room < -limit_s * ROUNDING] = 0.0
        np.minimum(least, share, out=least)
    floored: Floats = np.maximum(least, 0.0)
    return floored


def _lines(demands: Demands) -> Iterator[tuple[float, float]]:
    return ((float(steady[0]), float(each[0])) for steady, each in demands)


def _group_s(demands: dict[int, Demands], members: Sequence[int]) -> float:
    """The least period with which a group keeps up; infinity where some member cannot.

    The sum of the largest shares is concave and made of straight lines: Newton's steps from below
    meet it in as many steps as it has of them at most.
    """
    lines = {c: list(_lines(demands[c])) for c in demands}
    if any(math.isinf(steady + each) for own in lines.values() for steady, each in own):
        return math.inf
    now_s = max(steady for own in lines.values() for steady, _ in own)
    for _ in range(sum(map(len, lines.values())) + 1):
        total = slope = 0.0
        for c, own in lines.items():
            moving = [((now_s - steady) / each, 1 / each) for steady, each in own if each > 0]
            if not moving:
                return now_s
            share, rate = min(moving)
            total += members[c] * share
            slope += members[c] * rate
        if total >= 1 - ROUNDING:
            break
        now_s += (1 - total) / slope
    return now_s


def _shares(
    demands: dict[int, Demands], members: Sequence[int], period_s: float
) -> tuple[float, ...]:
    """The share of a member of each class in the stage's own period; they add up to 1."""
    most = {c: max(LEAST_SHARE, float(caps(own, period_s)[0])) for c, own in demands.items()}
    total = math.fsum(members[c] * share for c, share in most.items())
    return tuple(most[c] / total if c in most and members[c] else 0.0 for c in range(len(members)))


def group_problem(built: BuiltProblem, cluster: Cluster, most: int) -> GroupProblem:
    """The problem with groups of up to `most` devices.

    Args:
        built: the problem with one device a stage.
        cluster: what it was made from; without media.
        most: from 1.
    """
    wires = Wires(cluster)
    names = [group[0].name for group in built.classes]
    ports = [wires.port_of(name) for name in names]
    caller = None if cluster.caller is None else wires.port_of(cluster.caller)
    return GroupProblem(
        chain=dataclasses.replace(built.problem, shared=None),
        most=most,
        steady_s=np.array([(n == cluster.caller) * cluster.caller_overhead_s for n in names]),
        port_in_s=np.array([1 / port.in_bytes_per_s for port in ports]),
        port_out_s=np.array([1 / port.out_bytes_per_s for port in ports]),
        half_duplex=tuple(port.half_duplex for port in ports),
        has_caller=caller is not None,
        caller_class=names.index(cluster.caller) if cluster.caller in names else -1,
        caller_port_s=(
            (0.0, 0.0)
            if caller is None
            else (1 / caller.in_bytes_per_s, 1 / caller.out_bytes_per_s)
        ),
        caller_half=caller is not None and caller.half_duplex,
    )


def sizes_up_to(counts: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Every choice of devices by class, `most` at most, the empty one first.

    Raises:
        OverBudget: there are too many to list.
    """
    if math.prod(min(count, most) + 1 for count in counts) > MAX_CHOICES:
        raise OverBudget(f"{sum(counts)} devices have too many groups")
    every = itertools.product(*(range(min(count, most) + 1) for count in counts))
    return [chosen for chosen in every if sum(chosen) <= most]
