"""Exact plans over all downsets of a graph, not only the prefixes of one order.

A *downset* holds with every node all that it depends on; a stage is the difference of two. After
nodes that must stay together (and the cycles that this makes) are contracted, all downsets are
listed where they are few, and dynamic programming runs over them by rising work (Tarnawski,
Phanishayee, Devanur, Mahajan, Nina Paravecino: Efficient Algorithms for Device Placement of DNN
Graph Operators, NeurIPS 2020, who also give the rule in which tensors go through host memory).

The load of a stage from downset A to downset B under that rule is, with F(X) the tensors that are
made in X and used outside, and c(F) their cost::

    work(B) - work(A)  +  c(F(A)) + c(F(B))
      - sum over t in F(A) and F(B) of c(t) * (2 if nobody in B - A uses t else 1)

so everything but the last sum is known from A and B alone, and that sum runs over the few tensors
of F(A). All B of one A go through NumPy together. A plan known beforehand bounds the work of a
stage, so only a window of the sorted downsets is looked at.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from cutset.planning.deadline import NEVER, Deadline
from cutset.planning.totals import Digits, Floats, Ints, digits_of

MAX_DOWNSETS = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor between nodes: who makes it, who reads it, and what it costs to send."""

    source: int
    targets: tuple[int, ...]
    transfer_s: float
    num_bytes: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DagProblem:
    """Place a graph's nodes on devices, stage by stage.

    Attributes:
        seconds: of each node on each class of devices, shape (C, n); infinity where impossible.
        weight_bytes: of each node, shape (n,).
        tensors: what goes between nodes.
        groups: nodes with the same number share a stage, shape (n,).
        counts: how many devices each class has.
        limit_bytes: memory of a device of each class, shape (C,); infinity for no limit.
        through_host: the rule of transfers. False: a cut sends every tensor that is alive there to
            the next stage (tensors for later stages are passed on), while stages compute, unless
            `serial`. True: a stage takes from and gives to host memory every tensor that crosses
            its border, one after the other with computing.
        pays: by class, whether its stages pay for transfers through the host, shape (C,).
        link_latency_s: what each cut costs besides its tensors; not used through the host.
        serial: whether computing and sending add up; always so through the host.
        num_stages: exactly this many, or None for any number.
        max_tensors: the most tensors that may be alive at a cut, or None.
        overhead_s: seconds that a stage on each class is busy besides computing, shape (C,); none
            where empty. They count in a period, and not in a latency, and so do the costs of bytes.
        send_s_per_byte: seconds of computing that a byte takes from the stage that sends it.
        receive_s_per_byte: the same from the stage that receives it.
        fixed_order: whether stages use the classes (of one device each) in rising order.
        half_duplex: by class the seconds that a byte into, and one out of, its devices keep a port
            busy which does one at a time; empty where none does.
        medium: seconds of a message, and of each byte, on a medium that all messages share.
        deadline: when searches end.
    """

    seconds: Floats
    weight_bytes: Floats
    tensors: tuple[Tensor, ...]
    groups: Ints
    counts: tuple[int, ...]
    limit_bytes: Floats
    through_host: bool = False
    pays: tuple[bool, ...] = ()
    link_latency_s: float = 0.0
    serial: bool = False
    num_stages: int | None = None
    max_tensors: int | None = None
    overhead_s: tuple[float, ...] = ()
    send_s_per_byte: float = 0.0
    receive_s_per_byte: float = 0.0
    fixed_order: bool = False
    half_duplex: tuple[tuple[float, float], ...] = ()
    medium: tuple[float, float] | None = None
    deadline: Deadline = NEVER


@dataclasses.dataclass(frozen=True, kw_only=True)
class DagSolution:
    """An answer over a graph.

    Attributes:
        stages: the nodes of each, in pipeline order.
        classes: the class of the device of each stage.
        loads_s: seconds of each stage under the problem's rule, cuts not included.
        cuts_s: seconds to send across each cut; zeros through the host.
        period_s: the largest load, cut, or port.
        latency_s: seconds for one micro-batch alone.
        num_downsets: how many were searched.
        family: ``"downset"``, or ``"orders"`` where there were too many downsets.
        cut_bytes: that cross each cut.
        medium_s: seconds that all cuts together keep the medium busy; 0 without one.
    """

    stages: tuple[tuple[int, ...], ...]
    classes: tuple[int, ...]
    loads_s: tuple[float, ...]
    cuts_s: tuple[float, ...]
    period_s: float
    latency_s: float
    num_downsets: int
    family: str
    cut_bytes: tuple[int, ...] = ()
    medium_s: float = 0.0

    @property
    def busiest_s(self) -> float:
        """Seconds per micro-batch: the period, the medium included."""
        return max(self.period_s, self.medium_s)


