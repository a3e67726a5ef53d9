from __future__ import annotations

import numpy as np
import pytest

from cutset.errors import EngineError, StageFailed
from cutset.links.parcels import Parcel
from cutset.runtime.callbacks import AnswerFuture, CallbackThread
from cutset.runtime.ledger import Ledger, Request
from cutset.tensors import TensorSpec

_SPEC = TensorSpec(name="y", shape=("batch", 1), dtype="float32")
_DEATH = StageFailed("the worker of stage 1 died", stage=1, device="cpu:1")


def _array(values: object) -> np.ndarray:
    return np.array(values, np.float32)


class _Pipe:
    """Stands for the caller's circuit: keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[Parcel] = []

    def __call__(self, parcel: Parcel) -> None:
        self.sent.append(parcel)

    @property
    def sequences(self) -> list[int]:
        return [parcel.sequence for parcel in self.sent]


def _submit(ledger: Ledger, *values: float) -> Request:
    """A request of one row for each value, one row a micro-batch."""
    request = Request(len(values), (_SPEC,), lambda outputs: outputs[0].flatten().tolist())
    ledger.submit(request, [(1, (_array([[value]]),)) for value in values])
    return request


def _answer(ledger: Ledger, epoch: int, parcel: Parcel) -> None:
    ledger.answer(epoch, parcel.sequence, (parcel.tensors[0] * 10,))


def _opened(window: int = 2, max_deaths: int = 3) -> tuple[Ledger, _Pipe]:
    ledger, pipe = Ledger(window=window, max_deaths=max_deaths), _Pipe()
    ledger.open_epoch(1, pipe)
    return ledger, pipe


def test_no_more_than_the_window_is_in_flight() -> None:
    ledger, pipe = _opened(window=2)
    request = _submit(ledger, 1, 2, 3)
    assert pipe.sequences == [0, 1]
    _answer(ledger, 1, pipe.sent[0])
    assert pipe.sequences == [0, 1, 2]
    _answer(ledger, 1, pipe.sent[1])
    assert not request.future.done()
    _answer(ledger, 1, pipe.sent[2])
    assert request.future.result(0) == [10.0, 20.0, 30.0]


def test_an_answer_of_an_old_epoch_or_twice_is_dropped() -> None:
    ledger, pipe = _opened()
    request = _submit(ledger, 1)
    ledger.close_epoch(None)
    _answer(ledger, 1, pipe.sent[0])
    assert not request.future.done()
    ledger.open_epoch(2, pipe)
    ledger.answer(2, 0, (_array([[7.0]]),))
    ledger.answer(2, 0, (_array([[8.0]]),))
    assert request.future.result(0) == [7.0]
    assert ledger.num_settled == 1


def test_what_was_in_flight_is_replayed_first_and_in_order() -> None:
    ledger, pipe = _opened(window=3)
    for value in range(5):
        _submit(ledger, value)
    _answer(ledger, 1, pipe.sent[0])
    ledger.close_epoch(None)
    again = _Pipe()
    ledger.open_epoch(2, again)
    assert again.sequences == [1, 2, 3]


def test_after_a_death_suspects_are_sent_one_at_a_time() -> None:
    ledger, _ = _opened(window=3)
    requests = [_submit(ledger, value) for value in range(5)]
    ledger.close_epoch(_DEATH)
    again = _Pipe()
    ledger.open_epoch(2, again)
    sent_after_each_answer = []
    for number in range(5):
        sent_after_each_answer.append(again.sequences)
        _answer(ledger, 2, again.sent[number])
    assert sent_after_each_answer == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3, 4],
        [0, 1, 2, 3, 4],
    ]
    assert [request.future.result(0) for request in requests] == [[0], [10], [20], [30], [40]]


def test_the_third_death_fails_the_one_that_was_alone_in_flight() -> None:
    ledger, _ = _opened(window=2)
    requests = [_submit(ledger, value) for value in range(3)]
    assert ledger.close_epoch(_DEATH) == 0
    ledger.open_epoch(2, _Pipe())
    assert ledger.close_epoch(_DEATH) == 0
    ledger.open_epoch(3, _Pipe())
    assert ledger.close_epoch(_DEATH) == 1
    with pytest.raises(StageFailed, match="died 3 times") as caught:
        requests[0].future.result(0)
    assert (caught.value.stage, caught.value.device) == (1, "cpu:1")
    pipe = _Pipe()
    ledger.open_epoch(4, pipe)
    _answer(ledger, 4, pipe.sent[0])
    assert pipe.sequences == [1, 2]
    _answer(ledger, 4, pipe.sent[1])
    assert [request.future.result(0) for request in requests[1:]] == [[10.0], [20.0]]


def test_a_lost_link_makes_no_suspects() -> None:
    ledger, _ = _opened(window=2, max_deaths=1)
    request = _submit(ledger, 1, 2)
    assert ledger.close_epoch(None) == 0
    pipe = _Pipe()
    ledger.open_epoch(2, pipe)
    assert pipe.sequences == [0, 1]
    assert not request.future.done()


def test_a_failed_micro_batch_fails_its_request_and_drops_the_rest_of_it() -> None:
    ledger, pipe = _opened(window=1)
    bad, good = _submit(ledger, 1, 2, 3), _submit(ledger, 4)
    ledger.fail(1, 0, EngineError("no"))
    with pytest.raises(EngineError, match="no"):
        bad.future.result(0)
    assert pipe.sequences == [0, 3]
    _answer(ledger, 1, pipe.sent[1])
    assert good.future.result(0) == [40.0]


def test_a_cancelled_request_is_not_sent() -> None:
    ledger, pipe = _opened(window=1)
    _submit(ledger, 1)
    cancelled, last = _submit(ledger, 2, 3), _submit(ledger, 4)
    assert cancelled.future.cancel()
    _answer(ledger, 1, pipe.sent[0])
    assert pipe.sequences == [0, 3]
    _answer(ledger, 1, pipe.sent[1])
    assert last.future.result(0) == [40.0]


def test_the_end_fails_everything_open_and_all_that_follows() -> None:
    ledger, _ = _opened(window=1)
    requests = [_submit(ledger, 1), _submit(ledger, 2)]
    ledger.end(EngineError("over"))
    for request in requests:
        with pytest.raises(EngineError, match="over"):
            request.future.result(0)
    with pytest.raises(EngineError, match="over"):
        _submit(ledger, 3)


def test_joined_answers_keep_the_order_of_dimensions_and_are_nobody_elses() -> None:
    images = TensorSpec(name="images", shape=("batch", 3, 4, 5), dtype="float32")
    request = Request(2, (images,), lambda outputs: outputs)
    parts = [
        np.full((n, 4, 5, 3), n, np.float32).transpose(0, 3, 1, 2) for n in (2, 1)
    ]  # channels last in memory
    for index, part in enumerate(parts):
        request.put(index, (part,))
    request.resolve()
    (joined,) = request.future.result(0)
    assert joined[:, 0, 0, 0].tolist() == [2.0, 2.0, 1.0]
    assert joined.strides == (240, 4, 60, 12)
    assert joined.flags.writeable
    assert not any(np.shares_memory(joined, part) for part in parts)


def test_outputs_without_a_batch_are_not_joined() -> None:
    fixed = TensorSpec(name="table", shape=(2,), dtype="float32")
    request = Request(2, (_SPEC, fixed), lambda outputs: outputs)
    table = _array([5.0, 6.0])
    assert request.put(0, (_array([[1.0]]), table)) is False
    assert request.put(1, (_array([[2.0]]), table)) is True
    request.resolve()
    rows, same = request.future.result(0)
    assert np.array_equal(rows, _array([[1.0], [2.0]]))
    assert np.array_equal(same, table)


@pytest.mark.parametrize("was_sent", [False, True])
def test_ctrl_c_while_sending_loses_and_doubles_nothing(was_sent: bool) -> None:
    ledger, pipe = Ledger(window=2, max_deaths=3), _Pipe()
    interrupts = [KeyboardInterrupt()]

    def send(parcel: Parcel) -> None:
        if interrupts:
            if was_sent:
                pipe(parcel)
            raise interrupts.pop()
        pipe(parcel)

    request = Request(1, (_SPEC,), lambda outputs: outputs[0].flatten().tolist())
    ledger.open_epoch(1, send)
    with pytest.raises(KeyboardInterrupt):
        ledger.submit(request, [(1, (_array([[7.0]]),))])
    assert (ledger.num_in_flight, ledger.num_waiting) == (0, 1)
    after = _submit(ledger, 8)
    for parcel in list(pipe.sent):
        _answer(ledger, 1, parcel)
    assert request.future.result(0) == [70.0]
    assert after.future.result(0) == [80.0]
    assert (ledger.num_in_flight, ledger.num_waiting, ledger.num_settled) == (0, 0, 2)


class _Odd(_Pipe):
    """A pipe that cannot take some values."""

    def __init__(self, odd: float, error: BaseException) -> None:
        super().__init__()
        self.odd, self.error = odd, error

    def __call__(self, parcel: Parcel) -> None:
        if parcel.tensors[0].item() == self.odd:
            raise self.error
        super().__call__(parcel)


@pytest.mark.parametrize("error", [MemoryError(), ValueError("odd"), AssertionError("odd")])
@pytest.mark.parametrize("first", [True, False])
def test_what_cannot_be_sent_fails_alone(error: Exception, first: bool) -> None:
    ledger, pipe = Ledger(window=1, max_deaths=3), _Odd(7.0, error)
    ledger.open_epoch(1, pipe)
    before = None if first else _submit(ledger, 1)
    odd, after = _submit(ledger, 7), _submit(ledger, 2)
    if before is not None:
        _answer(ledger, 1, pipe.sent[0])  # the odd one is sent by whoever takes this answer
        assert before.future.result(0) == [10.0]
    with pytest.raises(EngineError, match=f"could not be sent: {type(error).__name__}") as caught:
        odd.future.result(0)
    assert caught.value.__cause__ is error
    _answer(ledger, 1, pipe.sent[-1])
    assert after.future.result(0) == [20.0]
    assert (ledger.num_in_flight, ledger.num_waiting) == (0, 0)


def test_ctrl_c_while_sending_loses_nothing() -> None:
    ledger, pipe = Ledger(window=2, max_deaths=3), _Odd(7.0, KeyboardInterrupt())
    ledger.open_epoch(1, pipe)
    with pytest.raises(KeyboardInterrupt):
        _submit(ledger, 7)
    pipe.odd = 0.0
    last = _submit(ledger, 2)
    assert [parcel.tensors[0].item() for parcel in pipe.sent] == [7.0, 2.0]
    _answer(ledger, 1, pipe.sent[1])
    assert last.future.result(0) == [20.0]


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't allocate memory"), SystemExit(3)]
)
@pytest.mark.parametrize("num_parts", [1, 2])
def test_an_answer_that_cannot_be_put_together_goes_into_its_future(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, num_parts: int
) -> None:
    def fail(_: object) -> object:
        raise error

    ledger, pipe = _opened(window=3)
    request = Request(num_parts, (_SPEC,), fail if num_parts == 1 else list)
    ledger.submit(request, [(1, (_array([[1.0]]),))] * num_parts)
    after = _submit(ledger, 2)
    with monkeypatch.context() as patch:
        patch.setattr(np, "concatenate", fail)
        for parcel in pipe.sent[:num_parts]:
            _answer(ledger, 1, parcel)
    with pytest.raises(EngineError, match=f"put together .*{type(error).__name__}") as caught:
        request.future.result(0)
    assert caught.value.__cause__ is error
    assert error.__traceback__ is None  # which would keep the parts in memory
    _answer(ledger, 1, pipe.sent[num_parts])
    assert after.future.result(0) == [20.0]


def test_an_answer_is_given_though_the_next_cannot_be_sent_at_all() -> None:
    ledger, pipe = Ledger(window=1, max_deaths=3), _Odd(7.0, KeyboardInterrupt())
    ledger.open_epoch(1, pipe)
    first = _submit(ledger, 1)
    _submit(ledger, 7)
    with pytest.raises(KeyboardInterrupt):
        _answer(ledger, 1, pipe.sent[0])
    assert first.future.result(0) == [10.0]


def test_a_result_that_the_caller_set_is_his_affair() -> None:
    ledger, pipe = _opened(window=1)
    first, odd, last = _submit(ledger, 1), _submit(ledger, 2), _submit(ledger, 3)
    odd.future.set_result("mine")
    _answer(ledger, 1, pipe.sent[0])
    _answer(ledger, 1, pipe.sent[1])
    assert [first.future.result(0), odd.future.result(0)] == [[10.0], "mine"]
    assert last.future.result(0) == [30.0]


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3)])
def test_a_callback_that_raises_changes_nothing(error: BaseException) -> None:
    def fail(_: object) -> None:
        raise error

    ledger, pipe = _opened()
    request = _submit(ledger, 1)
    request.future.add_done_callback(fail)
    _answer(ledger, 1, pipe.sent[0])
    assert request.future.result(0) == [10.0]


def test_micro_batches_that_are_over_leave_nothing() -> None:
    ledger, pipe = _opened(window=1)
    row = _array([[0.0]])
    for _ in range(10_000):
        request = Request(1, (_SPEC,), lambda outputs: None, AnswerFuture(CallbackThread()))
        ledger.submit(request, [(1, (row,))])
        ledger.answer(1, pipe.sent.pop().sequence, (row,))
    held = [value for value in vars(ledger).values() if hasattr(value, "__len__")]
    assert len(held) >= 3
    assert not any(held)
