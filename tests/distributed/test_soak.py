"""The long form: many rows, many faults. ``pytest tests/distributed -m soak``."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from cutset.runtime.session import Session, open_session
from cutset.runtime.status import Limits

from .bundles import SmallNet, whole_model

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

_LIMITS = Limits(heartbeat_s=2.0, link_timeout_s=6.0, back_off_s=0.05)
_NUM_ROWS = 2000


def _stream_with_faults(
    session: Session, model: SmallNet, num_faults: int, strike: Callable[[int], None]
) -> list[float]:
    """Streams 2,000 rows and strikes a random worker now and then; returns recovery times."""
    chance = random.Random(5)
    struck_s: float | None = None
    recoveries: list[float] = []
    num_left = num_faults
    rows = torch.randn(_NUM_ROWS, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    num_seen = 0
    before_s = time.monotonic()
    for row, answer in zip(rows, session.stream(row[None] for row in rows), strict=True):
        now_s = time.monotonic()
        if struck_s is not None and now_s - before_s > 0.2:
            recoveries.append(now_s - struck_s)
            struck_s = None
        assert torch.equal(answer, whole_model(model, row[None], 4)), f"row {num_seen}"
        num_seen += 1
        pids = [pid for pid in session.worker_pids if pid]
        is_due = num_seen > (num_faults - num_left) * _NUM_ROWS // (num_faults + 1)
        if num_left and struck_s is None and is_due and pids:
            strike(chance.choice(pids))
            struck_s = time.monotonic()
            num_left -= 1
        before_s = time.monotonic()
    assert num_seen == _NUM_ROWS
    assert num_left == 0
    return recoveries


@pytest.mark.parametrize(
    ("number", "num_faults", "limit_s"), [(signal.SIGKILL, 20, 3.0), (signal.SIGSTOP, 5, 6.0)]
)
def test_faults_lose_double_and_change_nothing(
    bundle_of_three: Path,
    model: SmallNet,
    number: signal.Signals,
    num_faults: int,
    limit_s: float,
) -> None:
    with open_session(bundle_of_three, backend="torch", limits=_LIMITS) as session:
        recoveries = _stream_with_faults(
            session, model, num_faults, lambda pid: os.kill(pid, number)
        )
        status = session.stats()
    assert sum(stage.num_restarts for stage in status.stages) == num_faults
    print(f"recoveries (s): {sorted(round(seconds, 2) for seconds in recoveries)}")
    assert len(recoveries) == num_faults
    assert statistics.median(recoveries) < limit_s


@pytest.mark.parametrize("micro_batch", range(1, 9))
def test_every_batch_size_under_every_micro_batch_size_from_many_threads(
    bundle: Path, model: SmallNet, micro_batch: int
) -> None:
    with (
        open_session(bundle, backend="torch", micro_batch=micro_batch) as session,
        ThreadPoolExecutor(6) as threads,
    ):

        def answer(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
            rows = torch.randn(num_rows, 3, 16, 16)
            return rows, torch.as_tensor(session.run(rows))

        # Each size three times, in an order that mixes large and small.
        sizes = [1 + 5 * index % 17 for index in range(3 * 17)]
        for rows, answered in threads.map(answer, sizes):
            assert torch.equal(answered, whole_model(model, rows, micro_batch))


def test_memory_stays_flat_over_a_long_stream(bundle: Path) -> None:
    early: list[int] = []
    rows = torch.randn(1, 3, 16, 16)
    with open_session(bundle, backend="torch") as session:
        processes = [psutil.Process(pid) for pid in (os.getpid(), *session.worker_pids)]

        def resident() -> list[int]:
            return [process.memory_info().rss for process in processes]

        for index, _ in enumerate(session.stream(rows for _ in range(20_000))):
            if index == 1_000:
                early = resident()
        late = resident()
    growth = [after / before for before, after in zip(early, late, strict=True)]
    print(f"growth of the caller and the workers: {[round(each, 4) for each in growth]}")
    assert max(growth) < 1.05
