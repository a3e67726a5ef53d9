"""What a worker holds: torch only where its backend is torch's, wherever its neighbours are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cutset.engines.local import LocalEngine
from cutset.runtime.session import open_session

from .bundles import SmallNet, whole_model


def _libraries(pid: int) -> set[str]:
    """Names of the files that a process has mapped from a folder of a package's."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
    return {part for line in maps.splitlines() for part in line.split("/")[1:-1]}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("backend", "shares_memory", "holds"),
    [
        ("onnxruntime", True, {"onnxruntime"}),
        ("onnxruntime", False, {"onnxruntime"}),
        ("torch", True, {"torch"}),
    ],
)
def test_a_worker_holds_the_libraries_of_its_backend_alone(
    bundle: Path, model: SmallNet, backend: str, shares_memory: bool, holds: set[str]
) -> None:
    engine = LocalEngine(("a", "b"), num_threads=1, shares_memory=shares_memory)
    rows = torch.randn(5, 3, 16, 16)
    with open_session(bundle, engine=engine, backend=backend) as session:
        answer = session.run(rows)
        for pid in session.worker_pids:
            assert _libraries(pid) & {"torch", "onnxruntime", "openvino"} == holds
    assert torch.allclose(torch.as_tensor(answer), whole_model(model, rows, 4), atol=1e-5)


@pytest.mark.parametrize("shares_memory", [True, False])
def test_a_caller_of_arrays_needs_no_torch(bundle: Path, shares_memory: bool) -> None:
    code = (
        "import sys, numpy as np\n"
        "from cutset.engines.local import LocalEngine\n"
        "from cutset.runtime.session import open_session\n"
        f"engine = LocalEngine(('a', 'b'), num_threads=1, shares_memory={shares_memory})\n"
        "with open_session(sys.argv[1], engine=engine, backend='onnxruntime') as session:\n"
        "    answer = session.run(np.ones((5, 3, 16, 16), np.float32))\n"
        "assert type(answer) is np.ndarray and answer.shape == (5, 10)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle)], check=True, timeout=120)
