from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from cutset.bundles.allowance import allowance_of
from cutset.bundles.open import open_bundle
from cutset.engines.local import LocalEngine
from cutset.errors import ContractViolation, StageFailed
from cutset.runtime.session import Session, open_session
from cutset.runtime.status import Limits

from . import sick_worker
from .bundles import SmallNet, in_turn, whole_model

# Short limits: these tests run into them on purpose.
_QUICK = Limits(heartbeat_s=1.5, link_timeout_s=4.0, connect_timeout_s=10.0, back_off_s=0.05)


def _items(num_items: int) -> Iterator[torch.Tensor]:
    """Items of 1 to 6 rows, each different from all others."""
    for index in range(num_items):
        generator = torch.Generator().manual_seed(index)
        yield torch.randn(1 + index % 6, 3, 16, 16, generator=generator)


def _check_stream(
    session: Session,
    expected: Callable[[torch.Tensor], torch.Tensor],
    num_items: int,
    disturb: Callable[[int], None],
) -> None:
    """Streams items, calls `disturb` before each answer is looked at, checks every answer."""
    num_answers = 0
    answers = session.stream(_items(num_items))
    for index, (rows, answer) in enumerate(zip(_items(num_items), answers, strict=True)):
        disturb(index)
        assert torch.equal(answer, expected(rows)), f"item {index}"
        num_answers += 1
    assert num_answers == num_items


def _sick(symptom: float, num_rows: int = 1) -> torch.Tensor:
    rows = torch.zeros(num_rows, 3, 16, 16)
    rows[0, 0, 0, 0] = symptom
    return rows


@pytest.mark.parametrize(
    ("stage", "backend"), [(0, "onnxruntime"), (1, "torch"), (2, "onnxruntime")]
)
def test_a_killed_worker_costs_no_row(
    bundle_of_three: Path, model: SmallNet, stage: int, backend: str
) -> None:
    def expected(rows: torch.Tensor) -> torch.Tensor:
        return whole_model(model, rows, 4) if backend == "torch" else in_turn(bundle_of_three, rows)

    with open_session(bundle_of_three, backend=backend, limits=_QUICK) as session:

        def disturb(index: int) -> None:
            if index == 10:
                pid = session.worker_pids[stage]
                if pid:
                    os.kill(pid, signal.SIGKILL)

        _check_stream(session, expected, 30, disturb)
        assert session.stats().stages[stage].num_restarts >= 1
        assert session.epoch >= 2


