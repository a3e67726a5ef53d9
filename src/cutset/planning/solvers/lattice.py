"""States of a search over device orders: how many devices of each class are in use.

Interchangeable devices collapse to counts, so that 4 + 4 devices of two kinds have 25 states and
not 256; p distinct devices have 2^p.
"""

from __future__ import annotations

import math

import numpy as np

from cutset.planning.problem import ChainProblem
from cutset.planning.totals import Floats, Ints


class Lattice:
    """States in levels: level k holds the states in which k devices are in use.

    A state is a number whose mixed-radix digits are the counts in use. With a fixed order there
    is one state a level, and the last device used tells which may follow; likewise where devices
    may be used again.

    Attributes:
        num_levels: the most devices that a plan can use.
        num_states: how large a state's number can get, plus 1.
        strides: what one more device of each class adds to a state's number, shape (C,).
    """

    def __init__(self, problem: ChainProblem) -> None:
        self._fixed = problem.fixed_order
        self._one_a_level = problem.fixed_order or problem.reuse
        self._caps = np.asarray(problem.counts, dtype=np.int64)
        self.num_levels = problem.max_stages
        if self._one_a_level:
            self.num_states = self.num_levels + 1
            self.strides: Ints = np.ones(problem.num_classes, dtype=np.int64)
        else:
            self.num_states = math.prod(count + 1 for count in problem.counts)
            sizes = [1, *(count + 1 for count in problem.counts)]
            self.strides = np.cumprod(np.asarray(sizes, dtype=np.int64))[:-1]
        self._work, self._rates = problem.volume()
        self._suffix: Floats = np.append(np.cumsum(self._work[::-1])[::-1], 0.0)

    def can_follow(self, device_class: int, next_class: int) -> bool:
        """Whether a stage on `next_class` may come right after one on `device_class`."""
        return not self._fixed or device_class < next_class

    def in_use(self, states: Ints, device_class: int) -> Ints:
        """How many devices of a class each state uses."""
        radix: Ints = states // self.strides[device_class] % (self._caps[device_class] + 1)
        return radix

    def has_room(self, states: Ints, device_class: int) -> np.ndarray:
        """Which states have a device of a class left."""
        if self._one_a_level:
            return np.ones(len(states), dtype=bool)
        room: np.ndarray = self.in_use(states, device_class) < self._caps[device_class]
        return room

    def least_boundary(self, states: Ints, limit_s: float) -> Ints:
        """The first boundary from which the devices left over could finish within `limit_s`.

        Volume: what remains must fit into `limit_s` on all of them at once.
        """
        if math.isinf(limit_s) or self._one_a_level:
            return np.zeros(len(states), dtype=np.int64)
        left = np.full(len(states), float(self._caps @ self._rates))
        for device_class, rate in enumerate(self._rates):
            left -= self.in_use(states, device_class) * rate
        budget = limit_s * np.maximum(left, 0.0) + 1e-9 * limit_s * float(self._rates.max())
        first = np.searchsorted(-self._suffix, -budget, side="left")
        least: Ints = np.minimum(first, len(self._suffix) - 1).astype(np.int64)
        return least
