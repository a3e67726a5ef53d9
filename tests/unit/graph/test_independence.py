from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cutset.errors import CaptureError
from cutset.graph.capture import capture_model
from cutset.graph.independence import check_rows


class Centred(nn.Module):
    """Takes the batch's mean away: a row alone becomes zero."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(6, 8)
        self.middle = nn.ReLU()
        self.after = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self.before(x))
        return self.after(x - x.mean(0, keepdim=True))


class Spread(nn.Module):
    """Softmax over the wrong dimension, in a child."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(0)


class Ranks(nn.Module):
    """Whole numbers from each row, and floating ones."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.scores(x)
        return scores.argmax(-1), scores.sort(-1).values


def _check(model: nn.Module, rows: Tensor) -> None:
    model.eval()
    check_rows(capture_model(model, rows), model)


def test_a_mean_over_the_batch_is_refused_and_named() -> None:
    torch.manual_seed(0)
    with pytest.raises(
        CaptureError, match="a row's result depends on the rows beside it"
    ) as caught:
        _check(Centred(), torch.randn(3, 6))
    assert caught.value.operation == "aten.mean.dim"
    assert caught.value.source is not None
    assert caught.value.source.startswith("test_independence.py:")


def test_the_module_is_named_where_it_is_not_the_root() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), Spread(), nn.Linear(6, 2))
    with pytest.raises(CaptureError, match=r"in module '2'") as caught:
        _check(model, torch.randn(2, 6))
    assert caught.value.module_path == "2"
    assert caught.value.operation == "aten.softmax.int"


def test_a_normalisation_by_the_batch_is_refused() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.ReLU())
    with pytest.raises(CaptureError, match="depends on the rows beside it"):
        _check(model, torch.randn(4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_independent_rows_pass_in_every_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU()] * 4
    _check(nn.Sequential(*layers).to(dtype), torch.randn(5, 32, dtype=dtype))


def test_whole_numbers_and_several_outputs_pass() -> None:
    _check(Ranks(), torch.randn(3, 6))


def test_an_example_of_equal_rows_does_not_hide_the_mean() -> None:
    torch.manual_seed(0)
    with pytest.raises(CaptureError, match="depends on the rows beside it"):
        _check(Centred(), torch.ones(2, 6))


class RunsThrough(nn.Module):
    """Adds up over the rows: the last row sees the first, not the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x).flip(0).cumsum(0).flip(0)


def test_a_sum_that_runs_over_the_rows_is_refused() -> None:
    with pytest.raises(CaptureError, match="depends on the rows beside it"):
        _check(RunsThrough(), torch.randn(2, 6))
