"""Stages with several replicas: every row once, in order, the same bits, whoever comes and goes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cutset.engines.local import LocalEngine
from cutset.errors import EngineError
from cutset.runtime.session import Session, open_session
from cutset.runtime.status import Limits
from toy_engine import PlainEngine

from . import sick_worker
from .bundles import SmallNet, in_turn, write_bundle

# A frozen replica may not be taken for dead within a test: its siblings must do without waiting.
_PATIENT = Limits(heartbeat_s=60.0, link_timeout_s=60.0, back_off_s=0.05)
_EXAMPLE = (torch.randn(2, 3, 16, 16),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replicas")


@pytest.fixture(scope="module")
def copies(model: SmallNet, folder: Path) -> Path:
    """The whole model, three times."""
    return write_bundle(model, _EXAMPLE, (), folder / "copies", sizes=(3,))


@pytest.fixture(scope="module")
def groups(model: SmallNet, folder: Path) -> Path:
    """Two stages of two replicas each."""
    return write_bundle(model, _EXAMPLE, (3,), folder / "groups", sizes=(2, 2))


def _engine(sizes: tuple[int, ...], *, shares_memory: bool) -> LocalEngine:
    names = tuple(f"{stage}.{number}" for stage, n in enumerate(sizes) for number in range(n))
    return LocalEngine(names, num_threads=1, shares_memory=shares_memory)


def _rows(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, 3, 16, 16, generator=torch.Generator().manual_seed(num_rows))


def _until(session: Session, condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError(session.stats())


def _shares(session: Session, stage: int) -> list[float]:
    return [replica.share for replica in session._status().stages[stage].replicas]


def _check_stream(
    session: Session, bundle: Path, num_rows: int, disturb: Callable[[int], None]
) -> None:
    """Streams rows one by one; calls `disturb` before each answer is looked at."""
    rows = _rows(num_rows)
    expected = in_turn(bundle, rows, 1)
    num_answers = 0
    for index, answer in enumerate(session.stream(row[None] for row in rows)):
        disturb(index)
        assert torch.equal(answer[0], expected[index]), f"row {index}"
        num_answers += 1
    assert num_answers == num_rows


@pytest.mark.parametrize("shares_memory", [True, False])
@pytest.mark.parametrize("sizes", [(3,), (2, 2)])
def test_answers_have_the_bits_of_one_device_in_order(
    copies: Path, groups: Path, sizes: tuple[int, ...], shares_memory: bool
) -> None:
    bundle = copies if sizes == (3,) else groups
    engine = _engine(sizes, shares_memory=shares_memory)
    with open_session(bundle, engine=engine, backend="onnxruntime", num_spans=64) as session:
        assert session.window == 2 * sum(sizes) + 1
        for num_rows in (1, 2, 4, 9, 46):
            rows = _rows(num_rows)
            assert torch.equal(session.run(rows), in_turn(bundle, rows))
        status = session.stats()
        names = [process.name for process in session.timeline()]
    assert names[0] == "caller"
    assert names[1:] == [
        f"stage {stage} replica {number}" for stage, n in enumerate(sizes) for number in range(n)
    ]
    for stage, size in enumerate(sizes):
        replicas = status.stages[stage].replicas
        assert [replica.share for replica in replicas] == [1 / size] * size
        # 18 micro-batches in all; each of the first takes its share of them to within one.
        counts = [replica.stats.num_micro_batches for replica in replicas]
        assert sum(counts) == status.stages[stage].stats.num_micro_batches == 18
        assert all(abs(count - 18 / size) <= 1 for count in counts)


@pytest.mark.parametrize(("member", "shares_memory"), [(0, True), (3, False)])
def test_a_killed_replica_costs_no_row_and_joins_again(
    groups: Path, member: int, shares_memory: bool
) -> None:
    engine = _engine((2, 2), shares_memory=shares_memory)
    with open_session(groups, engine=engine, backend="onnxruntime", limits=_PATIENT) as session:

        def disturb(index: int) -> None:
            if index == 10:
                os.kill(session.worker_pids[member], signal.SIGKILL)

        _check_stream(session, groups, 2000, disturb)
        _until(session, lambda: _shares(session, 0) == _shares(session, 1) == [0.5, 0.5])
        replicas = [r for stage in session.stats().stages for r in stage.replicas]
        assert [r.num_restarts for r in replicas] == [int(m == member) for m in range(4)]
        assert session.epoch == 3


def test_a_frozen_replica_is_set_aside_and_joins_when_it_is_heard_of(copies: Path) -> None:
    with open_session(copies, backend="onnxruntime", limits=_PATIENT) as session:
        pids = session.worker_pids

        def disturb(index: int) -> None:
            if index == 10:
                os.kill(pids[1], signal.SIGSTOP)

        try:
            _check_stream(session, copies, 600, disturb)
            _until(session, lambda: _shares(session, 0) == [0.5, 0.0, 0.5])
        finally:
            os.kill(pids[1], signal.SIGCONT)
        _until(session, lambda: min(_shares(session, 0)) > 0.3)
        _check_stream(session, copies, 20, lambda _: None)
        assert session.worker_pids == pids
        assert session.stats().stages[0].num_restarts == 0


def test_one_that_stays_frozen_is_replaced(copies: Path) -> None:
    limits = Limits(heartbeat_s=1.5, sibling_s=0.5)
    with open_session(copies, backend="onnxruntime", limits=limits) as session:
        frozen = session.worker_pids[0]
        os.kill(frozen, signal.SIGSTOP)
        _check_stream(session, copies, 50, lambda _: None)
        _until(session, lambda: session.worker_pids[0] not in (0, frozen))
        _until(session, lambda: min(_shares(session, 0)) > 0.3)


def test_all_replicas_killed_at_once_cost_no_row(copies: Path) -> None:
    with open_session(copies, backend="onnxruntime", limits=_PATIENT) as session:

        def disturb(index: int) -> None:
            if index == 10:
                for pid in session.worker_pids:
                    os.kill(pid, signal.SIGKILL)

        _check_stream(session, copies, 300, disturb)
        _until(session, lambda: min(_shares(session, 0)) > 0.3)
        assert [r.num_restarts for r in session.stats().stages[0].replicas] == [1, 1, 1]


def test_a_replica_that_cannot_start_again_leaves_its_siblings_alone(
    copies: Path, tmp_path: Path
) -> None:
    engine = _engine((3,), shares_memory=True)
    engine._keep_spare = False
    with open_session(copies, engine=engine, backend="onnxruntime", limits=_PATIENT) as session:
        command, engine._worker_command = engine._worker_command, (str(tmp_path / "gone"),)
        os.kill(session.worker_pids[2], signal.SIGKILL)
        # More often than all set-backs that a session bears.
        worker = session._supervisor.workers[2]
        _until(session, lambda: worker.num_losses > _PATIENT.max_restarts + 1)
        _check_stream(session, copies, 20, lambda _: None)
        assert _shares(session, 0) == [0.5, 0.5, 0.0]
        engine._worker_command = command
        _until(session, lambda: min(_shares(session, 0)) > 0.3)


def test_rows_that_kill_every_worker_are_given_up_and_no_others(copies: Path) -> None:
    deadly = torch.zeros(1, 3, 16, 16)
    deadly[0, 0, 0, 0] = sick_worker.KILL
    engine = sick_worker.sick_engine(3)
    with open_session(copies, engine=engine, backend="onnxruntime", limits=_PATIENT) as session:
        others = [session.submit(_rows(3)) for _ in range(4)]
        killer = session.submit(deadly)
        others += [session.submit(_rows(3)) for _ in range(4)]
        with pytest.raises(EngineError, match=r"given up: its worker died 3 times"):
            killer.result(60)
        for other in others:
            assert torch.equal(other.result(60), in_turn(copies, _rows(3)))


def test_a_slow_replica_holds_no_more_than_its_own_part(copies: Path) -> None:
    rows = _rows(4)
    expected = in_turn(copies, rows)
    limits = Limits(heartbeat_s=60.0, sibling_s=60.0, link_timeout_s=60.0)
    with open_session(copies, backend="onnxruntime", limits=limits) as session:
        slow = session.worker_pids[0]
        os.kill(slow, signal.SIGSTOP)
        try:
            # A third of these wait for it; the others are answered before it goes on.
            answers = [session.submit(rows) for _ in range(27)]
            for index, answer in enumerate(answers):
                if index % 3:
                    assert torch.equal(answer.result(60), expected)
            assert not any(answer.done() for answer in answers[::3])
        finally:
            os.kill(slow, signal.SIGCONT)
        for answer in answers:
            assert torch.equal(answer.result(60), expected)
        assert session.epoch == 1


@pytest.mark.parametrize("engine", [PlainEngine(("a",), 1), "ray"])
def test_an_engine_that_runs_a_stage_on_one_device_says_so(
    copies: Path, engine: PlainEngine | str
) -> None:
    with pytest.raises(EngineError, match=r"stage 0 is planned on 3 devices .* runs each stage on"):
        open_session(copies, engine=engine)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shares_memory", [True, False])
def test_faults_again_and_again(groups: Path, shares_memory: bool) -> None:
    """Twenty runs of 2,000 rows, in each a replica killed and another one frozen for a while."""
    engine = _engine((2, 2), shares_memory=shares_memory)
    with open_session(groups, engine=engine, backend="onnxruntime", limits=_PATIENT) as session:
        for run in range(20):
            killed, frozen = run % 4, (run + 1 + run // 4) % 4

            def disturb(index: int, killed: int = killed, frozen: int = frozen) -> None:
                pid = session.worker_pids[killed if index == 300 else frozen]
                if pid and index in (300, 900, 1500):
                    number = {300: signal.SIGKILL, 900: signal.SIGSTOP, 1500: signal.SIGCONT}
                    os.kill(pid, number[index])

            _check_stream(session, groups, 2000, disturb)
            _until(session, lambda: _shares(session, 0) == _shares(session, 1) == [0.5, 0.5])
