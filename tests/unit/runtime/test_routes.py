from __future__ import annotations

import collections
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutset.runtime.routes import Groups, Routes

_WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple)


def _sequence(routes: Routes, stage: int, count: int) -> list[int]:
    return [routes.replica(stage, number) for number in range(count)]


def test_members_are_numbered_through_the_pipeline() -> None:
    groups = Groups(sizes=(1, 3, 2))
    assert groups.places == ((0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1))
    assert groups.members == (range(1), range(1, 4), range(4, 6))
    assert [groups.name(member) for member in (0, 3, 4)] == [
        "stage 0",
        "stage 1 replica 2",
        "stage 2 replica 0",
    ]


def test_turns_lie_as_far_apart_as_they_can() -> None:
    routes = Routes(weights=((1,), (2, 1), (5, 1, 1), (0, 3, 0)))
    assert _sequence(routes, 0, 4) == [0, 0, 0, 0]
    assert _sequence(routes, 1, 6) == [0, 1, 0, 0, 1, 0]
    assert _sequence(routes, 2, 7) == [0, 0, 1, 0, 2, 0, 0]
    assert _sequence(routes, 3, 3) == [1, 1, 1]


@given(weights=_WEIGHTS, length=st.integers(1, 60), start=st.integers(0, 10**12))
def test_each_replica_takes_its_share_of_any_window(
    weights: tuple[int, ...], length: int, start: int
) -> None:
    """Of the first few within one; of any window within two, or one for two or equal ones."""
    routes = Routes(weights=(weights,))
    alike = len(weights) == 2 or len(set(weights)) == 1
    for begun, most in ((0, 1.0), (start, 1.0 if alike else 2.0)):
        taken = collections.Counter(routes.replica(0, begun + n) for n in range(length))
        for replica in range(len(weights)):
            assert abs(taken[replica] - length * routes.share(replica)) <= most + 1e-9


@given(groups=st.lists(_WEIGHTS, min_size=2, max_size=4).map(tuple), start=st.integers(0, 10**9))
def test_behind_other_groups_a_replica_takes_its_share_too(
    groups: tuple[tuple[int, ...], ...], start: int
) -> None:
    routes = Routes(weights=groups)
    for stage, weights in enumerate(groups):
        taken: collections.Counter[int] = collections.Counter()
        for count in range(1, 50):
            taken[routes.replica(stage, start + count)] += 1
            for replica in range(len(weights)):
                assert (
                    abs(
                        taken[replica] - count * routes.share(routes.groups.members[stage][replica])
                    )
                    <= 3.0
                )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, 1), (1, 1)),
        ((1, 1, 1), (1, 1, 1)),
        ((1, 1), (1,) * 4),
        ((2, 1), (1, 2)),
        ((1, 1), (3, 1)),
    ],
)
def test_all_pairs_of_neighbours_meet_by_their_shares(
    first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    routes = Routes(weights=(first, second, first))
    count = 10 * (sum(first) * sum(second)) ** 2
    for stage, (before, after) in enumerate([(first, second), (second, first)]):
        met = collections.Counter(
            (routes.replica(stage, number), routes.replica(stage + 1, number))
            for number in range(count)
        )
        for one, other in itertools.product(range(len(before)), range(len(after))):
            members = routes.groups.members
            share = routes.share(members[stage][one]) * routes.share(members[stage + 1][other])
            assert met[one, other] == pytest.approx(count * share, abs=count / 50)


@given(groups=st.lists(_WEIGHTS, min_size=1, max_size=3).map(tuple), number=st.integers(0, 10**15))
def test_whoever_asks_gets_the_same(groups: tuple[tuple[int, ...], ...], number: int) -> None:
    routes, others = Routes(weights=groups), Routes(weights=groups)
    for stage, weights in reversed(list(enumerate(groups))):
        assert 0 <= others.replica(stage, number) < len(weights)
        assert others.replica(stage, number) == routes.replica(stage, number)


def test_who_is_there_passes_what_by_its_window() -> None:
    routes = Routes(weights=((1,), (2, 0, 1), (0, 1)))
    assert routes.members == {0, 1, 3, 5}
    assert [routes.member(1, number) for number in range(4)] == [1, 3, 1, 1]
    assert routes.member(3, 0) == -1
    assert [routes.choices(number) for number in range(3)] == [(1,), (3,), (1,)]
    assert [routes.passes(1, member) for member in range(6)] == [
        True,
        False,
        False,
        True,
        False,
        True,
    ]
    assert [routes.window(member, 13) for member in (0, 1, 3, 5)] == [13, 9, 5, 13]
    copies = Routes(weights=((1, 1, 1),))
    assert [copies.window(member, 7) for member in range(3)] == [3, 3, 3]
