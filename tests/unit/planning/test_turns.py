"""Shares become turns; what routes make of turns is tested with them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutset.planning.turns import MOST_TURNS, SURPLUS, whole_weights


@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        ((1.0,), (1,)),
        ((1 / 3, 1 / 3, 1 / 3), (1, 1, 1)),
        ((0.5, 0.25, 0.25), (2, 1, 1)),
        ((0.6, 0.0, 0.4), (3, 0, 2)),
        ((0.999, 0.001), (999, 1)),
        ((1 - 1e-9, 1e-9), (9999, 1)),
        ((1.0,) * 70, (1,) * 70),
    ],
)
def test_shares_become_whole_numbers(shares: tuple[float, ...], weights: tuple[int, ...]) -> None:
    assert whole_weights(shares) == weights


@given(st.lists(st.just(0.0) | st.floats(0.01, 1.0), min_size=1, max_size=6).filter(any))
def test_nobody_gets_much_more_than_its_share(shares: list[float]) -> None:
    """A replica that did would be the slowest of its group, and the period longer by as much."""
    weights = whole_weights(shares)
    assert sum(weights) <= MOST_TURNS
    for weight, share in zip(weights, shares, strict=True):
        assert (weight > 0) == (share > 0)
        assert weight / sum(weights) <= share / sum(shares) * (1 + SURPLUS) + 1e-12
