from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cutset.bundles.open import open_bundle
from cutset.errors import EngineError
from cutset.measure import stages
from cutset.measure.stages import AloneProcesses, AloneResult


def test_a_stage_is_timed_once_busy_and_rested(bundle: Path) -> None:
    command = [
        *(sys.executable, "-m", "cutset.measure.stages"),
        *(str(bundle), "1:torch", "1", "4", "--seconds", "0.1"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    result = msgspec.json.decode(done.stdout, type=AloneResult)
    assert result.backends == ("torch",)
    assert result.num_runs > 0
    assert result.mean_s > 0
    assert result.rested_s is not None
    assert result.rested_s > 0


def test_processes_are_measured_busy_and_with_rests(bundle: Path) -> None:
    opened = open_bundle(bundle)
    backends = ["torch"] * len(opened.manifest.stages)
    with AloneProcesses(
        opened, [(0,), (1,)], backends=backends, num_threads=1, micro_batch=2
    ) as processes:
        busy = processes.measure(0.1)
        # Told to stop long before the first rest is over: as few as are ever taken.
        (rested,) = processes.measure(0.01, [1], rest_s=0.5)
    assert [result.backends for result in busy] == [("torch",), ("torch",)]
    assert min(result.num_runs for result in busy) > 0
    assert rested.num_runs == 3
    assert rested.median_s > 0


_TALKS = """
import sys
sys.stderr.write("a warning of a library\\n" * 20_000)
sys.stderr.flush()
print("ready", flush=True)
for _ in iter(sys.stdin.readline, ""):
    sys.stderr.write("another\\n" * 20_000)
    sys.stderr.flush()
    sys.stdin.readline()
    print('{"median_s": 1.0, "mean_s": 2.0, "num_runs": 3, "backends": ["torch"]}', flush=True)
"""


def test_a_process_that_says_much_of_its_own_is_measured_all_the_same(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "command_of", lambda _module: (sys.executable, "-c", _TALKS))
    opened = open_bundle(bundle)
    with AloneProcesses(
        opened, [(0,)], backends=["torch"] * 2, num_threads=1, micro_batch=2
    ) as processes:
        assert [result.mean_s for result in processes.measure(0.0)] == [2.0]
        assert [result.mean_s for result in processes.measure(0.0)] == [2.0]


def test_a_process_that_leaves_says_why(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says_why = (sys.executable, "-c", "raise SystemExit('no such stage')")
    monkeypatch.setattr(stages, "command_of", lambda _module: says_why)
    with pytest.raises(EngineError, match="cannot be timed alone: no such stage"):
        AloneProcesses(
            open_bundle(bundle), [(0,)], backends=["torch"] * 2, num_threads=1, micro_batch=2
        )
