from __future__ import annotations

import msgspec
import pytest

from cutset.costs.profile import (
    PieceProfile,
    Profile,
    SizedTimings,
    Timing,
    in_words,
    of_sizes,
    profile_from_json,
    profile_to_json,
    with_backend,
)
from cutset.errors import PlanError


def took(seconds: float) -> Timing:
    return Timing(median_s=seconds, p10_s=seconds, p90_s=seconds, num_runs=3)


PROFILE = Profile(
    format="cutset-profile/1",
    model="net",
    device="pi",
    micro_batch=1,
    num_threads=1,
    pieces=(
        PieceProfile(last="a", flops=1, timings={"torch": took(1.0), "onnxruntime": took(2.0)}),
        PieceProfile(
            last="output", flops=2, timings={"torch": took(3.0), "onnxruntime": took(4.0)}
        ),
    ),
    software={},
    whole={"torch": took(4.0), "onnxruntime": took(6.0)},
    sizes=(
        SizedTimings(
            micro_batch=4,
            timings=({"torch": took(5.0)}, {"torch": took(6.0)}),
            whole={"torch": took(11.0)},
        ),
        SizedTimings(
            micro_batch=2,
            timings=({"onnxruntime": took(7.0)}, {"onnxruntime": took(8.0)}),
            whole={"onnxruntime": took(15.0)},
        ),
    ),
)


def test_a_profile_with_several_numbers_of_rows_is_taken_apart_and_put_together() -> None:
    assert PROFILE.micro_batches == (1, 2, 4)
    four = PROFILE.at(4)
    assert (four.micro_batch, four.sizes, four.whole) == (4, (), {"torch": took(11.0)})
    assert [(p.last, p.flops, p.timings) for p in four.pieces] == [
        ("a", 1, {"torch": took(5.0)}),
        ("output", 2, {"torch": took(6.0)}),
    ]
    assert of_sizes([PROFILE.at(rows) for rows in (1, 4, 2)]) == PROFILE
    assert profile_from_json(profile_to_json(PROFILE)) == PROFILE


def test_a_number_of_rows_without_costs_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match=r"of 1, 2 or 4 rows, not the 8 that were asked for; leave"):
        PROFILE.at(8)


def test_numbers_of_rows_go_where_the_backend_was_not_measured() -> None:
    assert with_backend(PROFILE, "torch").micro_batches == (1, 4)
    assert with_backend(PROFILE, "onnxruntime").at(2).whole == {"onnxruntime": took(15.0)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"micro_batch": 4}, r"a number of rows is there twice: \[4, 4, 2\]"),
        ({"pieces": PROFILE.pieces[:1]}, "with 4 rows there are 2 pieces, with 1 there are 1"),
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(
    changes: dict[str, object], words: str
) -> None:
    document = {**msgspec.to_builtins(PROFILE), **msgspec.to_builtins(changes)}
    with pytest.raises(PlanError, match=words):
        profile_from_json(msgspec.json.encode(document))


def test_numbers_of_rows_in_words() -> None:
    assert in_words((1,)) == "1 row"
    assert in_words((4,)) == "4 rows"
    assert in_words((1, 2, 8)) == "1, 2 or 8 rows"
