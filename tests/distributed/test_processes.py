"""A session and its processes: how they begin, what they hear of each other, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

import cutset
from cutset.engines.local import LocalEngine
from cutset.errors import CutsetError, EngineError
from cutset.runtime.session import Session, open_session
from cutset.runtime.status import Limits

from .bundles import in_turn, write_bundle

_QUICK = Limits(heartbeat_s=3.0, link_timeout_s=5.0, back_off_s=0.05)


def _rows(num_rows: int = 3) -> torch.Tensor:
    return torch.randn(num_rows, 3, 16, 16, generator=torch.Generator().manual_seed(num_rows))


def test_the_local_engine_listens_on_nothing(bundle: Path) -> None:
    with open_session(bundle, backend="onnxruntime") as session:
        session.run(_rows())
        for pid in (os.getpid(), *session.worker_pids):
            process = psutil.Process(pid)
            listening = [c for c in process.net_connections("inet") if c.status == "LISTEN"]
            assert listening == []
            assert [c for c in process.net_connections("unix") if c.laddr.startswith("/")] == []


def test_whatever_signal_ends_a_worker_it_is_replaced(bundle: Path) -> None:
    rows = _rows()
    expected = in_turn(bundle, rows)
    numbers = [signal.SIGTERM, signal.SIGBUS, 37, signal.SIGRTMIN, signal.SIGRTMAX]
    with open_session(bundle, backend="onnxruntime", limits=_QUICK) as session:
        for index, number in enumerate(numbers):
            os.kill(session.worker_pids[index % 2], number)
            assert torch.equal(session.run(rows), expected)
            assert torch.equal(session.run(rows), expected)
        assert sum(stage.num_restarts for stage in session.stats().stages) == len(numbers)


def test_a_worker_whose_end_nobody_tells_of_is_missed(bundle: Path) -> None:
    rows = _rows()
    with open_session(bundle, backend="onnxruntime", limits=Limits(heartbeat_s=60.0)) as session:
        worker = session._supervisor.workers[1].worker
        worker._on_event = lambda _worker, _event: None
        os.kill(session.worker_pids[1], signal.SIGKILL)
        assert torch.equal(session.run(rows), in_turn(bundle, rows))
        assert torch.equal(session.run(rows), in_turn(bundle, rows))


@contextlib.contextmanager
def _no_descriptor_free() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _wait_for_setback(session: Session, num_setbacks: int) -> None:
    supervisor = session._supervisor
    for _ in range(1000):
        if supervisor._num_setbacks >= num_setbacks:
            return
        threading.Event().wait(0.01)
    raise AssertionError(supervisor._tried)


def test_a_restart_without_a_free_descriptor_is_tried_again(bundle: Path) -> None:
    rows = _rows()
    # What an epoch closes gives descriptors back, so the spare is left out.
    engine = LocalEngine(("a", "b"), num_threads=1, keep_spare=False)
    with open_session(
        bundle, backend="onnxruntime", engine=engine, limits=Limits(back_off_s=0.4)
    ) as session:
        session.run(rows)
        with _no_descriptor_free():
            os.kill(session.worker_pids[0], signal.SIGKILL)
            os.kill(session.worker_pids[1], signal.SIGKILL)
            _wait_for_setback(session, 2)
        assert torch.equal(session.run(rows), in_turn(bundle, rows))


def test_a_program_that_is_missing_for_a_while_is_tried_again(bundle: Path, tmp_path: Path) -> None:
    rows = _rows()
    engine = LocalEngine(("a", "b"), num_threads=1, keep_spare=False)
    with open_session(
        bundle, backend="onnxruntime", engine=engine, limits=Limits(back_off_s=0.2)
    ) as session:
        engine._worker_command = (str(tmp_path / "gone"),)
        os.kill(session.worker_pids[0], signal.SIGKILL)
        _wait_for_setback(session, 2)
        engine._worker_command = None
        assert torch.equal(session.run(rows), in_turn(bundle, rows))


def test_a_program_that_is_missing_for_good_ends_the_session_with_its_reason(
    bundle: Path, tmp_path: Path
) -> None:
    engine = LocalEngine(("a", "b"), num_threads=1, worker_command=(str(tmp_path / "gone"),))
    limits = Limits(max_restarts=2, back_off_s=0.01)
    with pytest.raises(EngineError, match=r"3 attempts .* of stage 0 on a could not be started"):
        open_session(bundle, engine=engine, limits=limits)


def test_close_is_safe_from_any_number_of_threads(bundle: Path) -> None:
    session = open_session(bundle, backend="onnxruntime")
    wrong: list[BaseException] = []

    def note(action: object) -> bool:
        try:
            action()  # type: ignore[operator]
        except CutsetError:
            return False
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)
            return False
        return True

    def use() -> None:
        while note(lambda: session.run(_rows())):
            pass

    users = [threading.Thread(target=use) for _ in range(4)]
    closers = [threading.Thread(target=note, args=(session.close,)) for _ in range(4)]
    for thread in (*users, *closers):
        thread.start()
    for thread in (*users, *closers):
        thread.join(30)
        assert not thread.is_alive()
    assert wrong == []


def test_a_dropped_session_ends_its_workers_and_says_so(bundle: Path) -> None:
    session = open_session(bundle, backend="onnxruntime")
    session.run(_rows())
    workers = [psutil.Process(pid) for pid in session.worker_pids]
    sessions = [session]
    del session

    def drop() -> list[psutil.Process]:
        sessions.clear()
        # The thread that gave the answer may drop the session a moment later.
        return psutil.wait_procs(workers, timeout=10)[1]

    with pytest.warns(ResourceWarning, match="dropped without close"):
        alive = drop()
    assert alive == []


def test_a_dropped_session_ends_its_workers_where_warnings_are_errors(bundle: Path) -> None:
    code = f"""
