"""Which replica of each stage a micro-batch passes: a function of its number in each epoch.

The caller and every worker work it out alike, so no message and no coordinator is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

from cutset.links.parcels import CALLER
from cutset.planning.turns import Turns


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
    def _turns(self) -> Turns:
        return Turns(weights=self.weights)

    def replica(self, stage: int, sequence: int) -> int:
        """The replica of `stage` that micro-batch number `sequence` passes."""
        return self._turns.replica(stage, sequence)

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
