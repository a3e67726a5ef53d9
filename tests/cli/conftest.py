"""Runs the command as a user does."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from command_line import Cutset, Outcome, call_cutset

__all__ = ["COMMAND", "LIMIT_S", "Cutset", "Outcome"]

COMMAND = str(Path(sys.executable).with_name("cutset"))
LIMIT_S = 240

SMALL_MODEL = '''
"""A small model of the user's own."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x):
        return torch.relu(self.second(torch.relu(self.first(x))) + x)


def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.ReLU(), Block(16), Block(16), Block(16), nn.Linear(16, 4)
    )
    return model, (torch.randn(2, 8),)
'''


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """What a process of its own is started with."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


@pytest.fixture(scope="session")
def cutset() -> Cutset:
    """The command within this process."""
    return call_cutset


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("models") / "small.py"
    path.write_text(SMALL_MODEL)
    return f"{path}:make"


@pytest.fixture(scope="session")
def small_bundle(
    cutset: Cutset, small_model: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small.cutset"
    outcome = cutset("split", small_model, "--stages", 2, "--cost", "flops", "-o", folder)
    assert outcome.code == 0, outcome.err
    return folder
