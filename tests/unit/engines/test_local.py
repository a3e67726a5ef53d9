from __future__ import annotations

import os
import queue
import signal
import sys

import psutil
import pytest

from cutset.engines.local import LocalEngine, LocalWorker, cores_of, signal_name
from cutset.engines.protocol import Event, Exited, WorkerHandle
from cutset.errors import EngineError


def _start(*command: str) -> tuple[LocalEngine, WorkerHandle, queue.SimpleQueue[Event]]:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    engine = LocalEngine(("cpu:0",), num_threads=1, worker_command=command)
    worker = engine.start(0, lambda _, event: events.put(event), ())
    return engine, worker, events


def test_a_process_that_leaves_says_why_with_its_last_words() -> None:
    engine, worker, events = _start(sys.executable, "-c", "raise SystemExit('out of tea')")
    event = events.get(timeout=30)
    assert isinstance(event, Exited)
    assert "exit status 1" in event.reason
    assert "out of tea" in event.reason
    assert worker.join(5)
    engine.close()


def test_a_worker_gets_settings_for_its_malloc_before_the_users_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    says_it = "import os; raise SystemExit(os.environ['GLIBC_TUNABLES'])"
    engine, worker, events = _start(sys.executable, "-c", says_it)
    event = events.get(timeout=30)
    assert isinstance(event, Exited)
    assert "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=2" in event.reason
    assert worker.join(5)
    engine.close()


def test_a_process_that_will_not_leave_is_killed() -> None:
    engine, worker, events = _start(sys.executable, "-c", "import signal; signal.pause()")
    engine.close()
    event = events.get(timeout=30)
    assert isinstance(event, Exited)
    assert "SIGKILL" in event.reason
    assert worker.join(0)


def test_a_process_that_talks_nonsense_is_ended() -> None:
    code = "import os, sys, signal; os.write(int(sys.argv[2]), b'hello\\n'); signal.pause()"
    engine, worker, events = _start(sys.executable, "-c", code)
    event = events.get(timeout=30)
    assert isinstance(event, Exited)
    assert worker.join(5)
    engine.close()


def test_a_command_that_is_not_there_is_an_error() -> None:
    with pytest.raises(EngineError, match="a worker process cannot be started"):
        _start("/no/such/program")


def test_cores_are_shared_out_only_if_there_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 5, 6, 7}, raising=False)
    assert [cores_of(stage, 2, 2) for stage in range(2)] == [(4, 5), (6, 7)]
    assert cores_of(0, 3, 2) == ()
    # A quota of three cores' time is not enough for four threads at full speed.
    monkeypatch.setattr("cutset.host.usable_cores", lambda: 3.5)
    assert cores_of(0, 2, 2) == ()
    assert cores_of(0, 3, 1) == (4,)


def test_a_spare_is_kept_only_after_a_loss_and_stands_in_for_the_next() -> None:
    events: queue.SimpleQueue[tuple[WorkerHandle, Event]] = queue.SimpleQueue()
    command = (sys.executable, "-c", "import signal; signal.pause()")
    engine = LocalEngine(("cpu:0",), num_threads=1, worker_command=command)

    def start() -> LocalWorker:
        return engine.start(0, lambda worker, event: events.put((worker, event)), ())

    first = start()
    engine.standing()
    assert engine._spare is None
    first.kill()
    assert events.get(timeout=30)[0] is first
    second = start()
    engine.standing()
    spare = engine._spare
    assert spare is not None
    second.kill()
    assert events.get(timeout=30)[0] is second
    assert start() is spare
    assert spare.stage == 0
    engine.standing()
    dead = engine._spare
    assert dead is not None
    dead.kill()
    assert dead.join(30)
    spare.kill()
    assert events.get(timeout=30)[0] is spare
    assert start() is not dead
    engine.close()


@pytest.mark.parametrize(
    ("number", "name"),
    [(9, "SIGKILL"), (34, "SIGRTMIN"), (37, "SIGRTMIN+3"), (64, "SIGRTMAX"), (99, "signal 99")],
)
def test_every_signal_has_a_name(number: int, name: str) -> None:
    assert signal_name(number) == name


def test_whatever_signal_ends_a_process_its_end_is_said() -> None:
    # Those that end nobody by default, or stop, are left out.
    harmless = {signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGCONT, signal.SIGSTOP}
    harmless |= {signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGINT, signal.SIGPIPE}
    # What these tests are started with may ignore one: nohup does SIGHUP.
    code = (
        "import os, signal, sys; number = int(sys.argv[1]);"
        "number == signal.SIGKILL or signal.signal(number, signal.SIG_DFL);"
        "os.kill(os.getpid(), number); os._exit(3)"
    )
    for number in sorted(set(signal.valid_signals()) - {*harmless, signal.Signals(25)}):
        engine, worker, events = _start(sys.executable, "-S", "-c", code, str(int(number)))
        event = events.get(timeout=30)
        assert isinstance(event, Exited)
        assert signal_name(int(number)) in event.reason
        assert worker.join(5)
        engine.close()


def test_a_system_without_a_free_descriptor_is_an_engine_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("cutset.engines.local.socket.socketpair", refuse)
    with pytest.raises(EngineError, match="Too many open files"):
        _start(sys.executable)


def test_a_system_without_a_free_thread_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("cutset.engines.local.LastWords", refuse)
    with pytest.raises(EngineError, match="can't start new thread"):
        _start(sys.executable, "-c", "import signal; signal.pause()")
    assert psutil.Process().children() == []
