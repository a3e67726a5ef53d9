"""Fixtures that several folders use."""

from __future__ import annotations

import os

import pytest

# Several processes of a test share two cores; OpenMP's default of one thread a core would
# have them fight. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> None:
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
