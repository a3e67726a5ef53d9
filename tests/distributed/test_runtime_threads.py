"""Whatever fails on a thread of the caller's: nothing is lost, nothing hangs, the session knows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

import cutset.runtime.session as session_module
from cutset.engines.local import LocalEngine
from cutset.engines.protocol import LinkLost
from cutset.errors import EngineError
from cutset.links.circuit import Circuit
from cutset.links.network import Receiver, Sender
from cutset.links.shared_memory import HostReceiver, HostSender
from cutset.runtime import callerend
from cutset.runtime.ledger import Request
from cutset.runtime.session import Session, open_session
from cutset.runtime.status import Limits
from cutset.runtime.timeline import CallerTimeline

from .bundles import in_turn

_LIMITS = Limits(link_timeout_s=2.0, max_restarts=2, back_off_s=0.0)


def _open(bundle: Path, *, shares_memory: bool) -> Session:
    engine = LocalEngine(("a", "b"), num_threads=1, shares_memory=shares_memory)
    return open_session(bundle, backend="onnxruntime", engine=engine, limits=_LIMITS, num_spans=4)


@pytest.fixture(scope="module")
def shared(bundle: Path) -> Iterator[Session]:
    with _open(bundle, shares_memory=True) as opened:
        yield opened


@pytest.fixture(scope="module")
def apart(bundle: Path) -> Iterator[Session]:
    with _open(bundle, shares_memory=False) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _no_process_survives() -> None:
    """This module keeps sessions open from test to test."""


class _Fault:
    """Stands in the place of a function and raises, so many times."""

    def __init__(self, healthy: Any, error: BaseException, times: int = 1) -> None:
        self._healthy, self._error, self._left = healthy, error, times
        self.raised = threading.Event()

    def __get__(self, owner: object, kind: type | None = None) -> Any:
        return lambda *args, **options: self(owner, *args, **options)

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._left:
            self._left -= 1
            self.raised.set()
            # A new one: the tests' own would keep what its traceback leads to, links included.
            raise type(self._error)(*self._error.args)
        return self._healthy(*args, **options)


_ERRORS = [MemoryError("none left"), ZeroDivisionError("odd"), SystemExit(3)]
_PLACES: dict[str, tuple[str, Any, str]] = {
    "a header is read": ("shared", HostReceiver, "_read"),
    "tensors are picked up": ("shared", HostReceiver, "_pick_up"),
    "an answer is noted": ("shared", CallerTimeline, "received"),
    "an answer is checked": ("shared", callerend, "check_tensors"),
    "it is said that one lives": ("shared", HostSender, "keep_alive"),
    "a link is made": ("shared", Circuit, "_make_receiver"),
    "tensors are received": ("apart", Receiver, "_receive_tensors"),
    "a header is awaited": ("apart", Receiver, "_await_header"),
    "a message is sent": ("apart", Sender, "_send"),
    "the other link is made": ("apart", Circuit, "_make_sender"),
}


@pytest.mark.parametrize(
    ("place", "error"),
    [(place, _ERRORS[index % len(_ERRORS)]) for index, place in enumerate(_PLACES)],
)
def test_a_thread_that_fails_once_costs_no_row(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    place: str,
    error: BaseException,
) -> None:
    fixture, owner, name = _PLACES[place]
    session: Session = request.getfixturevalue(fixture)
    fault = _Fault(getattr(owner, name), error)
    monkeypatch.setattr(owner, name, fault)
    if name.startswith("_make"):
        circuit = session._supervisor._circuit
        assert circuit is not None
        circuit._on_lost(
            LinkLost(epoch=session.epoch, link="caller -> stage 0", seconds=0.0, reason="a test")
        )
    rows = torch.randn(9, 3, 16, 16)
    before = session.epoch
    answers = [session.submit(rows) for _ in range(3)]
    assert fault.raised.wait(20)
    for answer in answers:
        assert torch.equal(answer.result(60), in_turn(bundle, rows))
    assert torch.equal(session.run(rows), in_turn(bundle, rows))
    assert session.epoch > before
    assert session.stats().num_in_flight == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_without_a_word_is_noticed(
    shared: Session, monkeypatch: pytest.MonkeyPatch, bundle: Path
) -> None:
    rows = torch.randn(9, 3, 16, 16)
    before = shared.epoch
    with monkeypatch.context() as patch:
        patch.setattr(HostReceiver, "_read", _Fault(HostReceiver._read, MemoryError()))
        silent = _Fault(Circuit._lost, MemoryError("no memory for words either"))
        patch.setattr(Circuit, "_lost", silent)
        answer = shared.submit(rows)
        assert torch.equal(answer.result(60), in_turn(bundle, rows))
        assert silent.raised.is_set()
    assert shared.epoch > before


def test_a_thread_that_fails_always_ends_the_session_with_its_reason(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _open(bundle, shares_memory=True) as session:
        monkeypatch.setattr(
            HostReceiver, "_pick_up", _Fault(HostReceiver._pick_up, MemoryError("no more"), 99)
        )
        answers = [session.submit(torch.zeros(9, 3, 16, 16)) for _ in range(3)]
        for answer in answers:
            with pytest.raises(EngineError, match=r"3 attempts .* MemoryError\('no more'\)"):
                answer.result(60)
        with pytest.raises(EngineError, match="MemoryError"):
            session.run(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize("fixture", ["shared", "apart"])
def test_a_join_for_which_memory_does_not_suffice_fails_alone(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    fixture: str,
) -> None:
    session: Session = request.getfixturevalue(fixture)
    rows = torch.randn(9, 3, 16, 16)
    before = session.epoch
    with monkeypatch.context() as patch:
        patch.setattr(Request, "_join", _Fault(Request._join, MemoryError("no more")))
        first, second = session.submit(rows), session.submit(rows)
        with pytest.raises(EngineError, match=r"could not be put together from 3 .* no more"):
            first.result(60)
        assert torch.equal(second.result(60), in_turn(bundle, rows))
    assert session.epoch == before


@pytest.mark.parametrize("fixture", ["shared", "apart"])
def test_what_no_sender_can_take_fails_alone(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    bundle: Path,
    fixture: str,
) -> None:
    session: Session = request.getfixturevalue(fixture)
    rows = torch.randn(2, 3, 16, 16)
    before = session.epoch
    real = session_module.cut_inputs

    def spoil(*args: Any) -> Any:
        return [
            (num_rows, tuple(array.astype(object) for array in arrays))
            for num_rows, arrays in real(*args)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(session_module, "cut_inputs", spoil)
        failed = session.submit(rows)
    assert torch.equal(session.run(rows), in_turn(bundle, rows))
    with pytest.raises(EngineError, match=r"2 rows cannot be sent into stage 0.*tensor object"):
        failed.result(60)
    assert session.epoch == before


def test_a_callback_may_wait_for_other_answers_submit_and_fail(
    shared: Session, bundle: Path
) -> None:
    rows = torch.randn(9, 3, 16, 16)
    got: Future[torch.Tensor] = Future()

    def ask_again(_: object) -> None:
        shared.submit(rows).add_done_callback(lambda done: got.set_result(done.result()))
        shared.run(rows)
        raise SystemExit(3)

    for _ in range(3):
        shared.submit(rows)
    shared.submit(rows).add_done_callback(ask_again)
    assert torch.equal(got.result(60), in_turn(bundle, rows))
    assert torch.equal(shared.run(rows), in_turn(bundle, rows))


def test_a_callback_may_close_the_session(bundle: Path) -> None:
    before = set(threading.enumerate())  # another session's may linger
    session = _open(bundle, shares_memory=True)
    closed: Future[None] = Future()

    def close(_: object) -> None:
        session.close()
        closed.set_result(None)

    others = [session.submit(torch.zeros(99, 3, 16, 16)) for _ in range(5)]
    session.submit(torch.zeros(1, 3, 16, 16)).add_done_callback(close)
    closed.result(60)
    assert all(other.done() for other in others)
    session.close()
    names = {thread.name for thread in set(threading.enumerate()) - before}
    assert names == set()


def test_close_waits_for_the_callbacks_of_what_it_ends(bundle: Path) -> None:
    told = []
    with _open(bundle, shares_memory=True) as session:
        for _ in range(5):
            future = session.submit(torch.zeros(999, 3, 16, 16))
            future.add_done_callback(lambda done: told.append(done.exception()))
    assert len(told) == 5


def test_asking_for_the_timeline_again_and_again_keeps_one(shared: Session) -> None:
    shared.run(torch.zeros(40, 3, 16, 16))
    for _ in range(20):
        caller, *stages = shared.timeline()
        assert len(caller.spans) <= 8
        assert [len(stage.spans) <= 12 for stage in stages] == [True, True]
    threads = [threading.Thread(target=shared.timeline) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _, *stages = shared.timeline()
    assert [len(stage.spans) for stage in stages] == [12, 12]
