"""How much memory a worker needs before it holds a shard."""

from __future__ import annotations

import functools
import subprocess

from cutset.backends.selection import REFERENCE_BACKEND
from cutset.errors import PlanError
from cutset.processes import command_of, made_environment

_LIMIT_S = 120.0


@functools.cache
def measure_worker_base(backend: str = REFERENCE_BACKEND) -> int:
    """Resident bytes of an idle worker: one whose stage is a single small convolution.

    So it has imported what a worker imports, and the backend's libraries with their kernels are in
    memory. Measured once in a process's life for each backend.

    Args:
        backend: a name from `cutset.backends.selection.backend_names`, lacking nothing here.

    Raises:
        PlanError: the measurement did not end in two minutes or failed.
    """
    try:
        # A process of its own: this one holds a model already.
        done = subprocess.run(  # noqa: S603  # this interpreter, a fixed program
            [*command_of("idle-worker"), backend],
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=True,
            env=made_environment(1),
        )
        return int(done.stdout)
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        raise PlanError(f"a worker's own memory cannot be measured here: {error}") from error
