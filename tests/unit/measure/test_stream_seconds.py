from __future__ import annotations

import math
import time

import numpy as np
import pytest

from cutset.measure.stream_seconds import Spent, median_in_stream, stream_seconds, timed


def test_both_clocks_are_read() -> None:
    result, spent = timed(lambda: [time.sleep(0.01), "made"][1])
    assert result == "made"
    assert spent.clock_s >= 0.01
    assert spent.processor_s >= 0


# Two pieces, of 1 ms and of 3 ms, under 2 ms in every 4. The first is stopped in one run of four.
STOPPED = [
    [Spent(1.0, 1.0), Spent(5.0, 3.0)],
    [Spent(1.0, 1.0), Spent(7.0, 3.0)],
    [Spent(1.0, 1.0), Spent(5.0, 3.0)],
    [Spent(3.0, 1.0), Spent(7.0, 3.0)],
]


@pytest.mark.parametrize(
    ("samples", "num_threads", "quota", "expected"),
    [
        (STOPPED, 1, 0.5, [[2, 6], [2, 6], [2, 6], [2, 6]]),
        (STOPPED, 1, math.inf, [[1, 5], [1, 7], [1, 5], [3, 7]]),
        # Other processes had the core most of the time.
        ([[Spent(20.0, 4.0)], [Spent(30.0, 4.2)]], 1, 1.0, [[4.0], [4.2]]),
        # Two threads of which one or both compute, with the time of one and a half.
        ([[Spent(3.0, 3.0), Spent(3.0, 6.0)]], 2, 1.5, [[3.0, 4.0]]),
        ([[Spent(3.0, 6.0)]], 2, 2.5, [[3.0]]),
        # What another device computes takes little or no time of this processor.
        ([[Spent(8.0, 0.1)], [Spent(16.0, 0.2)]], 1, 0.5, [[8.0], [16.0]]),
        ([[Spent(8.0, 0.0)], [Spent(9.0, 0.0)]], 1, 0.5, [[8.0], [9.0]]),
    ],
)
def test_a_stream_takes_processor_time_over_the_quota(
    samples: list[list[Spent]], num_threads: int, quota: float, expected: list[list[float]]
) -> None:
    found = stream_seconds(np.array(samples), num_threads, quota=quota)
    assert found.tolist() == expected


def test_the_median_of_what_one_thread_did_several_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutset.measure.stream_seconds.quota_cores", lambda: 0.5)
    assert median_in_stream([Spent(1.0, 1.0), Spent(5.0, 3.0), Spent(2.0, 2.0)]) == 4.0
