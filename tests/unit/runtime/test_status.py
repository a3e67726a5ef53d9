from __future__ import annotations

import fractions
import math
from typing import Any

import msgspec
import numpy as np
import pytest

from cutset.engines.protocol import Load, Span
from cutset.runtime.status import Limits, WorkerRecord, checked_count

_NONE = [True, False, "5", None, b"5", [5], math.nan, np.bool_(True), 1j, np.array([1.0, 2.0])]
_SECONDS = [
    "heartbeat_s",
    "link_timeout_s",
    "connect_timeout_s",
    "start_timeout_s",
    "compute_timeout_s",
    "back_off_s",
]


@pytest.mark.parametrize("name", _SECONDS)
@pytest.mark.parametrize("value", [*_NONE, -1, -0.001, math.inf, -math.inf, 1e6 + 1, 10**400])
def test_seconds_outside_of_their_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is [0-9.]+ to 1e\+06 seconds, got"):
        Limits(**{name: value})


@pytest.mark.parametrize("name", [name for name in _SECONDS if name != "back_off_s"])
def test_no_time_at_all_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} is"):
        Limits(**{name: 0})
    assert Limits(back_off_s=0).back_off_s == 0.0


@pytest.mark.parametrize("name", ["max_restarts", "max_deaths"])
@pytest.mark.parametrize("value", [*_NONE, -1, 1.0, 1.5, math.inf, 1_000_001, 10**400])
def test_counts_outside_of_their_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is a whole number from [01] to 1000000, got"):
        Limits(**{name: value})


def test_the_ends_of_the_ranges_are_taken() -> None:
    with pytest.raises(ValueError, match=r"heartbeat_s is 0\.2 to"):
        Limits(heartbeat_s=0.19)
    least = Limits(
        heartbeat_s=0.2,
        link_timeout_s=0.1,
        connect_timeout_s=0.1,
        start_timeout_s=0.1,
        compute_timeout_s=0.1,
        back_off_s=0.0,
        max_restarts=0,
        max_deaths=1,
    )
    assert least.max_restarts == 0
    assert Limits(heartbeat_s=1e6, max_restarts=1_000_000).heartbeat_s == 1e6


def test_numbers_of_other_makes_become_plain_ones_that_messages_carry() -> None:
    limits = Limits(
        heartbeat_s=np.float32(2.5),  # type: ignore[arg-type]
        link_timeout_s=fractions.Fraction(1, 2),  # type: ignore[arg-type]
        connect_timeout_s=7,
        max_deaths=np.int64(2),  # type: ignore[arg-type]
    )
    assert msgspec.json.decode(msgspec.json.encode(limits), type=Limits) == limits
    assert (limits.heartbeat_s, limits.link_timeout_s, limits.max_deaths) == (2.5, 0.5, 2)
    assert type(limits.connect_timeout_s) is float
    assert checked_count("window", np.uint8(7), 1, 9) == 7


def _record() -> WorkerRecord:
    return WorkerRecord(
        Load(
            bundle="b",
            stage=0,
            member=0,
            backend="torch",
            micro_batch=1,
            num_threads=1,
            cpus=(),
            heartbeat_s=1.0,
            num_spans=2,
            num_slots=0,
            num_in_flight=1,
        )
    )


def _spans(*sequences: int) -> tuple[Span, ...]:
    return tuple(Span(sequence, "compute", 1.0, 2.0) for sequence in sequences)


def test_a_timeline_told_again_stands_in_the_place_of_the_one_before() -> None:
    record = _record()
    for call in range(1000):
        record.take_spans(_spans(call, call + 1), last=False)
        record.take_spans(_spans(call + 2), last=True)
        assert record.spans == _spans(call, call + 1, call + 2)
    assert record.spans_complete.is_set()


def test_half_a_timeline_of_a_worker_that_died_is_forgotten() -> None:
    record = _record()
    record.take_spans(_spans(1), last=True)
    record.take_spans(_spans(2), last=False)
    record.forget_worker()
    assert record.spans == _spans(1)
    record.take_spans(_spans(3), last=True)
    assert record.spans == _spans(3)
