from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from cutset.runtime.alone import AloneResult


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
