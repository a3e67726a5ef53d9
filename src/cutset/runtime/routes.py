"""Which replica of each stage a micro-batch passes: a function of its number in each epoch.

The caller and every worker work it out alike, so no message and no coordinator is needed. Within a
group it is smooth weighted round robin: each number adds a replica's weight to its credit, the one
with most credit is taken and pays the sum of all. Where the sequences of two neighbouring groups
have a common divisor, one replica would always meet the same of the next group; there the second
sequence slips by one each time that both have come round, so that all pairs meet by their shares.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

from cutset.links.parcels import CALLER

MOST_TURNS = 60
"""Numbers after which a group's sequence comes round, at most, unless its replicas are more: what
divides by 2, 3, 4, 5 and 6 is met exactly, any other share to a hundredth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups of a pipeline; their replicas, called members, are numbered through it.

    Attributes:
        sizes: replicas of each stage, 1 or more.
    """

    sizes: tuple[int, ...]

    @functools.cached_property
    def places(self) -> tuple[tuple[int, int], ...]:
        """Stage and replica of each member."""
        return tuple(
            (stage, replica) for stage, size in enumerate(self.sizes) for replica in range(size)
        )

    @functools.cached_property
    def members(self) -> tuple[range, ...]:
        """Members of each stage."""
        edges = (0, *itertools.accumulate(self.sizes))
        return tuple(range(start, stop) for start, stop in itertools.pairwise(edges))

    def name(self, member: int) -> str:
        """``"stage 1"``; of a member with siblings ``"stage 1 replica 0"``."""
        stage, replica = self.places[member]
        return f"stage {stage}" + (f" replica {replica}" if self.sizes[stage] > 1 else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Routes:
    """The routes of one epoch.

    Attributes:
        weights: for each stage how often each replica comes in a round; 0 for one that is away.
    """

    weights: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def groups(self) -> Groups:
        """The groups that the routes lead through, with those that are away."""
        return Groups(sizes=tuple(map(len, self.weights)))

    @functools.cached_property
    def members(self) -> frozenset[int]:
        """Who is there."""
        places = enumerate(self.groups.places)
        return frozenset(m for m, (stage, replica) in places if self.weights[stage][replica])

    @functools.cached_property
    def forks(self) -> tuple[int, ...]:
        """Stages of which several replicas are there."""
        return tuple(k for k, weights in enumerate(self.weights) if sum(map(bool, weights)) > 1)

    @functools.cached_property
    def _rounds(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """For each stage its round, and after how many numbers it slips (never: past all)."""
        rounds = []
        cycle = 1  # numbers after which the sequence of the stage before comes round
        for weights in self.weights:
            turns = _one_round(weights)
            if math.gcd(cycle, len(turns)) == 1:
                slip, cycle = 0, len(turns)
            else:
                slip = math.lcm(cycle, len(turns))
                cycle = slip * len(turns)
            rounds.append((turns, slip))
        return tuple(rounds)

    def replica(self, stage: int, sequence: int) -> int:
        """The replica of `stage` that micro-batch number `sequence` passes."""
        turns, slip = self._rounds[stage]
        if slip:
            sequence += sequence // slip
        return turns[sequence % len(turns)]

    def member(self, stage: int, sequence: int) -> int:
        """The member of `stage` that a micro-batch passes; the caller behind the last stage."""
        if stage == len(self.weights):
            return CALLER
        return self.groups.members[stage][self.replica(stage, sequence)]

    def passes(self, sequence: int, member: int) -> bool:
        """Whether a micro-batch passes a member."""
        return self.member(self.groups.places[member][0], sequence) == member

    def choices(self, sequence: int) -> tuple[int, ...]:
        """The members that a micro-batch passes where there are several."""
        return tuple(self.member(stage, sequence) for stage in self.forks)

    def share(self, member: int) -> float:
        """The part of all micro-batches that a member takes."""
        stage, replica = self.groups.places[member]
        return self.weights[stage][replica] / sum(self.weights[stage])

    def window(self, member: int, window: int) -> int:
        """Most micro-batches on their way through a member, of `window` in all.

        By its share, so that one that is slow holds back no more than its own.
        """
        return 1 + math.ceil((window - 1) * self.share(member) - 1e-9)


def whole_weights(shares: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the ratio of `shares`, exact where they can be, else as near as can be.

    Args:
        shares: one for each replica, 0 for one that is not there; one at least is above 0.

    Returns:
        0 for 0, else 1 or more; their sum is at most `MOST_TURNS`, or the number of replicas.
    """
    total = math.fsum(shares)
    parts = [share / total for share in shares]
    least = sum(part > 0 for part in parts)
    best: tuple[int, ...] = ()
    best_error = math.inf
    for turns in range(least, max(MOST_TURNS, least) + 1):
        weights = _rounded(parts, turns)
        error = max(abs(w / turns - part) for w, part in zip(weights, parts, strict=True))
        if error < best_error - 1e-9:
            best, best_error = weights, error
    return best


def _rounded(parts: Sequence[float], turns: int) -> tuple[int, ...]:
    """`turns` dealt out by `parts`, each at least one turn, the largest remainders rounded up."""
    spare = turns - sum(part > 0 for part in parts)
    ideal = [max(0.0, part * turns - 1) if part > 0 else 0.0 for part in parts]
    scale = spare / math.fsum(ideal) if any(ideal) else 0.0
    ideal = [each * scale for each in ideal]
    weights = [
        math.floor(each + 1e-9) + (part > 0) for each, part in zip(ideal, parts, strict=True)
    ]
    there = [index for index, part in enumerate(parts) if part > 0]
    there.sort(key=lambda index: weights[index] - 1 - ideal[index])
    for index in itertools.islice(itertools.cycle(there), turns - sum(weights)):
        weights[index] += 1
    return tuple(weights)


@functools.lru_cache(maxsize=256)
def _one_round(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Smooth weighted round robin until it comes round."""
    divisor = math.gcd(*weights)
    steps = [weight // divisor for weight in weights]
    credit_of = [0] * len(steps)
    turns = []
    for _ in range(sum(steps)):
        credit_of = [credit + step for credit, step in zip(credit_of, steps, strict=True)]
        taken = credit_of.index(max(credit_of))
        credit_of[taken] -= sum(steps)
        turns.append(taken)
    return tuple(turns)
