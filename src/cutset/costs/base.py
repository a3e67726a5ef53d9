"""How much memory a worker needs before it holds a shard."""

from __future__ import annotations

import functools
import subprocess
import sys

from cutset.errors import PlanError

_LIMIT_S = 120.0
# A process of its own: this one holds a model already.
_MEASURE = (
    "import psutil, torch, cutset.runtime.worker, onnxruntime;"
    "print(psutil.Process().memory_info().rss)"
)


@functools.cache
def measure_worker_base() -> int:
    """Resident bytes of a process that has imported what a worker imports, and nothing else.

    Measured once in a process's life.

    Raises:
        PlanError: the measurement did not end in two minutes or failed.
    """
    try:
        done = subprocess.run(  # noqa: S603  # this interpreter, a fixed program
            [sys.executable, "-c", _MEASURE],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=True,
        )
        return int(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        raise PlanError(f"a worker's own memory cannot be measured here: {error}") from error
