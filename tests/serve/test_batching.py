from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutset.data.pixels import normalised
from cutset.errors import EngineError, StageFailed
from cutset.serve.batching import Batcher, Ticket
from cutset.serve.refusal import Refusal
from cutset.tensors import TensorSpec

from .held import WIDTH, HeldSession


def _rows(*numbers: int) -> np.ndarray:
    return np.repeat(np.array(numbers, np.float32)[:, np.newaxis], WIDTH, axis=1)


def _batcher(session: HeldSession, *, max_queue: int = 8, max_delay_s: float = 0.0) -> Batcher:
    return Batcher(session, max_queue=max_queue, max_delay_s=max_delay_s)  # type: ignore[arg-type]


def _hand_in(batcher: Batcher, rows: np.ndarray) -> Ticket:
    batcher.accept(len(rows))
    return batcher.submit((rows,), len(rows))


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


def _run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def test_a_bundle_for_one_number_of_rows_gets_no_other() -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=2, window=4, micro_batch_only=2)
        batcher = _batcher(session, max_delay_s=60.0)
        batcher.check_room()
        for num_rows in (1, 3):
            with pytest.raises(Refusal, match="micro-batches of exactly 2 rows") as caught:
                batcher.accept(num_rows)
            assert caught.value.status == 400
        tickets = [_hand_in(batcher, _rows(1, 2, 3, 4)), _hand_in(batcher, _rows(5, 6))]
        session.answer()
        session.answer()
        session.answer()
        assert [rows[:, 0].tolist() for rows in session.sent] == [[1, 2], [3, 4], [5, 6]]
        assert (await tickets[0].future)[0][:, 0].tolist() == [2, 4, 6, 8]

    _run(test())


def test_rows_of_several_requests_share_micro_batches() -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=4, window=1)
        batcher = _batcher(session)
        first = _hand_in(batcher, _rows(1))  # goes at once: max_delay_s is 0
        others = [_hand_in(batcher, _rows(2, 3)), _hand_in(batcher, _rows(4, 5, 6))]
        session.answer()
        await _until(lambda: len(session.sent) == 2)
        session.answer()
        await _until(lambda: len(session.sent) == 3)
        session.answer()
        assert [rows[:, 0].tolist() for rows in session.sent] == [[1], [2, 3, 4, 5], [6]]
        assert (await first.future)[0][:, 0].tolist() == [2]
        assert (await others[0].future)[0][:, 0].tolist() == [4, 6]
        assert (await others[1].future)[0][:, 0].tolist() == [8, 10, 12]
        assert others[1].sequences == [1, 2]
        assert batcher.num_accepted_rows == 0
        assert batcher.num_answered_rows == 6

    _run(test())


def test_images_travel_as_pixels_unless_rows_of_numbers_share_their_micro_batch() -> None:
    async def test() -> None:
        spec = TensorSpec(name="x", shape=("batch", 3, 2, 2), dtype="float32")
        session = HeldSession(
            micro_batch=2, window=1, input_spec=spec, output_spec=spec, takes_pixels=True
        )
        batcher = _batcher(session)
        pixels = np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3)
        rows = normalised(pixels, session.bundle.manifest.preprocessing)
        _hand_in(batcher, pixels[:1])
        _hand_in(batcher, pixels[1:])
        _hand_in(batcher, pixels[:1])
        _hand_in(batcher, rows[1:2])
        for number in (2, 3):
            session.answer()
            await _until(lambda number=number: len(session.sent) == number)  # type: ignore[misc]
        assert [sent.dtype.name for sent in session.sent] == ["uint8", "uint8", "float32"]
        assert np.array_equal(session.sent[1], pixels[1:])
        assert np.array_equal(session.sent[2], rows[:2])

    _run(test())


def test_rows_wait_for_company_until_the_micro_batch_is_full() -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=3)
        batcher = _batcher(session, max_delay_s=1000.0)
        _hand_in(batcher, _rows(1))
        _hand_in(batcher, _rows(2))
        assert session.sent == []
        _hand_in(batcher, _rows(3))
        assert [rows[:, 0].tolist() for rows in session.sent] == [[1, 2, 3]]

    _run(test())


def test_rows_wait_for_company_until_the_delay_is_over() -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=3)
        batcher = _batcher(session, max_delay_s=0.001)
        _hand_in(batcher, _rows(1))
        assert session.sent == []
        await _until(lambda: len(session.sent) == 1)

    _run(test())


def test_rows_that_wait_for_company_go_when_the_server_leaves() -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=3)
        batcher = _batcher(session, max_delay_s=1000.0)
        _hand_in(batcher, _rows(1))
        batcher.drain()
        assert [rows[:, 0].tolist() for rows in session.sent] == [[1]]
        with pytest.raises(Refusal, match="about to leave"):
            batcher.accept(1)

    _run(test())


