"""In-place operations through another name of the same memory: right, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.pieces import build_piece
from cutset.capture.torch_export import capture_model
from cutset.errors import CaptureError

Change = Callable[[Tensor], Tensor]


class Changes(nn.Module):
    """A linear layer, and what is done to its result."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.first, self.change = nn.Linear(4, 4), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.first(x))


def through(alias: Change) -> Change:
    """Adds to `alias` of a tensor, and reads the tensor by its own name."""

    def change(hidden: Tensor) -> Tensor:
        alias(hidden).add_(1.0)
        return hidden * 2.0

    return change


@pytest.mark.parametrize(
    "alias",
    [
        lambda t: t.chunk(2, 1)[0],
        lambda t: t.split(3, 1)[1],
        lambda t: t.contiguous(),
        lambda t: t.reshape(-1, 2, 2),
        lambda t: t.to(torch.float32),
        lambda t: t.type_as(t),
        lambda t: t.expand_as(t),
        lambda t: nn.functional.dropout(t, 0.5, training=False),
        lambda t: t.sum_to_size(t.shape[0], 4),
    ],
)
@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_change_through_another_name_is_seen(alias: Change, num_rows: int) -> None:
    torch.manual_seed(0)
    model = Changes(through(alias)).eval()
    captured = capture_model(model, (torch.randn(2, 4),))
    piece = build_piece(captured, 0, len(captured.graph.operations))
    rows = torch.randn(num_rows, 4)
    with torch.no_grad():
        expected = model(rows.clone())
        assert torch.equal(piece(rows)[0], expected)
        assert torch.equal(piece(rows)[0], expected)


def test_who_read_a_tensor_before_it_changed_does_not_matter() -> None:
    def change(hidden: Tensor) -> Tensor:
        before = hidden * 2.0
        return torch.cat([before, nn.functional.dropout(hidden, 0.5, training=False).relu_()], 1)

    model = Changes(change).eval()
    captured = capture_model(model, (torch.randn(2, 4),))
    assert [each.base_name for each in captured.graph.operations] == [
        *("linear", "mul", "dropout", "relu", "cat")
    ]
    rows = torch.randn(3, 4)
    with torch.no_grad():
        expected = model(rows)
        assert torch.equal(build_piece(captured, 0, 5)(rows)[0], expected)


def test_what_an_earlier_change_gave_sees_a_later_one() -> None:
    def change(hidden: Tensor) -> Tensor:
        shifted = hidden.add_(0.5)  # another name of the same memory
        nn.functional.dropout(hidden, 0.5, training=False).relu_()
        return shifted * 2.0

    model = Changes(change).eval()
    rows = torch.randn(3, 4)
    captured = capture_model(model, (torch.randn(2, 4),))
    piece = build_piece(captured, 0, len(captured.graph.operations))
    with torch.no_grad():
        assert torch.equal(piece(rows)[0], model(rows))


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        (lambda t: torch.einsum("ij->ji", t), "einsum"),
        (lambda t: torch.unsafe_chunk(t, 2, 1)[0], "unsafe_chunk"),
        (lambda t: torch.broadcast_tensors(t, t)[0], "broadcast_tensors"),
    ],
)
def test_a_name_that_nothing_tells_of_is_refused(alias: Change, name: str) -> None:
    with pytest.raises(CaptureError, match=f"memory aten.{name}.default shares") as caught:
        capture_model(Changes(through(alias)).eval(), (torch.randn(2, 4),))
    assert "test_functionalise.py:" in str(caught.value)
