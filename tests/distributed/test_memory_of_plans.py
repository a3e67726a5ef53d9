"""What workers hold when all that may be in flight waits at one, against what plans count."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from torch import nn, randn

from cutset.bundles.open import open_bundle
from cutset.costs.cost_model import costs_from_flops
from cutset.engines.local import LocalEngine
from cutset.graph.cuts import find_cut_points
from cutset.runtime.session import Session, open_session
from cutset.runtime.status import Limits
from distributed.bundles import write_bundle

ROW = 1 << 23
"""Numbers of a row: 32 MiB, beside which what else a worker takes is little.

From that size on malloc takes every block from the system and gives it back (M_MMAP_THRESHOLD in
mallopt(3) goes no higher). Smaller ones come from a heap, where gaps between them are kept: three
rows of 8 MiB more than were counted, on one machine of two.
"""

SLACK_BYTES = 24 << 20
"""What a library takes at its first computation: less than a row."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages of two operations each, without weights."""
    model = nn.Sequential(nn.Sigmoid(), nn.Tanh(), nn.Sigmoid(), nn.Tanh()).eval()
    folder = tmp_path_factory.mktemp("bundles") / "wide.cutset"
    return write_bundle(model, (randn(2, ROW),), (2,), folder, micro_batch=1)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_until_computed(session: Session, number: int) -> None:
    end_s = time.monotonic() + 60
    while session.stats().stages[0].stats.num_micro_batches < number:
        assert time.monotonic() < end_s


@pytest.mark.parametrize("shares_memory", [True, False])
def test_a_worker_s_memory_stays_within_what_the_plan_counts(
    bundle: Path, shares_memory: bool
) -> None:
    graph = open_bundle(bundle).manifest.graph
    costs = costs_from_flops(graph, find_cut_points(graph), granularity="op")
    stop = costs.positions.index(2)
    # Two alive at once while it computes; five inputs and four outputs of 32 MiB.
    counted = costs.memory_bytes(0, stop, num_stages=2)
    assert counted == (2 + 5 + 4) * 4 * ROW
    engine = LocalEngine(("a", "b"), num_threads=1, shares_memory=shares_memory)
    limits = Limits(heartbeat_s=120.0, link_timeout_s=120.0)
    rows = np.full((7, ROW), 0.5, dtype=np.float32)
    with open_session(bundle, engine=engine, backend="torch", limits=limits) as session:
        assert session.window == costs.window_with(2) == 5
        worker = psutil.Process(session.worker_pids[0])
        before = worker.memory_info().rss
        with stopped(session.worker_pids[1]):
            future = session.submit(rows)
            wait_until_computed(session, session.window)
            held = worker.memory_info().rss - before
        assert future.result(60).shape == (7, ROW)
        assert worker.memory_info().rss - before <= counted + SLACK_BYTES
    # All that is in flight came to wait here: far more than one micro-batch takes.
    assert 9 * 4 * ROW <= held <= counted + SLACK_BYTES
