from __future__ import annotations

import math

import numpy as np
import pytest

from cutset.planning.totals import Totals
from cutset.planning.variant import Variant


def test_small_numbers_survive_beside_large_ones() -> None:
    totals = Totals(np.array([1e15, 0.03, 1e-9, 0.0, 1e15, 1e-9]))
    assert totals.between(1, 2) == 0.03
    assert totals.between(1, 4) == 0.03 + 1e-9
    assert totals.between(5, 6) == 1e-9
    assert totals.between(3, 4) == 0.0
    assert totals.between(0, 6) == 2e15


@pytest.mark.parametrize("span", [(-9, 15), (-300, 300), (0, 1)])
def test_every_run_is_the_exact_sum_rounded(span: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    values = 10.0 ** rng.uniform(*span, 40)
    totals = Totals(values)
    for start in range(40):
        for stop in range(start, 41):
            exact = math.fsum(values[start:stop])
            assert totals.between(start, stop) == pytest.approx(exact, rel=1e-15, abs=0)


def test_least_numbers_and_zeros_alone_are_no_exception() -> None:
    least = 5e-324
    assert Totals(np.array([least, least, 1.0])).between(0, 2) == 2 * least
    assert Totals(np.zeros(3)).between(0, 3) == 0.0


def test_what_may_not_run_here_is_no_number() -> None:
    variant = Variant(
        device_class=0,
        backend="",
        seconds=np.array([1.0, math.inf, 2.0, 4.0]),
        furthest=np.full(4, 4),
    )
    assert variant.furthest.tolist() == [1, 1, 4, 4]
    assert variant.cost_s(0, 2) == math.inf
    assert variant.cost_s(2, 4) == 6.0
    assert variant.stops_within(5.0).tolist() == [1, 1, 3, 4]
    assert variant.stops_within(-1.0).tolist() == [0, 1, 2, 3]
