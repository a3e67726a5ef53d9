"""In-place operations through another name of the same memory: right, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.independence import check_rows
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
        lambda t: t.unbind(1)[0],
        lambda t: t.unflatten(1, (2, 2)).unbind(1)[1].unbind(-1)[0],
        lambda t: t.data,
        lambda t: torch.view_as_complex(t.view(-1, 2, 2)),
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


def _set_data(h: Tensor) -> Tensor:
    other = h.clone()
    other.data = h * 2
    return other


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            through(lambda t: t.unfold(1, 2, 2)[:, 0]),
            r"changes a tensor in place \(test_functionalise\.py:\d+\), which .* example alone",
        ),
        (
            through(lambda t: t.unfold(1, 2, 1)[:, 0, 0]),
            r"changes a tensor in place \(.*\), which torch cannot rewrite without that: function",
        ),
        (
            through(lambda t: t.resize_(t.shape)[:, 0]),
            r"changes a tensor in place \(.*\), which torch cannot rewrite without that: ",
        ),
        (
            lambda h: torch.complex(h, h).conj().mul_(2).imag + h,
            "torch.export holds the number of rows .* no line of the model was seen to ask for it",
        ),
    ],
)
def test_a_change_that_torch_cannot_rewrite_is_refused_with_its_reason(
    change: Change, words: str
) -> None:
    with pytest.raises(CaptureError, match=words):
        capture_model(Changes(change).eval(), torch.randn(2, 4))


def test_what_the_capture_loses_is_refused() -> None:
    model = Changes(_set_data).eval()
    captured = capture_model(model, torch.randn(2, 4))
    with pytest.raises(
        CaptureError, match=r"made of the model is not the model: .* t\.data = other"
    ):
        check_rows(captured)


@pytest.mark.parametrize("change", [lambda x: x.unbind(1)[0].add_(1), lambda x: x[:, 0].zero_()])
def test_the_callers_rows_stay_as_they_are(change: Change) -> None:
    class ChangesItsInput(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            change(x)
            return torch.relu(x) * 2

    captured = capture_model(ChangesItsInput().eval(), torch.randn(2, 4))
    piece = build_piece(captured, 0, len(captured.graph.operations))
    rows = torch.randn(3, 4)
    eager, mine = rows.clone(), rows.clone()
    assert torch.equal(piece(mine)[0], ChangesItsInput()(eager))
    assert torch.equal(mine, rows)
    assert not torch.equal(eager, rows)
