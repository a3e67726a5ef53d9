"""What a model raises on its example is said as its own; what calls left in it is no obstacle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.diagnosis import shortened
from cutset.capture.pieces import build_piece
from cutset.capture.torch_export import capture_model
from cutset.errors import CaptureError


class Ends(nn.Module):
    """A layer, and what comes after it."""

    def __init__(self, end: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(4, 4), end
        self.numbers = torch.tensor([2.0, 3.0])

    def forward(self, x: Tensor) -> Any:
        return self.end(self, self.layer(x))


def _raises(_model: Any, _y: Tensor) -> Tensor:
    raise KeyError("a")


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (
            nn.Sequential(nn.Linear(8, 2)),
            torch.ones(2, 7),
            "in module '0': RuntimeError: mat1",
        ),
        (Ends(_raises), torch.ones(2, 4), r"test_rehearsal\.py:\d+: KeyError: 'a'\. That is"),
        (nn.Bilinear(4, 4, 2), torch.ones(2, 4), "TypeError: .*missing 1 required positional"),
        (nn.Linear(4, 4).double(), torch.ones(2, 4), "must have the same dtype"),
    ],
)
def test_what_the_model_raises_on_its_example_is_said_as_it_is(
    model: nn.Module, example: Tensor, message: str
) -> None:
    with pytest.raises(CaptureError, match="the model does not run on its example inputs") as found:
        capture_model(model, example)
    assert found.match(message)
    assert "decisions on tensor values" not in str(found.value)


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.LazyLinear(4)),
            torch.ones(2, 4),
            r"weight '1\.weight' has no numbers yet: a lazy module .* is split$",
        ),
        (
            nn.Linear(4, 4, device="meta"),
            torch.ones(2, 4),
            "weight 'weight' lies on device 'meta', where it has no numbers; build the model",
        ),
        (
            nn.Linear(4, 4),
            torch.ones(2, 4, device="meta"),
            "example input 0 lies on device 'meta'",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_weights_and_inputs_without_numbers(
    model: nn.Module, example: Tensor, message: str
) -> None:
    with pytest.raises(CaptureError, match=message):
        capture_model(model, example)


@pytest.mark.parametrize(
    ("end", "is_about_values"),
    [
        (lambda _model, y: y * 2 if y.sum() > 0 else y, True),
        (lambda _model, y: torch.from_numpy(y.numpy()), False),
        (lambda _model, y: y * (y.data_ptr() % 2), False),
    ],
)
def test_advice_about_values_only_where_they_are_the_cause(
    end: Callable[[Any, Tensor], Any], is_about_values: bool
) -> None:
    with pytest.raises(CaptureError, match="the model") as found:
        capture_model(Ends(end), torch.ones(2, 4))
    assert ("depends on the values of its input" in str(found.value)) is is_about_values
    assert ("The model itself runs on its example" in str(found.value)) is not is_about_values


@pytest.mark.parametrize(
    "end",
    [
        lambda model, y: y * torch.full((4,), model.numbers[0]),
        lambda model, y: y * model.numbers.tolist()[1],
        lambda model, y: y * model.layer.bias[0].item(),
        lambda model, y: y + model.numbers.max().item() * 2,
    ],
)
def test_a_number_out_of_a_constant_is_taken(end: Callable[[Any, Tensor], Any]) -> None:
    model = Ends(end).eval()
    captured = capture_model(model, torch.ones(2, 4))
    rows = torch.randn(3, 4)
    with torch.no_grad():
        (found,) = build_piece(captured, 0, len(captured.graph.operations))(rows)
        assert torch.equal(found, model(rows))


class Grid(nn.Module):
    """Makes a grid anew where the whole shape changes, though it depends on the width alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.shape: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.layer(x))
        if self.shape != y.shape:
            self.grid, self.shape = torch.arange(y.shape[-1]).type_as(y), y.shape
        return y * self.grid


def test_what_an_earlier_call_left_in_the_model_is_no_obstacle() -> None:
    cold, warm = Grid().eval(), Grid().eval()
    with torch.no_grad():
        warm(torch.ones(2, 4))
    names = [
        [operation.name for operation in capture_model(model, torch.ones(2, 4)).graph.operations]
        for model in (cold, warm)
    ]
    assert names[0] == names[1]
    assert cold.shape is None
    assert warm.shape == (2, 4)


@pytest.mark.parametrize(
    ("text", "most", "expected"),
    [
        ("One. Two. Three", 40, "One. Two. Three"),
        ("One. Two. Three", 12, "One. Two."),
        ("One two three", 9, "One two ..."),
        ("Onetwothree", 6, "Onetwo ..."),
        ("One. Two.", 4, "One."),
    ],
)
def test_no_text_ends_within_a_word(text: str, most: int, expected: str) -> None:
    assert shortened(text, most) == expected
