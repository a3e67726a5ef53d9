"""The ends of the ranges: what a session takes it carries, what it cannot carry leaves nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from cutset.bundles.open import open_bundle
from cutset.engines.local import LocalEngine
from cutset.errors import EngineError
from cutset.runtime.session import open_session
from cutset.runtime.status import Limits

from .bundles import SmallNet, in_turn, whole_model, write_bundle


class _Engine(LocalEngine):
    """A local engine for two stages that counts how often it was closed."""

    def __init__(self, *, shares_memory: bool = True, program: str | None = None) -> None:
        command = None if program is None else (program,)
        super().__init__(
            ("a", "b"), num_threads=1, shares_memory=shares_memory, worker_command=command
        )
        self.num_closed = 0

    def close(self) -> None:
        self.num_closed += 1
        super().close()


class _ManyDimensions(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + 1) * 2


@pytest.mark.parametrize("shares_memory", [True, False])
def test_a_tensor_of_many_dimensions_crosses_every_link(
    tmp_path: Path, shares_memory: bool
) -> None:
    shape = (2, 1, 1, 1, 1, 1, 2, 3, 2)
    bundle = write_bundle(
        _ManyDimensions().eval(), (torch.randn(shape),), (1,), tmp_path / "deep.cutset"
    )
    rows = torch.randn(7, *shape[1:])
    engine = _Engine(shares_memory=shares_memory)
    with open_session(bundle, backend="torch", engine=engine) as session:
        answer = session.run(rows)
        turned = session.run(rows.transpose(-1, -3))
        assert session.epoch == 1
    assert answer.dim() == 9
    assert torch.equal(answer, torch.relu(rows + 1) * 2)
    assert torch.equal(turned, torch.relu(rows.transpose(-1, -3) + 1) * 2)


@pytest.mark.parametrize("shares_memory", [True, False])
def test_a_wide_window_is_filled_and_answered(
    bundle: Path, model: SmallNet, shares_memory: bool
) -> None:
    rows = torch.randn(1200, 3, 16, 16)
    engine = _Engine(shares_memory=shares_memory)
    limits = Limits(heartbeat_s=1000.0)
    with open_session(
        bundle, backend="torch", engine=engine, micro_batch=1, window=1000, limits=limits
    ) as session:
        # Nobody reads until everything that may be under way is: more headers than a socket
        # holds. Handing in waits for nobody.
        for pid in session.worker_pids:
            os.kill(pid, signal.SIGSTOP)
        future = session.submit(rows)
        for pid in session.worker_pids:
            os.kill(pid, signal.SIGCONT)
        assert torch.equal(future.result(120), whole_model(model, rows, 1))
        assert session.epoch == 1


def test_a_frozen_worker_is_noticed_by_its_heartbeat_however_short(bundle: Path) -> None:
    # Nothing but the heartbeat can notice it: every other limit is longer than the test.
    limits = Limits(
        heartbeat_s=0.4,
        link_timeout_s=1000.0,
        connect_timeout_s=1000.0,
        compute_timeout_s=1000.0,
        max_restarts=1000,
    )
    rows = torch.randn(30, 3, 16, 16)
    with open_session(bundle, backend="onnxruntime", limits=limits) as session:
        session.run(rows)
        frozen = session.worker_pids[1]
        os.kill(frozen, signal.SIGSTOP)
        assert torch.equal(session.submit(rows).result(60), in_turn(bundle, rows))
        assert frozen not in session.worker_pids


@pytest.fixture(scope="module", autouse=True)
def _made_once(bundle: Path) -> None:
    """What the first session of a process makes and keeps."""
    with open_session(bundle, backend="torch") as session:
        session.run(torch.zeros(1, 3, 16, 16))


@contextlib.contextmanager
def _nothing_is_left() -> Iterator[None]:
    """No process, thread or descriptor more at the end, though the error may be kept."""

    def held() -> tuple[int, int]:
        gc.collect()
        return psutil.Process().num_fds(), threading.active_count()

    before = held()
    yield
    assert psutil.Process().children() == []
    assert held() == before


@pytest.mark.parametrize("micro_batch", [10**12, 2**63, (1 << 24) + 1, -1])
def test_a_micro_batch_out_of_range_starts_nothing(bundle: Path, micro_batch: int) -> None:
    with _nothing_is_left():
        for engine in ("local", _Engine(), _Engine(shares_memory=False)):
            with pytest.raises(ValueError, match="from 1 to 16777216"):
                open_session(bundle, engine=engine, micro_batch=micro_batch)


@contextlib.contextmanager
def _descriptors_free(number: int) -> Iterator[None]:
    """Within, the system gives this process so many more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(number + 1)]
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_memory_that_no_system_has_is_refused_and_the_engine_is_closed(bundle: Path) -> None:
    # 4096 slots of 51 GB are more than a process can address.
    with _nothing_is_left():
        for _ in range(3):
            engine = _Engine()
            with pytest.raises(EngineError, match="choose a smaller micro_batch or window"):
                open_session(bundle, engine=engine, micro_batch=1 << 24, window=4096)
            assert engine.num_closed == 1


@pytest.mark.parametrize("number", [0, 1, 2])
def test_links_without_a_descriptor_are_refused_and_the_engine_is_closed(
    bundle: Path, number: int
) -> None:
    opened = open_bundle(bundle)
    with _nothing_is_left():
        engine = _Engine()
        with _descriptors_free(number), pytest.raises(EngineError, match="find no room"):
            open_session(opened, engine=engine)
        assert engine.num_closed == 1


@pytest.mark.parametrize("shares_memory", [True, False])
def test_an_engine_whose_workers_cannot_start_is_closed(
    bundle: Path, tmp_path: Path, shares_memory: bool
) -> None:
    with _nothing_is_left():
        for program in (str(tmp_path / "gone"), "/bin/false"):
            engine = _Engine(shares_memory=shares_memory, program=program)
            with pytest.raises(EngineError):
                open_session(bundle, engine=engine, limits=Limits(max_restarts=1, back_off_s=0.01))
            assert engine.num_closed == 1