import psutil
import cutset
session = cutset.open_session({str(bundle)!r}, backend="onnxruntime")
workers = [psutil.Process(pid) for pid in session.worker_pids]
del session
_, alive = psutil.wait_procs(workers, timeout=10)
print(len(workers), len(alive))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "2 0\n"
    assert "dropped without close" in done.stderr


def test_a_session_is_kept_as_long_as_an_answer_is_awaited(bundle: Path) -> None:
    rows = _rows(200)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        future = open_session(bundle, backend="onnxruntime").submit(rows)
        assert torch.equal(future.result(60), in_turn(bundle, rows))
        # The thread that gave the answer drops the session a moment later.
        _, alive = psutil.wait_procs(psutil.Process().children(), timeout=10)
    assert alive == []
    assert "dropped without close" in str(caught[0].message)


_FORKS = """
import os, sys, signal, torch, warnings
import cutset
from cutset.engines.local import LocalEngine
warnings.simplefilter("error")
torch.set_num_threads(1)
rows = torch.zeros(3, 3, 16, 16)
engine = LocalEngine(("a", "b"), num_threads=1, shares_memory=sys.argv[2] == "shared")
with cutset.open_session(sys.argv[1], backend="torch", engine=engine) as session:
    before = session.run(rows)
    stream = session.stream(rows for _ in iter(int, 1))
    next(stream)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        for call in (
            lambda: session.run(rows), lambda: session.submit(rows), lambda: session.stats(),
            lambda: session.timeline(), lambda: session.stream([rows]), lambda: next(stream),
            lambda: session.worker_pids, lambda: session.epoch,
        ):
            try:
                call()
            except cutset.CutsetError as error:
                assert "does not cross a fork" in str(error), error
            else:
                os._exit(3)
        session.close()
        session.__exit__(None, None, None)
        del session, stream
        sys.exit(5)  # the whole way out, destructors included
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert torch.equal(session.run(rows), before)
    assert session.epoch == 1
print("fine")
"""


@pytest.mark.parametrize("links", ["shared", "network"])
def test_a_session_does_not_cross_a_fork_and_outlives_it(bundle: Path, links: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FORKS, str(bundle), links],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["fine"]), done.stderr


_STARTS = """
import sys, cutset
from cutset.engines.local import LocalEngine
import cutset.engines.local as local
spawn = LocalEngine._spawn
def told(self):
    worker = spawn(self)
    print("worker", worker.pid, flush=True)
    return worker
LocalEngine._spawn = told
with cutset.open_session(sys.argv[1], backend="onnxruntime"):
    pass
"""


def test_a_worker_ends_with_a_caller_that_is_killed_while_it_starts(bundle: Path) -> None:
    caller = subprocess.Popen(
        [sys.executable, "-c", _STARTS, str(bundle)], stdout=subprocess.PIPE, text=True
    )
    with caller:
        assert caller.stdout is not None
        pids = [int(next(caller.stdout).split()[1]) for _ in range(2)]
        workers = []
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):
                workers.append(psutil.Process(pid))
        caller.kill()
    for _ in range(1000):
        if not any(map(_is_alive, workers)):
            return
        threading.Event().wait(0.01)
    raise AssertionError([each for each in workers if _is_alive(each)])


