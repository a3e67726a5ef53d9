"""Numbers out of constants are taken; of what is none, it is said on what it stands."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.pieces import build_piece
from cutset.capture.torch_export import capture_model
from cutset.errors import CaptureError

Step = Callable[[Any, Tensor], Tensor]


class Between(nn.Module):
    """Two layers with a step between them, which has constants of every kind at hand."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)
        self.register_buffer("three", torch.tensor(3))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("vector", torch.tensor([2, 4, 1]))
        self.register_buffer("strides", torch.tensor([8.0, 16.0, 32.0]))
        self.quarter = nn.Parameter(torch.tensor(0.25))
        self.two = torch.tensor(2)  # neither buffer nor parameter
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.step(self, self.first(x))))


def _counted_down(model: Any, h: Tensor) -> Tensor:
    left = model.three.clone()
    while left > 0:
        h, left = h + 1, left - 1
    return h


def _changed_in_place(model: Any, h: Tensor) -> Tensor:
    numbers = model.vector.clone()
    rest = numbers[1:]
    rest += 10
    numbers[model.two] = 3
    return h * int(numbers[1] + numbers[2])


def _repeated(model: Any, h: Tensor) -> Tensor:
    for _ in range(int(model.three)):
        h = h + 1
    for stride in model.strides.tolist():
        h = h * stride
    for number in model.vector:
        h = h - int(number)
    return h


def _asserted(model: Any, h: Tensor) -> Tensor:
    assert model.flag
    assert (model.vector > 0).all()
    assert len(model.vector.nonzero()) == 3
    return h + 1 if torch.equal(model.vector, model.vector.clone()) else h


def _masked(model: Any, h: Tensor) -> Tensor:
    mask = torch.tensor([True, False] * 4)
    h = h.clone()
    h[:, mask] = 0
    return torch.cat((h[:, ~mask], h[:, mask], h[:, model.three : model.three + 2]), 1)[:, :8]


TAKEN: list[Step] = [
    lambda m, h: h * int(m.three),
    lambda m, h: h + 1 if m.flag else h - 1,
    lambda m, h: h + 1 if bool(m.flag) else h,
    lambda m, h: h * float(m.quarter),
    lambda m, h: h * m.two.item(),
    lambda m, h: h * m.vector.tolist()[1],
    lambda m, h: h * float(m.strides.numpy()[1]),
    lambda m, h: h.reshape(-1, int(m.two), 4).sum(1).repeat(1, 2),
    lambda m, h: h.reshape(-1, m.two, 4).flatten(1),
    lambda m, h: h.narrow(1, m.two, 4).repeat(1, 2),
    lambda m, h: h + torch.zeros(int(m.three), 8).sum(0) + torch.arange(m.three).sum(),
    lambda m, h: h * int((m.vector + 1).sum() * 2),
    lambda m, h: h * 2 if (m.vector > 3).any() else h,
    lambda _, h: h * int(torch.tensor([1, 2, 3])[1]),
    lambda m, h: h[:, m.vector.tolist()].sum(1, keepdim=True) + h,
    lambda m, h: h[:, torch.where(m.vector > 1)[0]].sum(1, keepdim=True) + h,
    lambda m, h: h + m.strides[m.vector > 1].sum() + m.strides.masked_select(m.flag).sum(),
    lambda m, h: h + m.first.weight[m.first.bias > 0].sum(0),
    lambda m, h: [torch.relu, torch.tanh, torch.sigmoid, torch.exp][m.three](h),
    lambda m, h: h * math.sqrt(m.quarter) * round(float(m.quarter * 10)),
    lambda m, h: h * {"3": 2.0}[str(int(m.three))],
    lambda m, h: torch.cat(h.split(torch.tensor([3, 5]).tolist(), 1)[::-1], 1),
    _counted_down,
    _changed_in_place,
    _repeated,
    _asserted,
    _masked,
]


@pytest.mark.parametrize("steps", [TAKEN[start::5] for start in range(5)])
def test_a_number_out_of_a_constant_is_known_when_the_model_is_captured(steps: list[Step]) -> None:
    torch.manual_seed(0)
    model = Between(lambda m, h: functools.reduce(lambda y, step: step(m, y), steps, h)).eval()
    captured = capture_model(model, torch.randn(2, 8))
    piece = build_piece(captured, 0, len(captured.graph.operations))
    for num_rows in (1, 3):
        rows = torch.randn(num_rows, 8)
        with torch.no_grad():
            assert torch.equal(piece(rows)[0], model(rows))


def test_the_model_is_left_as_it_was() -> None:
    model = Between(_changed_in_place).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    capture_model(model, torch.randn(2, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def _counts(model: Any, h: Tensor) -> Tensor:
    model.three += 1
    return h * int(model.three)


def _counts_and_decides(model: Any, h: Tensor) -> Tensor:
    model.three.add_(1)
    return h * 2 if (model.three * 2) > 99 else h


def _counts_an_attribute(model: Any, h: Tensor) -> Tensor:
    model.two.add_(1)
    return h * int(model.two)


def _written_by_the_input(model: Any, h: Tensor) -> Tensor:
    numbers = torch.zeros(8)
    numbers[2] = 5
    numbers[model.three] = h.sum()
    return h * int(numbers[2])


def _drawn(_: Any, h: Tensor) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    return h * float(torch.rand(1, generator=chance))


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda _, h: h * 2 if h.sum() > 0 else h, "bool.. .* depends on the values of its input"),
        (lambda _, h: h * int(h.argmax()), "int.. .* depends on the values of its input"),
        (_written_by_the_input, "int.. .* depends on the values of its input"),
        (lambda _, h: h * int(torch.tensor(h.shape[0])), "int.. .* depends on the number of rows"),
        (_drawn, "float.. .* depends on random numbers"),
        (lambda _, h: h * 2 if torch.rand(1) > 0.5 else h, "bool.. .* depends on random numbers"),
        (_counts, "int.. .* depends on its buffer 'three', which it changes in forward"),
        (_counts_and_decides, "bool.. .* depends on its buffer 'three', which it changes in forw"),
        (_counts_an_attribute, "int.. .* depends on a tensor that it keeps, which it changes"),
    ],
)
def test_a_number_out_of_anything_else_is_refused_with_the_truth(step: Step, words: str) -> None:
    place = r"the model cannot be split at test_constants\.py:\d+: "
    with pytest.raises(CaptureError, match=f"^{place}{words}") as found:
        capture_model(Between(step).eval(), torch.randn(2, 8))
    assert found.value.source is not None
