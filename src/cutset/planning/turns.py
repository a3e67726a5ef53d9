"""Whose turn it is in a group of devices: a function of a micro-batch's number and of the shares.

Within a group it is smooth weighted round robin: each number adds a replica's weight to its credit,
the one with most credit is taken and pays the sum of all. Where the sequences of two neighbouring
groups have a common divisor, one replica would always meet the same of the next group; there the
second sequence slips by one each time that both have come round, so that all pairs meet by their
shares.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

MOST_TURNS = 10_000
"""Numbers after which a group's sequence comes round, at most, unless its replicas are more."""

SURPLUS = 0.001
"""What a replica may get above its share, as a part of that: by so much its group is slower."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turns:
    """The sequences of all groups of a pipeline.

    Attributes:
        weights: for each stage how often each replica comes in a round, one of them above 0.
    """

    weights: tuple[tuple[int, ...], ...]

    @functools.cached_property
    def _rounds(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        """For each stage its round, and after how many numbers it slips (0 for never)."""
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
        """The replica of `stage` whose turn is micro-batch number `sequence`."""
        turns, slip = self._rounds[stage]
        if slip:
            sequence += sequence // slip
        return turns[sequence % len(turns)]


def whole_weights(shares: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in the ratio of `shares`: the smallest that give nobody `SURPLUS` too much.

    Args:
        shares: one for each replica, 0 for one that is not there; one at least is above 0.

    Returns:
        0 for 0, else 1 or more; their sum is at most `MOST_TURNS`, or the number of replicas.
        Where no such numbers are near enough, the nearest.
    """
    total = math.fsum(shares)
    parts = [share / total for share in shares]
    there = [part for part in parts if part > 0]
    most = max(MOST_TURNS, len(there))
    # With fewer, one turn is too much for the smallest share.
    fewest = min(most, max(len(there), math.floor(1 / (min(there) * (1 + SURPLUS)))))
    best: tuple[int, ...] = ()
    least = math.inf
    for turns in range(fewest, most + 1):
        weights = _rounded(parts, turns)
        surplus = max(w / turns / part for w, part in zip(weights, parts, strict=True) if part) - 1
        if surplus < least:
            best, least = weights, surplus
        if surplus <= SURPLUS:
            break
    return best


def _rounded(parts: Sequence[float], turns: int) -> tuple[int, ...]:
    """`turns` dealt out so that the largest weight over its part is the least there is.

    Jefferson's rule, from which no weight is less than 1: each turn goes where that is least with
    it; none gets more than its part of `turns` + the number of replicas.
    """
    there = [index for index, part in enumerate(parts) if part > 0]
    sure = turns - len(there)
    weights = [max(1, math.floor(part * sure)) if part > 0 else 0 for part in parts]
    for _ in range(turns - sum(weights)):
        weights[min(there, key=lambda index: (weights[index] + 1) / parts[index])] += 1
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
