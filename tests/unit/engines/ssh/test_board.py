"""What waits on a device, and a worker, load no more than they use: a board has little memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

_HEAVY = ("torch", "onnx", "onnxruntime", "openvino", "asyncio", "PIL", "cutset.planning.solvers")


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("cutset.engines.ssh.board", (*_HEAVY, "numpy", "ml_dtypes", "zmq", "cutset.planning")),
        ("cutset.runtime.worker", _HEAVY),
    ],
)
def test_a_process_of_a_board_imports_little(module: str, never: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.split()
    assert module in loaded
    assert [name for name in never if name in loaded] == []
