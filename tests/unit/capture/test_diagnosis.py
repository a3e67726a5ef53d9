from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.torch_export import capture_graph
from cutset.errors import CaptureError


class Calls(nn.Module):
    """A layer, and then a function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))  # type: ignore[operator, no-any-return]


def _error(function: object, *shape: int) -> CaptureError:
    with pytest.raises(CaptureError) as caught:
        capture_graph(nn.Sequential(Calls(function)), torch.randn(*(shape or (2, 4))))
    return caught.value


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x[x > 0], "aten.index.Tensor"),
        (lambda x: x * x.nonzero().shape[0], "aten.nonzero.default"),
        (lambda x: x * x.max().item(), "aten.item.default"),
    ],
)
def test_shapes_and_numbers_that_depend_on_values(function: object, operation: str) -> None:
    error = _error(function)
    assert error.operation == operation
    assert error.module_path == "0"
    assert error.source is not None
    assert error.source.startswith("test_diagnosis.py:")
    assert "depends on the values" in str(error)


def test_random_numbers_cannot_be_verified() -> None:
    error = _error(lambda x: x + torch.rand_like(x))
    assert error.operation == "aten.rand_like.default"
    assert "draws random numbers" in str(error)


def test_what_is_random_in_training_alone_is_no_matter() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4), nn.Dropout(0.5), nn.RReLU(), nn.AlphaDropout(0.5), nn.Linear(4, 2)
    )
    graph = capture_graph(model, torch.randn(2, 4))
    assert [op.base_name for op in graph.operations if op.flops] == ["linear", "linear"]


def test_attention_without_dropout_is_not_random() -> None:
    def attend(x: Tensor) -> Tensor:
        rows = x[:, None, None]
        return nn.functional.scaled_dot_product_attention(rows, rows, rows).flatten(1)

    graph = capture_graph(Calls(attend), torch.randn(2, 4))
    assert "scaled_dot_product_attention" in {op.base_name for op in graph.operations}


def test_a_number_of_rows_that_is_written_down() -> None:
    error = _error(lambda x: x.view(3, 2, 2).flatten(1), 3, 4)
    assert "works for 3 rows only" in str(error)
    assert "x.shape[0]" in str(error)


# torch announces that TorchScript will go; people still hold models made with it.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_a_scripted_module_is_named() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.ReLU()))
    with pytest.raises(CaptureError, match="TorchScript modules cannot be captured") as caught:
        capture_graph(nn.Sequential(nn.Linear(4, 4), scripted), torch.randn(2, 4))
    assert caught.value.module_path == "1"


def test_a_result_that_is_no_tensor() -> None:
    assert "returns 3 among its results" in str(_error(lambda x: (x, 3)))


def test_none_among_the_results_holds_no_data() -> None:
    graph = capture_graph(Calls(lambda x: (None, x)), torch.randn(2, 4))
    assert graph.outputs == ("linear",)


def test_conditions_that_torch_cannot_prove_are_tried() -> None:
    def pairs(x: Tensor) -> Tensor:
        first, second = torch.chunk(torch.cat([x, x + 1.0]), 2)
        return first * second

    graph = capture_graph(Calls(pairs), torch.randn(2, 4))
    assert graph.spec_of(graph.outputs[0]).shape == ("batch", 4)


def test_conditions_that_do_not_hold_are_refused() -> None:
    def only_even(x: Tensor) -> Tensor:
        return x + 1.0 if x.shape[0] % 2 == 0 else x - 1.0

    message = str(_error(only_even))
    assert "holds for some numbers of rows only" in message
    assert "% 2" in message or "Mod" in message


def test_a_decision_on_values_is_named_and_torch_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def doubled_where_positive(x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x

    error = _error(doubled_where_positive)
    assert "bool() asks a tensor for its number, and that depends on the values" in str(error)
    assert error.source is not None
    assert error.source.startswith("test_diagnosis.py:")
    assert capfd.readouterr() == ("", "")


@dataclasses.dataclass
class Answer:
    """What torch has not been told of."""

    scores: Tensor


def test_a_result_of_a_class_that_torch_does_not_know() -> None:
    message = str(_error(lambda x: Answer(x)))
    assert "it returns an object of <class 'test_diagnosis.Answer'>" in message.replace(
        __name__, "test_diagnosis"
    )
    assert "torch.export.register_dataclass" in message