def contract(problem: DagProblem) -> tuple[list[list[int]], list[set[int]]]:
    """Nodes that must share a stage, and between these parts who depends directly on whom.

    A group is contracted, and so is every cycle that arises: if u and v share a stage, so does
    all that lies on a path between them, because a stage is a difference of downsets.

    Returns:
        The nodes of each part, in a topological order of parts, and each part's predecessors.
    """
    _, group_of = np.unique(problem.groups, return_inverse=True)
    following: list[set[int]] = [set() for _ in range(int(group_of.max()) + 1)]
    for tensor in problem.tensors:
        for target in tensor.targets:
            a, b = int(group_of[tensor.source]), int(group_of[target])
            if a != b:
                following[a].add(b)
    part_of = _strong_components(following)
    num = max(part_of) + 1
    parts: list[list[int]] = [[] for _ in range(num)]
    for node, group in enumerate(group_of):
        parts[part_of[int(group)]].append(node)
    before: list[set[int]] = [set() for _ in range(num)]
    for a, others in enumerate(following):
        for b in others:
            if part_of[a] != part_of[b]:
                before[part_of[b]].add(part_of[a])
    return parts, before


def _strong_components(following: list[set[int]]) -> list[int]:
    """Tarjan's algorithm without recursion; components are numbered in topological order."""
    num = len(following)
    order, low, place = [-1] * num, [0] * num, [0] * num
    component: dict[int, int] = {}
    stack: list[int] = []
    counter, found = 0, 0
    for root in range(num):
        if order[root] >= 0:
            continue
        work = [(root, iter(sorted(following[root])))]
        while work:
            node, rest = work[-1]
            if order[node] < 0:
                order[node] = low[node] = counter
                counter += 1
                place[node] = len(stack)
                stack.append(node)
            for child in rest:
                if order[child] < 0:
                    work.append((child, iter(sorted(following[child]))))
                    break
                if child not in component:  # it is on the stack
                    low[node] = min(low[node], order[child])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    component |= dict.fromkeys(stack[place[node] :], found)
                    del stack[place[node] :]
                    found += 1
    # Tarjan finds the last component first.
    return [found - 1 - component[node] for node in range(num)]


def list_downsets(before: list[set[int]], limit: int = MAX_DOWNSETS) -> list[int] | None:
    """Every downset as a bit mask, with the empty and the full one; None if more than `limit`."""
    needs = [sum(1 << p for p in parts) for parts in before]
    after: list[list[int]] = [[] for _ in before]
    for node, parts in enumerate(before):
        for p in parts:
            after[p].append(node)
    # Each downset is kept with the nodes that can be added next, so that adding one is cheap.
    first = tuple(node for node, need in enumerate(needs) if not need)
    seen = {0}
    layer: list[tuple[int, tuple[int, ...]]] = [(0, first)]
    while layer:
        grown: list[tuple[int, tuple[int, ...]]] = []
        for mask, ready in layer:
            for node in ready:
                other = mask | 1 << node
                if other in seen:
                    continue
                seen.add(other)
                if len(seen) > limit:
                    return None
                fresh = tuple(n for n in after[node] if needs[n] & ~other == 0)
                grown.append((other, tuple(n for n in ready if n != node) + fresh))
        layer = grown
    return list(seen)


