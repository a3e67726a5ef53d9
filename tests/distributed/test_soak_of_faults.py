"""Everything at once, for as long as ``CUTSET_SOAK_S`` says (seconds, 180 by default).

``make soak``; one hour of it is `CUTSET_SOAK_S=3600`. Callers hand in rows, odd ones and wrong ones
while workers are killed by any signal, stopped, starved of memory, and restarted while this process
has no file descriptor left; beside it sessions are opened, closed and dropped.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import random
import resource
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from typing_extensions import Self

from cutset.backends.allocator import give_back_memory
from cutset.engines.local import LocalEngine
from cutset.errors import CutsetError, StageFailed
from cutset.runtime.session import Session, open_session
from cutset.runtime.status import Limits

from .bundles import SmallNet, whole_model

_SOAK_S = float(os.environ.get("CUTSET_SOAK_S", "180"))

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(int(_SOAK_S) + 600),
    pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs Linux's /proc"),
]

# So many set-backs without an answer between them that no run of bad luck ends the session.
_LIMITS = Limits(
    heartbeat_s=3.0, link_timeout_s=5.0, connect_timeout_s=8.0, back_off_s=0.05, max_restarts=200
)
_ANSWER_LIMIT_S = 300.0
_NUM_CALLERS = 3
_GROWTH = 1.02
_DEADLY = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGHUP, 37, 64)


def _good(chance: random.Random) -> torch.Tensor | np.ndarray:
    """Rows that must be answered, in one of many forms."""
    rows = torch.randn(chance.randint(2, 9), 3, 16, 16)
    return chance.choice(
        [
            lambda: rows,
            lambda: rows[:1],
            lambda: rows.numpy(),
            lambda: rows.numpy()[::-1].copy(),
            lambda: rows.numpy()[::-1],
            lambda: rows[:1].numpy()[::-1],
            lambda: rows.numpy().astype(">f4")[::-1],
            lambda: torch.complex(rows, -rows).conj().imag,
            lambda: torch.complex(rows, -rows).mH.mH.real,
            lambda: rows.contiguous(memory_format=torch.channels_last),
            lambda: torch.randn(len(rows), 16, 16, 3).permute(0, 3, 1, 2),
            lambda: torch.randn(2 * len(rows), 3, 16, 16)[::2],
            lambda: torch.randn(1, 3, 16, 16).expand(len(rows), 3, 16, 16),
            lambda: torch.zeros(len(rows), 3, 16, 16),
        ]
    )()


def _bad(chance: random.Random) -> object:
    """What must be refused, through the future or at once."""
    return chance.choice(
        [
            torch.zeros(0, 3, 16, 16),
            torch.zeros(3, 16, 16),
            torch.zeros(2, 4, 16, 16),
            torch.zeros(2, 3, 16, 16, dtype=torch.float64),
            torch.zeros(2, 3, 16, 16, dtype=torch.int64),
            np.zeros((2, 3, 16, 16), dtype=np.complex64),
            torch.zeros(2, 3, 16, 16, dtype=torch.complex64).conj(),
            torch.zeros(2, 3, 16, 16).to_sparse(),
            torch.zeros(2, 3, 16, 16, device="meta"),
            np.array([["text"]]),
            torch.tensor(1.0),
            [[1.0]],
            None,
        ]
    )


def _why_it_failed(error: StageFailed) -> str:
    """One of the two reasons that the faults give, or a wrong one in its own words."""
    words = str(error)
    if "memory" in words.lower():
        return "failed for want of memory"
    if "died" in words:
        return "failed with its workers"
    return f"WRONG: {words}"


class _Callers:
    """Threads that ask, and look at every answer."""

    def __init__(self, session: Session, model: SmallNet) -> None:
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._session = session
        self._model = model
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask, args=(seed,)) for seed in range(_NUM_CALLERS)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(_ANSWER_LIMIT_S)
            assert not thread.is_alive()

    def _count(self, outcome: str) -> None:
        with self._lock:
            self.outcomes[outcome] += 1

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self._over.is_set():
            try:
                if chance.random() < 0.2:
                    self._refuse(_bad(chance))
                else:
                    self._answer([_good(chance) for _ in range(chance.randint(1, 4))], chance)
            except BaseException as error:  # noqa: BLE001, PERF203  # told by the test
                self._count(f"WRONG: {error!r}")

    def _refuse(self, rows: object) -> None:
        try:
            self._session.submit(rows).result(_ANSWER_LIMIT_S)  # type: ignore[arg-type]
        except (CutsetError, TypeError):
            self._count("refused")
        else:
            self._count(f"WRONG: {rows!r} was answered")

    def _answer(self, items: list[torch.Tensor | np.ndarray], chance: random.Random) -> None:
        futures = [self._session.submit(item) for item in items]
        if chance.random() < 0.1:
            futures[-1].cancel()
        for item, future in zip(items, futures, strict=True):
            self._look(item, future)

    def _look(self, item: torch.Tensor | np.ndarray, future: Future[object]) -> None:
        if future.cancelled():
            self._count("cancelled")
            return
        try:
            answer = future.result(_ANSWER_LIMIT_S)
        except StageFailed as error:  # said, not lost; the test tells why
            self._count(_why_it_failed(error))
            return
        if isinstance(item, np.ndarray):  # what torch can hold, by NumPy's own conversion
            rows = torch.from_numpy(np.array(item, dtype=np.float32, order="C"))
        else:
            rows = item.resolve_neg()
        same = torch.equal(torch.as_tensor(answer), whole_model(self._model, rows, 4))
        self._count("equal" if same else "WRONG: another answer")


class _Faults:
    """One fault after the other, each harmless to the session as a whole."""

    def __init__(self, session: Session, bundle: Path) -> None:
        self.done: collections.Counter[str] = collections.Counter()
        self._session = session
        self._bundle = bundle
        self._chance = random.Random(11)
        self._next: list[Callable[[], None]] = []
        self._kinds: tuple[Callable[[], None], ...] = (
            self.kill,
            self.kill_all,
            self.stop,
            self.take_descriptors,
            self.take_memory,
            self.open_another,
            self.drop_another,
        )

    def strike(self) -> None:
        if not self._next:
            self._next = self._chance.sample(self._kinds, len(self._kinds))
        kind = self._next.pop()
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            kind()
            self.done[kind.__name__] += 1

    def _pids(self) -> list[int]:
        return [pid for pid in self._session.worker_pids if pid]

    def kill(self) -> None:
        for pid in self._pids()[:1]:
            os.kill(pid, self._chance.choice(_DEADLY))

    def kill_all(self) -> None:
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        for pid in self._pids()[-1:]:
            os.kill(pid, signal.SIGSTOP)

    def take_descriptors(self) -> None:
        pids = self._pids()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.5)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def take_memory(self) -> None:
        """Lets a worker allocate nothing for a while; what it cannot compute fails in words."""
        if sys.platform != "linux":
            return
        for pid in self._pids()[:1]:
            _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
            resource.prlimit(pid, resource.RLIMIT_DATA, (1 << 20, hard))
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)

    def open_another(self) -> None:
        """A session over network links, which loses a worker and is closed in the middle."""
        engine = LocalEngine(("a", "b"), num_threads=1, shares_memory=False)
        with open_session(self._bundle, backend="torch", engine=engine, limits=_LIMITS) as session:
            session.run(torch.zeros(3, 3, 16, 16))
            os.kill(session.worker_pids[0], signal.SIGKILL)
            future = session.submit(torch.zeros(9, 3, 16, 16))
            if self._chance.random() < 0.5:
                future.result(_ANSWER_LIMIT_S)
        assert future.done()

    def drop_another(self) -> None:
        workers = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            session = open_session(self._bundle, backend="torch")
            workers = [psutil.Process(pid) for pid in session.worker_pids]
            del session
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []


def _resident_bytes() -> int:
    """What this process needs now, the least of a few looks: others come and go with requests."""
    looks = []
    for _ in range(10):
        give_back_memory()
        looks.append(psutil.Process().memory_info().rss)
        time.sleep(0.1)
    return min(looks)


def _open_files() -> collections.Counter[str]:
    """What the descriptors of this process stand for; sockets and pipes by their kind."""
    found: collections.Counter[str] = collections.Counter()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that listed the folder
            found[str(link.readlink()).partition(":")[0]] += 1
    return found


@pytest.fixture
def nothing_is_left(bundle: Path) -> Iterator[None]:
    for shares_memory in (True, False):  # what is made once is made: ZeroMQ's context, for one
        engine = LocalEngine(("a", "b"), num_threads=1, shares_memory=shares_memory)
        with open_session(bundle, backend="torch", engine=engine) as session:
            session.run(torch.zeros(1, 3, 16, 16))
    gc.collect()
    files, threads = _open_files(), set(threading.enumerate())
    yield
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s:
        gc.collect()
        more_files, more_threads = _open_files() - files, set(threading.enumerate()) - threads
        if not more_files and not more_threads:
            break
        time.sleep(0.2)
    assert dict(more_files) == {}
    assert more_threads == set()


@pytest.mark.usefixtures("nothing_is_left")
def test_everything_at_once_loses_nothing_and_leaves_nothing(bundle: Path, model: SmallNet) -> None:
    began_s = time.monotonic()
    early: list[int] = []
    with open_session(bundle, backend="torch", limits=_LIMITS) as session:
        faults = _Faults(session, bundle)
        with _Callers(session, model) as callers:
            chance = random.Random(3)
            while (spent_s := time.monotonic() - began_s) < _SOAK_S:
                faults.strike()
                time.sleep(chance.uniform(0.2, 2.0))
                if spent_s > 0.3 * _SOAK_S and not early:
                    early.append(_resident_bytes())
        late = _resident_bytes()
    print(f"outcomes: {dict(callers.outcomes)}\nfaults: {dict(faults.done)}")
    print(f"caller: {early[0] / 2**20:.1f} MiB, at the end {late / 2**20:.1f} MiB")
    assert [outcome for outcome in callers.outcomes if outcome.startswith("WRONG")] == []
    failed = sum(n for outcome, n in callers.outcomes.items() if outcome.startswith("failed"))
    assert callers.outcomes["equal"] > failed
    assert late <= early[0] * _GROWTH
