"""Fixtures that several folders use."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

# Several processes of a test share two cores; OpenMP's default of one thread a core would
# have them fight. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def assets() -> ModuleType:
    """Trained weights and photographs, ``examples/demo_assets.py``."""
    path = Path(__file__).parents[1] / "examples" / "demo_assets.py"
    spec = importlib.util.spec_from_file_location("demo_assets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