class Space:
    """Downsets with all that the search needs to know of each, sorted by work."""

    def __init__(self, problem: DagProblem, masks: list[int], parts: list[list[int]]) -> None:
        num, count = len(parts), len(masks)
        width = (num + 7) // 8
        raw = np.frombuffer(b"".join(m.to_bytes(width, "little") for m in masks), dtype=np.uint8)
        bits = np.unpackbits(raw.reshape(count, width), axis=1, bitorder="little", count=num)
        part_seconds = np.array(
            [[math.fsum(row[part]) for part in parts] for row in problem.seconds]
        )
        work = part_seconds.min(axis=0)
        work[np.isinf(work)] = 0.0
        # Whole numbers add without rounding, so a larger downset never seems to hold less work.
        scale = 2.0**50 / (float(work.sum()) or 1.0)
        whole = bits @ np.rint(work * scale).astype(np.int64)
        order = np.lexsort((bits.sum(axis=1, dtype=np.int64), whole))
        bits = bits[order]
        self.member: npt.NDArray[np.bool_] = np.ascontiguousarray(bits.T).astype(bool)
        self.work: Floats = whole[order] / scale
        finite = np.where(np.isinf(part_seconds), 0.0, part_seconds)
        self._parts = digits_of(finite, num_terms=num)
        # What the parts of each downset take on each class: digits of it, shape (L, C, count).
        self.totals: Ints = self._parts.digits @ self.member.astype(np.int64)
        self.impossible: Ints = np.isinf(part_seconds).astype(np.int64) @ self.member
        self.size: Floats = (
            np.array([problem.weight_bytes[part].sum() for part in parts]) @ self.member
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(work > 0, work / part_seconds, 0.0)
        self.rates: Floats = ratio.max(axis=1)
        self._read_tensors(problem, parts)

    def seconds_between(self, start: int, window: slice, device_class: int) -> Floats:
        """Seconds of what the downsets of a window hold more than the one at `start`."""
        row = self.totals[:, device_class]
        return self._parts.together(row[:, window] - row[:, start, None])

    def _read_tensors(self, problem: DagProblem, parts: list[list[int]]) -> None:
        part_of = {node: k for k, part in enumerate(parts) for node in part}
        self.costs: list[float] = []
        self.num_bytes: list[float] = []
        self.sources: list[int] = []
        self.targets: list[tuple[int, ...]] = []
        alive = []
        for tensor in problem.tensors:
            source = part_of[tensor.source]
            targets = tuple(sorted({part_of[t] for t in tensor.targets} - {source}))
            if targets:
                self.costs.append(tensor.transfer_s)
                self.num_bytes.append(tensor.num_bytes)
                self.sources.append(source)
                self.targets.append(targets)
                done = np.logical_and.reduce(self.member[list(targets)], axis=0)
                alive.append(self.member[source] & ~done)
        count = self.member.shape[1]
        self.alive: npt.NDArray[np.bool_] = np.array(alive, dtype=bool).reshape(-1, count)
        self.cut_s: Floats = np.asarray(self.costs, dtype=np.float64) @ self.alive
        self.cut_bytes: Floats = np.asarray(self.num_bytes, dtype=np.float64) @ self.alive
        self.num_alive: Ints = self.alive.sum(axis=0)
        self._given: dict[float, tuple[Digits, Ints]] = {}

    def through_host_s(self, start: int, window: slice, send: float, receive: float) -> Floats:
        """Seconds to take all that enters, and to give all that leaves, of stages from `start`.

        Args:
            start: the downset that the stages begin after.
            window: those that they end at, containment not checked.
            send: seconds that each byte takes besides where it leaves.
            receive: where it enters.
        """
        if send not in self._given:
            given_s = np.asarray(self.costs) + send * np.asarray(self.num_bytes)
            digits = digits_of(given_s, num_terms=len(given_s))
            self._given[send] = digits, digits.digits @ self.alive.astype(np.int64)
        given, leaving = self._given[send]
        entering = np.flatnonzero(self.alive[:, start])
        # Of what is alive after a stage, what was alive before it does not leave it.
        left = leaving[:, window] - given.digits[:, entering] @ self.alive[entering, window].astype(
            np.int64
        )
        total = given.together(left)
        for t in entering:
            users = [k for k in self.targets[t] if not self.member[k, start]]
            taken_s = self.costs[t] + receive * self.num_bytes[t]
            total = total + taken_s * np.logical_or.reduce(self.member[users, window], axis=0)
        return total

    def keep(self, chosen: npt.NDArray[np.bool_]) -> None:
        """Drops the downsets that are not chosen."""
        for name in (
            "member",
            "work",
            "totals",
            "impossible",
            "size",
            "alive",
            "cut_s",
            "cut_bytes",
        ):
            setattr(self, name, np.ascontiguousarray(getattr(self, name)[..., chosen]))
        self.num_alive = self.num_alive[chosen]
        self._given = {}
