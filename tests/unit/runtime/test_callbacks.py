from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from cutset.runtime.callbacks import AnswerFuture, CallbackThread


def test_callbacks_run_in_order_on_one_thread_that_ends_with_the_last() -> None:
    callbacks, seen, threads = CallbackThread(), [], set()

    def note(number: int) -> None:
        seen.append(number)
        threads.add(threading.current_thread())

    for number in range(100):
        callbacks.put(lambda number=number: note(number))
    assert callbacks.finish(20)
    assert seen == list(range(100))
    assert not any(thread.is_alive() for thread in threads)
    assert threading.current_thread() not in threads


def test_one_that_waits_for_another_answer_gets_it() -> None:
    callbacks = CallbackThread()
    first, second = AnswerFuture(callbacks), AnswerFuture(callbacks)
    got: Future[int] = Future()
    first.add_done_callback(lambda _: got.set_result(second.result(20)))
    first.set_result(1)  # on the thread that will set the second, too
    second.set_result(2)
    assert got.result(20) == 2
    assert callbacks.finish(20)


def test_a_future_that_is_done_calls_at_once_and_here() -> None:
    future = AnswerFuture(CallbackThread())
    future.set_result(1)
    called: list[threading.Thread] = []
    future.add_done_callback(lambda _: called.append(threading.current_thread()))
    assert called == [threading.current_thread()]


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(3), KeyboardInterrupt()])
def test_a_callback_that_raises_is_logged_and_the_next_runs(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise error

    callbacks = CallbackThread()
    future = AnswerFuture(callbacks)
    seen: list[object] = []
    future.add_done_callback(fail)
    future.add_done_callback(lambda done: seen.append(done.result()))
    future.set_result(5)
    assert callbacks.finish(20)
    assert seen == [5]
    assert "a done callback failed" in caplog.text


def test_one_that_does_not_end_is_not_waited_for_longer_than_told() -> None:
    callbacks, go_on = CallbackThread(), threading.Event()
    callbacks.put(go_on.wait)
    assert not callbacks.finish(0.05)
    go_on.set()
    assert callbacks.finish(20)


def test_a_callback_may_have_its_own_thread_finished() -> None:
    callbacks = CallbackThread()
    told: Future[bool] = Future()
    callbacks.put(lambda: told.set_result(callbacks.finish(0.0)))
    assert told.result(20)
    assert callbacks.finish(20)


def test_without_a_thread_callbacks_run_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    callbacks, seen = CallbackThread(), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        callbacks.put(lambda: seen.append(threading.current_thread()))
    assert seen == [threading.current_thread()]
    callbacks.put(lambda: seen.append(threading.current_thread()))
    assert callbacks.finish(20)
    assert len(seen) == 2
