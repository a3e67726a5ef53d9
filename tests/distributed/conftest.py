"""Bundles that the tests of this folder share, and a check that nothing survives a test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from .bundles import SmallNet, small_net, write_bundle


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "soak: the long form of the fault tests; run with -m soak")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the long tests out unless they are asked for with ``-m``."""
    if config.option.markexpr:
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model() -> SmallNet:
    return small_net()


@pytest.fixture(scope="session")
def bundle(model: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, micro-batch 4."""
    folder = tmp_path_factory.mktemp("bundles") / "small.cutset"
    return write_bundle(model, (torch.randn(2, 3, 16, 16),), (3,), folder)


@pytest.fixture(scope="session")
def bundle_of_three(model: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages, micro-batch 4."""
    folder = tmp_path_factory.mktemp("bundles") / "three.cutset"
    return write_bundle(model, (torch.randn(2, 3, 16, 16),), (3, 6), folder)


@pytest.fixture(autouse=True)
def _no_process_survives() -> Iterator[None]:
    yield
    workers = [
        child
        for child in psutil.Process(os.getpid()).children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    ]
    assert workers == []
