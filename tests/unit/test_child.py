"""A process that limits its own memory, and one whose lifeline is cut."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_memory_beyond_the_limit_is_refused() -> None:
    program = """
from cutset.child import limit_memory
limit_memory(64 << 20)
kept = bytearray(32 << 20)
try:
    bytearray(64 << 20)
except MemoryError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("refused\n", 0)


def test_ends_when_the_lifeline_is_cut() -> None:
    program = """
import sys, threading
from cutset.child import end_with
end_with(sys.stdin.buffer)
threading.Event().wait(60)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert process.poll() is None
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 1
