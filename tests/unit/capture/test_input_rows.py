from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.torch_export import capture_model
from cutset.errors import CaptureError


class WithState(nn.Module):
    """A recurrent layer whose state comes in: layers first, as torch wants it."""

    def __init__(self, kind: type[nn.Module], num_layers: int) -> None:
        super().__init__()
        self.layer: Any = kind(12, 16, num_layers, batch_first=True)

    def forward(self, x: Tensor, state: Any) -> Tensor:
        result: Tensor = self.layer(x, state)[0]
        return result


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_layers_where_rows_should_be(num_layers: int) -> None:
    example = (torch.randn(2, 9, 12), torch.zeros(num_layers, 2, 16))
    with pytest.raises(
        CaptureError, match=r"input 'state' .* has layers, not rows, in its first dimension"
    ):
        capture_model(WithState(nn.GRU, num_layers), example)


def test_layers_of_a_state_of_two_tensors() -> None:
    state = (torch.zeros(2, 2, 16), torch.zeros(2, 2, 16))
    with pytest.raises(CaptureError, match=r"input 'state\.0' .* has layers, not rows"):
        capture_model(WithState(nn.LSTM, 2), (torch.randn(2, 9, 12), state))


def test_an_input_without_rows() -> None:
    class Table(nn.Module):
        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return x + table.sum(0)

    with pytest.raises(
        CaptureError, match=r"input 'table' of shape \[7, 4\] has 7 entries.*buffer"
    ):
        capture_model(Table(), {"x": torch.randn(2, 4), "table": torch.randn(7, 4)})


@pytest.mark.parametrize("x", [torch.randn(1, 4), torch.tensor(1.0)])
def test_too_few_rows(x: Tensor) -> None:
    with pytest.raises(CaptureError, match="at least two rows"):
        capture_model(nn.Linear(4, 4), (x,))
