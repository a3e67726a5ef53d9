"""A worker whose stage 0 falls ill when the first number of a micro-batch asks for it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from cutset.dtypes import Arrays
from cutset.engines.local import LocalEngine
from cutset.runtime import worker

KILL = 1001.0
ABORT = 1002.0
RAISE = 1003.0
MISFIT = 1004.0
HANG = 1005.0
WRONG_SHAPE = 1006.0
SLOW = 1007.0
GREEDY = 1008.0
GREEDY_IN_PYTHON = 1009.0

GREED_BYTES = 1 << 36


def sick_engine(num_stages: int) -> LocalEngine:
    """The local engine with workers of this module."""
    return LocalEngine(
        tuple(f"cpu:{index}" for index in range(num_stages)),
        num_threads=1,
        worker_command=(sys.executable, __file__),
    )


class _SickProgram:
    def __init__(self, program: Any) -> None:
        self._program = program
        self.backend = program.backend

    def __call__(self, inputs: Arrays) -> Arrays:
        symptom = float(inputs[0].flat[0])
        if symptom == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        if symptom == ABORT:
            os.abort()
        if symptom == RAISE:
            raise ValueError("no such luck")
        if symptom == MISFIT:
            import torch

            torch.zeros(2, 3) @ torch.zeros(4, 5)
        if symptom == HANG:
            threading.Event().wait()
        if symptom == SLOW:
            threading.Event().wait(3.0)
        if symptom == GREEDY:
            import torch

            torch.empty(GREED_BYTES, dtype=torch.uint8)
        if symptom == GREEDY_IN_PYTHON:
            bytearray(GREED_BYTES)
        outputs = self._program(inputs)
        if symptom == WRONG_SHAPE:
            return tuple(output[:, :1] for output in outputs)
        return outputs


def main() -> None:
    healthy = worker.load_stage
    worker.load_stage = lambda *args, **kwargs: _SickProgram(healthy(*args, **kwargs))
    worker.main()


if __name__ == "__main__":
    main()
