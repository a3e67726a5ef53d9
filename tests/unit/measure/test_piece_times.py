"""Which numbers of rows are measured, by a clock that moves as the pieces say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cutset.backends.base import Computation
from cutset.capture.captured_model import CapturedModel
from cutset.capture.torch_export import capture_model
from cutset.dtypes import Arrays
from cutset.measure import piece_times
from cutset.measure.piece_times import PieceBackend, PieceTimes
from cutset.measure.stream_seconds import Spent
from models_of_trouble import long_chain


@pytest.fixture(scope="module")
def captured() -> CapturedModel:
    return capture_model(long_chain(2), torch.randn(2, 4))


class _Clock:
    """Seconds that computations added to it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.run_rows: list[int] = []

    def timed(self, computation: Callable[[], Arrays]) -> tuple[Arrays, Spent]:
        began_s = self.now_s
        result = computation()
        return result, Spent(self.now_s - began_s, self.now_s - began_s)

    def backend(self, row_s: Callable[[int], float]) -> PieceBackend:
        """A piece takes half of the whole model's time, and that is `row_s` for each row."""

        def load(start: int, stop: int) -> Computation:
            share = 1.0 if (start, stop) == (0, 2) else 0.5

            def compute(arrays: Arrays) -> Arrays:
                rows = len(arrays[0])
                self.run_rows += [rows] if share == 1.0 else []
                self.now_s += share * rows * row_s(rows)
                return arrays

            return compute

        return load


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(piece_times, "timed", clock.timed)
    monkeypatch.setattr(piece_times.time, "perf_counter", lambda: clock.now_s)
    return clock


def times_of(captured: CapturedModel, **changes: Any) -> PieceTimes:
    options = {
        "micro_batch": 1,
        "more_sizes": (2, 4, 8, 16),
        "num_threads": 1,
        "num_runs": 20,
        "max_seconds": 1e6,
        "progress": None,
        **changes,
    }
    return PieceTimes(captured=captured, positions=(0, 1, 2), **options)


def test_more_rows_are_tried_while_they_do_not_do_less(
    captured: CapturedModel, clock: _Clock
) -> None:
    times = times_of(captured)
    times.measure("even", clock.backend(lambda rows: 1.0))
    # 22 rows with one, then 12, 16 and 32; 64 more would be over three times 22.
    assert [clock.run_rows.count(rows) for rows in (1, 2, 4, 8, 16)] == [22, 6, 4, 4, 0]
    assert {rows: [t.median_s for t in found["even"]] for rows, found in times.found.items()} == {
        1: [0.5, 0.5, 1.0],
        2: [1.0, 1.0, 2.0],
        4: [2.0, 2.0, 4.0],
        8: [4.0, 4.0, 8.0],
    }


def test_sixteen_rows_are_tried_where_a_row_then_takes_little(
    captured: CapturedModel, clock: _Clock
) -> None:
    times = times_of(captured)
    times.measure("overhead", clock.backend(lambda rows: 0.1 + 1 / rows))
    assert sorted(times.found) == [1, 2, 4, 8, 16]


def test_where_more_rows_do_less_no_more_are_tried(captured: CapturedModel, clock: _Clock) -> None:
    times = times_of(captured)
    times.measure("falls", clock.backend(lambda rows: 1.0 if rows < 4 else 1.1))
    assert sorted(times.found) == [1, 2, 4]


def test_a_backend_that_is_far_behind_is_measured_with_the_first_number_alone(
    captured: CapturedModel, clock: _Clock
) -> None:
    times = times_of(captured)
    times.measure("fast", clock.backend(lambda rows: 1.0))
    times.measure("slow", clock.backend(lambda rows: 1.6))
    assert {rows: list(found) for rows, found in times.found.items()} == {
        1: ["fast", "slow"],
        2: ["fast"],
        4: ["fast"],
        8: ["fast"],
    }


def test_without_memory_for_it_a_number_of_rows_is_not_tried(
    captured: CapturedModel, clock: _Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_bytes = max(piece_times.live_bytes(captured.graph))
    monkeypatch.setattr(piece_times, "free_memory_bytes", lambda: 2 * 4 * row_bytes)
    times = times_of(captured)
    times.measure("large", clock.backend(lambda rows: 1.0))
    assert sorted(times.found) == [1, 2, 4]


def test_what_fails_with_more_rows_keeps_what_it_did_with_fewer(
    captured: CapturedModel, clock: _Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def row_s(rows: int) -> float:
        if rows > 2:
            raise MemoryError("no room for four")
        return 1.0

    times = times_of(captured)
    times.measure("small", clock.backend(row_s))
    assert sorted(times.found) == [1, 2]
    assert "small is not measured with 4 rows: no room for four" in caplog.text