def test_all_workers_killed_at_once_cost_no_row(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_session(bundle, backend="onnxruntime", limits=_QUICK) as session:

        def disturb(index: int) -> None:
            if index == 10:
                for pid in session.worker_pids:
                    os.kill(pid, signal.SIGKILL)

        _check_stream(session, functools.partial(in_turn, bundle), 40, disturb)
        assert [stage.num_restarts for stage in session.stats().stages] == [1, 1]
    # Whoever keeps records keeps what they hold: an error would bring its traceback's memory along.
    told = [record for record in caplog.records if "is over" in record.getMessage()]
    assert told
    assert [type(each) for record in told for each in record.args or ()] == [int, str] * len(told)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_frozen_worker_costs_no_row(bundle: Path, stage: int) -> None:
    with open_session(bundle, backend="onnxruntime", limits=_QUICK) as session:

        def disturb(index: int) -> None:
            if index == 10:
                os.kill(session.worker_pids[stage], signal.SIGSTOP)

        _check_stream(session, functools.partial(in_turn, bundle), 40, disturb)
        assert session.stats().stages[stage].num_restarts == 1


def test_an_idle_session_outlives_its_link_time_out(bundle: Path) -> None:
    limits = Limits(heartbeat_s=5.0, link_timeout_s=0.5)
    with open_session(bundle, backend="onnxruntime", limits=limits) as session:
        rows = torch.randn(3, 3, 16, 16)
        session.run(rows)
        # Twenty heartbeats: two seconds in which nothing but keep-alives crosses the links.
        for _ in range(4):
            with session._supervisor.changed:
                heard_s = [stage.stats_s for stage in session._supervisor.workers]
                assert session._supervisor.changed.wait_for(
                    lambda heard_s=heard_s: all(
                        stage.stats_s > before
                        for stage, before in zip(session._supervisor.workers, heard_s, strict=True)
                    ),
                    10,
                )
        assert torch.equal(session.run(rows), in_turn(bundle, rows))
        assert session.epoch == 1


@pytest.mark.parametrize("symptom", [sick_worker.KILL, sick_worker.ABORT])
def test_a_micro_batch_that_kills_three_times_is_failed_and_the_rest_go_on(
    bundle: Path, symptom: float
) -> None:
    good = torch.randn(9, 3, 16, 16)
    with open_session(
        bundle, backend="onnxruntime", engine=sick_worker.sick_engine(2), limits=_QUICK
    ) as session:
        futures = [session.submit(good), session.submit(_sick(symptom)), session.submit(good)]
        with pytest.raises(StageFailed, match="died 3 times") as caught:
            futures[1].result(60)
        assert caught.value.stage == 0
        expected = in_turn(bundle, good)
        assert torch.equal(futures[0].result(60), expected)
        assert torch.equal(futures[2].result(60), expected)
        assert session.stats().stages[0].num_restarts == 3


def test_a_micro_batch_that_never_ends_is_failed(bundle: Path) -> None:
    limits = Limits(heartbeat_s=2.0, compute_timeout_s=0.5, max_deaths=1, connect_timeout_s=10.0)
    with open_session(
        bundle, backend="onnxruntime", engine=sick_worker.sick_engine(2), limits=limits
    ) as session:
        with pytest.raises(StageFailed, match="on one micro-batch"):
            session.submit(_sick(sick_worker.HANG)).result(60)
        assert len(session.run(torch.zeros(2, 3, 16, 16))) == 2


def test_a_long_computation_does_not_keep_the_links_from_being_made_anew(bundle: Path) -> None:
    limits = Limits(heartbeat_s=10.0, connect_timeout_s=1.5)
    rows = _sick(sick_worker.SLOW)
    with open_session(
        bundle, backend="onnxruntime", engine=sick_worker.sick_engine(2), limits=limits
    ) as session:
        answer = session.submit(rows)
        assert session.stats().num_in_flight == 1
        os.kill(session.worker_pids[1], signal.SIGKILL)
        assert torch.equal(answer.result(60), in_turn(bundle, rows))
        assert [stage.num_restarts for stage in session.stats().stages] == [0, 1]
        assert session.epoch == 2


def test_an_exception_fails_its_request_and_kills_nobody(bundle: Path) -> None:
    with open_session(
        bundle, backend="onnxruntime", engine=sick_worker.sick_engine(2), limits=_QUICK
    ) as session:
        with pytest.raises(StageFailed, match="ValueError: no such luck") as caught:
            session.run(_sick(sick_worker.RAISE, num_rows=9))
        assert caught.value.stage == 0
        assert caught.value.device == "cpu:0"
        assert len(session.run(torch.zeros(2, 3, 16, 16))) == 2
        assert session.epoch == 1


def test_a_message_of_torch_never_comes_bare(bundle: Path) -> None:
    with (
        open_session(
            bundle, backend="torch", engine=sick_worker.sick_engine(2), limits=_QUICK
        ) as session,
        pytest.raises(StageFailed) as caught,
    ):
        session.run(_sick(sick_worker.MISFIT))
    message = str(caught.value)
    assert message.startswith("stage 0 (")
    assert "into stage 0, the model's input" in message
    assert "Likely cause: a residual block or an inception module was cut apart" in message


@pytest.mark.skipif(sys.platform != "linux", reason="memory for data is limited on Linux only")
@pytest.mark.parametrize("symptom", [sick_worker.GREEDY, sick_worker.GREEDY_IN_PYTHON])
def test_a_program_gets_no_more_memory_than_its_sizes_allow(bundle: Path, symptom: float) -> None:
    manifest = open_bundle(bundle).manifest
    granted = allowance_of(manifest, (4,), (0,), num_in_flight=5).memory_bytes
    with open_session(
        bundle, backend="torch", engine=sick_worker.sick_engine(2), limits=_QUICK
    ) as session:
        limits = [_data_limit_bytes(pid) for pid in session.worker_pids]
        assert all(granted < limit < granted + (4 << 30) for limit in limits)
        with pytest.raises(StageFailed, match="out of memory: the process holds") as caught:
            session.run(_sick(symptom))
        assert f"the bundle's stated sizes allow {limits[0]:,}. " in str(caught.value)
        assert caught.value.stage == 0
        assert len(session.run(torch.zeros(2, 3, 16, 16))) == 2
        assert session.epoch == 1


def _data_limit_bytes(pid: int) -> int:
    (line,) = (
        line
        for line in Path(f"/proc/{pid}/limits").read_text().splitlines()
        if line.startswith("Max data size")
    )
    return int(line.split()[3])


def test_an_output_that_breaks_the_contract_names_the_boundary(bundle: Path) -> None:
    with open_session(
        bundle, backend="onnxruntime", engine=sick_worker.sick_engine(2), limits=_QUICK
    ) as session:
        with pytest.raises(ContractViolation) as caught:
            session.run(_sick(sick_worker.WRONG_SHAPE))
        assert caught.value.boundary.startswith("out of stage 0, after relu")
        assert caught.value.expected == "float32[batch, 8, 16, 16]"
        assert caught.value.actual == "float32[1, 1, 16, 16]"
        assert len(session.run(torch.zeros(2, 3, 16, 16))) == 2


def test_many_failures_in_a_row_do_not_exhaust_the_slots(bundle: Path) -> None:
    with open_session(
        bundle, backend="onnxruntime", engine=sick_worker.sick_engine(2), limits=_QUICK
    ) as session:
        answers = session.stream((_sick(sick_worker.RAISE) for _ in range(100)), return_errors=True)
        assert [type(answer) for answer in answers] == [StageFailed] * 100
        assert session.epoch == 1


def test_a_stage_that_cannot_come_back_ends_the_session_and_says_what_was_tried(
    bundle: Path,
) -> None:
    engine = sick_worker.sick_engine(2)
    limits = Limits(max_restarts=2, back_off_s=0.01)
    with open_session(bundle, backend="onnxruntime", engine=engine, limits=limits) as session:
        engine._worker_command = (sys.executable, "-c", "raise SystemExit('no such device')")
        future = session.submit(torch.zeros(4000, 3, 16, 16))
        os.kill(session.worker_pids[1], signal.SIGKILL)
        with pytest.raises(StageFailed, match="could not be kept up: 3 attempts") as caught:
            future.result(60)
        assert caught.value.stage == 1
        assert "no such device" in str(caught.value)
        with pytest.raises(StageFailed, match="could not be kept up"):
            session.submit(torch.zeros(1, 3, 16, 16))


_CALLER = """
import signal, sys
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins without it
from cutset.runtime.session import open_session
rows = np.zeros((9, 3, 16, 16), np.float32)
with open_session(sys.argv[1], backend="onnxruntime") as session:
    session.run(rows)
    print("workers", *session.worker_pids, flush=True)
    for answer in session.stream(rows for _ in iter(int, 1)):
        pass
"""


@pytest.mark.parametrize(
    ("number", "stop_a_worker_first"),
    [
        (signal.SIGKILL, False),
        (signal.SIGKILL, True),
        (signal.SIGTERM, False),
        (signal.SIGINT, False),
    ],
)
def test_no_worker_outlives_its_caller(
    bundle: Path, number: signal.Signals, stop_a_worker_first: bool
) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", _CALLER, str(bundle)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with caller, contextlib.ExitStack() as at_the_end:
        at_the_end.callback(caller.kill)
        assert caller.stdout is not None
        pids = caller.stdout.readline().split()[1:]
        workers = [psutil.Process(int(pid)) for pid in pids]
        assert len(workers) == 2
        if stop_a_worker_first:
            workers[1].suspend()
        caller.send_signal(number)
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert alive == []
        caller.communicate(timeout=10)
    assert caller.returncode != 0


def _listening_ports(pids: Iterable[int]) -> set[int]:
    return {
        connection.laddr.port
        for pid in pids
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


# What ZeroMQ says first, and asks for: no security, or CurveZMQ's.
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"


@pytest.mark.parametrize(
    "words",
    [
        b"\xff" * 4096,
        _GREETING + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x06\x05READY",
        _GREETING + b"CURVE".ljust(20, b"\0") + bytes(32) + b"\x04\xc8\x05HELLO\x01" + bytes(193),
    ],
)
def test_a_stranger_at_a_data_port_harms_nobody(
    bundle_of_three: Path, model: SmallNet, words: bytes
) -> None:
    engine = LocalEngine(("a", "b", "c"), num_threads=1, shares_memory=False)
    with open_session(bundle_of_three, backend="torch", engine=engine) as session:
        pids = session.worker_pids
        assert _listening_ports([os.getpid()]) == set()  # the caller connects
        ports = _listening_ports(pids)
        assert len(ports) == 4  # one for each link, and nothing else
        rows = torch.randn(9, 3, 16, 16)
        with contextlib.ExitStack() as strangers:
            for port in sorted(ports) * 50:
                stranger = strangers.enter_context(socket.socket())
                stranger.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    stranger.connect(("127.0.0.1", port))
                with contextlib.suppress(OSError):  # nobody answers any more where links stand
                    stranger.send(words)
            assert torch.equal(session.run(rows), whole_model(model, rows, 4))
        assert torch.equal(session.run(rows), whole_model(model, rows, 4))
        assert session.epoch == 1
        assert session.worker_pids == pids
