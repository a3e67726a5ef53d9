"""From a plan to a bundle that is proven to be the whole model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from cutset.workflow import plan_stages, prepare_model, split_model


def test_the_pair_of_before_can_still_be_taken_apart(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    prepared = prepare_model(model, (torch.randn(2, 4),))
    plan = plan_stages(prepared, num_stages=2)
    proven = split_model(prepared, plan, tmp_path / "b.cutset")
    with pytest.warns(DeprecationWarning, match="returns one bundle") as caught:
        bundle, verification = proven
    assert bundle is proven
    assert verification is proven.verification
    assert caught[0].filename == __file__
