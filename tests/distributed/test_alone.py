from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from cutset.runtime.alone import AloneProcesses, AloneResult
from cutset.shards.load import open_bundle


def test_a_stage_is_timed_once_busy_and_rested(bundle: Path) -> None:
    command = [
        *(sys.executable, "-m", "cutset.runtime.alone"),
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