def test_the_queue_is_bounded_and_a_large_request_goes_alone() -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=2, window=1)
        batcher = _batcher(session, max_queue=2)
        tickets = [_hand_in(batcher, _rows(1, 2)), _hand_in(batcher, _rows(3, 4))]
        with pytest.raises(Refusal, match="queue is full: 4 of 4 rows") as caught:
            batcher.accept(1)
        assert (caught.value.status, caught.value.reason) == (503, "overload")
        assert caught.value.retry_after_s is not None
        for ticket in tickets:
            session.answer()
            await ticket.future
            await _until(lambda: batcher.num_in_flight == 0 or bool(session.held))
        large = _hand_in(
            batcher, _rows(*range(9))
        )  # more than the queue holds, nobody else is there
        for _ in range(5):
            await _until(lambda: bool(session.held))
            session.answer()
        assert (await large.future)[0][:, 0].tolist() == [2.0 * each for each in range(9)]

    _run(test())


def test_an_eighth_of_the_queue_is_left_for_a_pace_that_varies() -> None:
    session = HeldSession(micro_batch=2, window=1)
    limits = [_batcher(session, max_queue=each).max_rows for each in (1, 7, 8, 32, 64)]
    assert limits == [2, 14, 14, 56, 112]


def test_dropped_rows_are_not_computed() -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=1, window=1)
        batcher = _batcher(session)
        first, second, third = (_hand_in(batcher, _rows(each)) for each in (1, 2, 3))
        batcher.drop(second)
        batcher.drop(first)  # is under way already: computed, but for nobody
        session.answer()
        await _until(lambda: len(session.sent) == 2)
        session.answer()
        assert (await third.future)[0][:, 0].tolist() == [6]
        assert [rows[:, 0].tolist() for rows in session.sent] == [[1], [3]]
        assert batcher.num_accepted_rows == 0
        assert batcher.num_dropped_rows == 2

    _run(test())


def test_a_bad_row_fails_its_own_request_only() -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=2, window=1)
        batcher = _batcher(session)
        _hand_in(batcher, _rows(0))
        good, bad = _hand_in(batcher, _rows(1)), _hand_in(batcher, _rows(2))
        failure = StageFailed("it does not like 2", stage=0, device="cpu")
        session.answer()
        await _until(lambda: len(session.held) == 1)
        session.answer(failure)
        await _until(lambda: len(session.held) == 1)
        session.answer()
        await _until(lambda: len(session.held) == 1)
        session.answer(failure)
        assert (await good.future)[0][:, 0].tolist() == [2]
        with pytest.raises(StageFailed, match="does not like 2"):
            await bad.future
        sent = [rows[:, 0].tolist() for rows in session.sent]
        assert sent == [[0], [1, 2], [1], [2]]
        assert batcher.num_accepted_rows == 0

    _run(test())


def test_the_end_of_the_session_fails_everyone_and_is_told_once() -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=1, window=1)
        told: list[Exception] = []
        batcher = Batcher(session, max_queue=8, max_delay_s=0, on_broken=told.append)  # type: ignore[arg-type]
        tickets = [_hand_in(batcher, _rows(each)) for each in (1, 2, 3)]
        session.over = EngineError("stage 0 does not come back")
        session.answer()
        assert (await tickets[0].future)[0][:, 0].tolist() == [2]
        for ticket in tickets[1:]:
            with pytest.raises(EngineError, match="does not come back"):
                await ticket.future
        assert told == [session.over]
        with pytest.raises(Refusal, match="pipeline is over: stage 0 does not come back"):
            batcher.accept(1)
        assert batcher.num_accepted_rows == 0

    _run(test())


def test_rows_that_cannot_be_joined_go_request_by_request() -> None:
    async def test() -> None:
        output = TensorSpec(name="y", shape=(2, "batch"), dtype="float32")
        session = HeldSession(micro_batch=2, window=9, output_spec=output)
        batcher = _batcher(session)
        _hand_in(batcher, _rows(1, 2, 3))
        _hand_in(batcher, _rows(4))
        assert [rows[:, 0].tolist() for rows in session.sent] == [[1, 2, 3], [4]]
        assert batcher.num_in_flight == 3

    _run(test())


@settings(max_examples=60, deadline=None)
@given(
    micro_batch=st.integers(1, 5),
    window=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    dropped=st.sets(st.integers(0, 11)),
    data=st.data(),
)
def test_rows_never_get_mixed_up(
    micro_batch: int, window: int, sizes: list[int], dropped: set[int], data: st.DataObject
) -> None:
    async def test() -> None:
        session = HeldSession(micro_batch=micro_batch, window=window)
        batcher = _batcher(session, max_queue=1000)
        tickets: dict[int, tuple[Ticket, np.ndarray]] = {}
        start = 0
        for index, size in enumerate(sizes):
            rows = _rows(*range(start, start + size))
            start += size
            tickets[index] = (_hand_in(batcher, rows), rows)
            if session.held and data.draw(st.booleans()):
                session.answer()
                await asyncio.sleep(0)
        for index in dropped & set(tickets):
            batcher.drop(tickets.pop(index)[0])
        while batcher.num_accepted_rows:
            if session.held:
                session.answer()
            await asyncio.sleep(0)
        for ticket, rows in tickets.values():
            assert np.array_equal((await ticket.future)[0], rows * 2)
        assert batcher.num_waiting_rows == 0
        assert all(len(rows) <= micro_batch for rows in session.sent)

    _run(test())