def _is_alive(process: psutil.Process) -> bool:
    """Whoever inherits a process may be slow to collect it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


_BOUND = """
import os, sys, cutset, psutil
with cutset.open_session(sys.argv[1], backend="onnxruntime") as session:
    for pid in session.worker_pids:
        assert psutil.Process(pid).cpu_affinity() == sorted(os.sched_getaffinity(0))
        environment = psutil.Process(pid).environ()
        assert not [name for name in environment if name.startswith(("OMP_P", "GOMP", "KMP"))]
print("free")
"""


def test_what_binds_the_callers_threads_binds_no_worker(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _BOUND, str(bundle)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={
            **os.environ,
            "OMP_PROC_BIND": "true",
            "GOMP_CPU_AFFINITY": "0",
            "OMP_PLACES": "cores",
        },
    )
    assert done.stdout.splitlines()[-1:] == ["free"], done.stderr


_BY_PATH = """
import sys
sys.path.insert(0, sys.argv[2])
import cutset
import numpy as np
assert cutset.__file__.startswith(sys.argv[2])
with cutset.open_session(sys.argv[1], backend="onnxruntime") as session:
    print(len(session.run(np.zeros((3, 3, 16, 16), np.float32))))
"""


def test_a_caller_may_have_the_package_by_its_path_alone(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cutset").symlink_to(Path(cutset.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", _BY_PATH, str(bundle), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["3"], done.stderr


def test_the_name_of_a_folder_need_not_be_text(bundle: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    shutil.copytree(bundle, folder)
    with open_session(folder, backend="onnxruntime") as session:
        assert torch.equal(session.run(_rows()), in_turn(bundle, _rows()))


_LOSES_A_WORKER = """
import os, signal, sys, time, torch, cutset
from cutset.engines.local import LocalEngine
engine = LocalEngine(("a", "b"), num_threads=1, shares_memory=False)
session = cutset.open_session(sys.argv[1], backend="torch", engine=engine)
session.run(torch.zeros(3, 3, 16, 16))
os.kill(session.worker_pids[0], signal.SIGKILL)
if sys.argv[2] == "connecting":  # the other goes while the links are made again
    while session.epoch < 2 or session._supervisor._circuit is None:
        time.sleep(0.001)
    os.kill(session.worker_pids[1], signal.SIGKILL)
else:
    session.run(torch.zeros(3, 3, 16, 16))
if sys.argv[2] != "unclosed":
    session.close()
sys.exit(7)
"""


@pytest.mark.parametrize("moment", ["recovered", "connecting", "unclosed"])
def test_a_caller_that_lost_a_worker_between_hosts_ends_with_its_own_exit_code(
    bundle: Path, moment: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOSES_A_WORKER, str(bundle), moment],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "terminate" not in done.stderr


_SLOW = """
import json, sys, torch, cutset
from cutset.engines.local import LocalEngine
from cutset.runtime.status import Limits
torch.set_num_threads(1)
engine = LocalEngine(("a", "b"), num_threads=1, shares_memory=False)
limits = Limits(max_restarts=0, **json.loads(sys.argv[3]))
rows = torch.zeros(4, 3, int(sys.argv[2]), 512)
with cutset.open_session(sys.argv[1], backend="torch", engine=engine, limits=limits) as session:
    print(session.run(rows).shape[0], session.epoch)
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "tc"))),
    reason="a slow link is made in a network namespace, which needs root, iproute2 and unshare",
)
@pytest.mark.parametrize(
    ("rate", "height", "limits"),
    [
        # 6 MiB in 2.5 s, of which each second must bring something.
        ("20mbit", 256, {"link_timeout_s": 1.0}),
        # 12 MiB in 10 s and more, which is the time-out where none is said.
        pytest.param("10mbit", 512, {}, marks=pytest.mark.soak),
    ],
)
def test_a_link_that_is_slow_is_not_taken_for_dead(
    tmp_path: Path, rate: str, height: int, limits: dict[str, float]
) -> None:
    torch.manual_seed(0)
    width = 3 * (height // 64) * 8
    model = nn.Sequential(nn.AvgPool2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(width, 2)).eval()
    bundle = write_bundle(model, (torch.randn(2, 3, height, 512),), (2,), tmp_path / "wide.cutset")
    network = (
        f"ip link set lo up && tc qdisc add dev lo root tbf rate {rate} burst 128kb latency 200ms"
        ' && exec "$0" "$@"'
    )
    program = [sys.executable, "-c", _SLOW, str(bundle), str(height), json.dumps(limits)]
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", network, *program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["4 1"], done.stderr
