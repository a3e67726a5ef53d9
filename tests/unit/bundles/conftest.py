from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distributed.bundles import write_bundle
from hostile import copy_of
from models_of_trouble import residual_net


@pytest.fixture(scope="session")
def good_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`residual_net` in two stages, cut after its max-pooling; not to be changed."""
    torch.manual_seed(7)
    directory = tmp_path_factory.mktemp("bundles") / "good.cutset"
    return write_bundle(residual_net(), (torch.randn(3, 3, 8, 8),), (4,), directory)


@pytest.fixture
def bundle(good_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the good bundle, to be broken."""
    return copy_of(good_bundle, tmp_path / "copy.cutset")
