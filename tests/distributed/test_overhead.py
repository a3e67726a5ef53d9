"""What messages take from computing, measured by real processes."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from cutset.measure.overhead import Overhead

ON_ONE_CORE = """
import os, runpy, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
runpy.run_module("cutset.measure.overhead", run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="pins processes to a core")
def test_on_one_core_messages_and_caller_take_from_a_stage() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE, "--bytes", "100000", "--round-seconds", "0.2"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout, type=Overhead)
    assert found.stage_s > 0
    assert found.caller_s > 0
    assert found.num_bytes == 100_000
