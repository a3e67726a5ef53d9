"""Random weights: the same for a seed, everywhere different from the defaults, never degenerate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cutset.errors import ModelError
from cutset.models.randomise import randomise


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.norm(self.conv(x)))


def _tower(depth: int) -> nn.Module:
    return nn.Sequential(*(Residual(8) for _ in range(depth)), nn.Flatten(), nn.Linear(128, 5))


ROWS = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(1))


def test_seed_decides() -> None:
    states = []
    for seed in (3, 3, 4):
        model = _tower(2)
        randomise(model, ROWS, seed)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    differs = [name for name in states[0] if not torch.equal(states[0][name], states[2][name])]
    assert len(differs) == len(states[0]) - 2  # all but the counters of two norms


def test_numbers_are_the_same_on_every_machine() -> None:
    layer = nn.Linear(3, 1)
    randomise(layer, torch.zeros(2, 3), 0)
    expected = math.sqrt(2) * (2 * torch.tensor([[0.49625659, 0.76822180, 0.08847743]]) - 1)
    assert torch.allclose(layer.weight, expected, rtol=0, atol=1e-6)


def test_the_global_generator_is_left_alone() -> None:
    model = _tower(1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    randomise(model, ROWS, 0)
    assert torch.equal(torch.rand(3), expected)


def test_scales_shifts_and_statistics_are_drawn() -> None:
    model = Residual(64)
    randomise(model, torch.randn(2, 64, 4, 4), 0)
    norm = model.norm
    assert 0.5 <= norm.weight.min() < 0.6 < 1.4 < norm.weight.max() <= 1.5
    assert -0.25 <= norm.bias.min() < -0.2 < 0.2 < norm.bias.max() <= 0.25
    assert norm.running_mean.std() > 0.05
    assert norm.running_var.std() > 0.1
    assert model.training is False


def test_a_deep_tower_neither_explodes_nor_vanishes() -> None:
    model = _tower(200)
    randomise(model, ROWS, 0)
    with torch.no_grad():
        out = model(ROWS)
    assert 0.1 < out.std() < 100
    assert (out[0] - out[1]).abs().max() > 0.01


def test_statistics_are_scaled_by_a_power_of_two() -> None:
    norm = nn.BatchNorm1d(4)
    randomise(norm, torch.tensor([[-30.0] * 4, [30.0] * 4]), 0)
    small = nn.BatchNorm1d(4)
    randomise(small, torch.tensor([[-0.9] * 4, [0.9] * 4]), 0)
    assert torch.equal(norm.running_var, small.running_var * 4.0**5)
    assert torch.equal(norm.running_mean, small.running_mean * 2.0**5)


def test_tied_weights_integers_and_masks() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight
            self.temperature = nn.Parameter(torch.tensor(2.0))
            self.register_buffer("mask", torch.ones(4))
            self.register_buffer("index", torch.arange(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x)) * self.mask[self.index]

    model = Tied()
    randomise(model, torch.randn(2, 4), 0)
    assert model.a.weight is model.b.weight
    assert torch.equal(model.mask, torch.ones(4))
    assert torch.equal(model.index, torch.arange(4))
    assert model.temperature.item() == 2.0


def test_half_precision() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(torch.bfloat16)
    randomise(model, torch.randn(2, 4).to(torch.bfloat16), 0)
    assert model[0].weight.dtype == torch.bfloat16
    assert model[0].weight.std() > 0.1


@pytest.mark.parametrize("inputs", [(torch.randn(2, 4),), {"input": torch.randn(2, 4)}])
def test_every_form_of_example_inputs(inputs: object) -> None:
    norm = nn.BatchNorm1d(4)
    randomise(norm, inputs, 0)
    assert norm.running_var.min() > 0


def test_a_model_that_cannot_be_run() -> None:
    with pytest.raises(ModelError, match="cannot be run on its example inputs"):
        randomise(nn.BatchNorm1d(4), torch.randn(2, 5), 0)
