"""Bundles and servers that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from distributed.bundles import SmallNet, small_net

from .running import Running, serving, write_image_bundle


@pytest.fixture(scope="session")
def model() -> SmallNet:
    return small_net()


@pytest.fixture(scope="session")
def bundle(model: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, micro-batch 4, takes images."""
    torch.manual_seed(0)
    return write_image_bundle(model, tmp_path_factory.mktemp("serve") / "small.cutset")


@pytest.fixture(scope="package")
def server(bundle: Path) -> Iterator[Running]:
    """One server for all tests of the folder that leave it as it was, but for its counters.

    It ends before this process goes on to a test of another folder, which may count processes.
    """
    with serving(bundle) as running:
        yield running
