from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import psutil
import pytest

from cutset.measure.bystander import Bystanders


def test_they_work_until_they_are_ended() -> None:
    with Bystanders(2) as bystanders:
        children = psutil.Process().children()
        assert len(children) == 2
        done = bystanders.work
        deadline_s = time.monotonic() + 30
        while bystanders.work == done:
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
    assert not any(child.is_running() for child in children)


@pytest.mark.skipif(sys.platform != "linux", reason="orphans have another parent elsewhere")
def test_none_outlives_the_process_that_started_it() -> None:
    program = (
        "import os, psutil; from cutset.measure.bystander import Bystanders;"
        "b = Bystanders(1); print(*(p.pid for p in psutil.Process().children()), flush=True);"
        "os._exit(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        env=dict(os.environ),
    )
    with contextlib.suppress(psutil.NoSuchProcess):  # gone already
        psutil.Process(int(done.stdout)).wait(timeout=30)
