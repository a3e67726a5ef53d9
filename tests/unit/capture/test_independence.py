from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cutset.capture.independence import check_micro_batch, check_rows
from cutset.capture.torch_export import capture_model
from cutset.errors import CaptureError


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
    check_rows(capture_model(model, rows))


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


def _minus_maximum(x: Tensor) -> Tensor:
    return x - x.max(0).values


def _sorted(x: Tensor) -> Tensor:
    return x.sort(0).values


def _plus_first(x: Tensor) -> Tensor:
    return x + x[:1]


class Applied(nn.Module):
    """A layer, and a function of what it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.relu(self.layer(x)))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.cumsum(0), "the rows beside it"),
        (lambda x: x.cummax(0).values, "the rows beside it"),
        (_minus_maximum, "the rows beside it"),
        (_sorted, "the rows beside it"),
        (_plus_first, "the rows beside it"),
        (lambda x: x + x.topk(1, 0).values, "the rows beside it"),
        (lambda x: x + torch.arange(x.shape[0])[:, None], "its place among the rows"),
        (lambda x: x * (1 + 1e-4 * torch.arange(x.shape[0])[:, None]), "its place among the rows"),
        (lambda x: x * (1 - 2 * (torch.arange(x.shape[0])[:, None] % 2)), "its place among"),
    ],
)
def test_no_row_may_depend_on_others_or_on_its_place(
    function: Callable[[Tensor], Tensor], words: str
) -> None:
    with pytest.raises(CaptureError, match=f"a row's result depends on {words}"):
        _check(Applied(function), torch.randn(2, 6).abs())


class OfTokens(nn.Module):
    """Looks tokens up; a row's place changes what comes out by a little."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.table, self.last, self.by = nn.Embedding(9, 6), nn.Linear(6, 3), by

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.last(self.table(tokens))
        return x * (1 + self.by * torch.arange(tokens.shape[0])[:, None, None])


def test_tokens_have_no_last_bits_and_rounding_by_place_passes() -> None:
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    _check(OfTokens(3e-5), tokens)  # what kernels may do
    with pytest.raises(CaptureError, match="depends on its place among the rows"):
        _check(OfTokens(1e-3), tokens)


def _logistic(x: Tensor) -> Tensor:
    """A map that doubles a difference with every step: 40 of them make everything of last bits."""
    x = torch.sigmoid(x)
    for _ in range(40):
        x = 4 * x * (1 - x)
    return x


def test_a_model_that_magnifies_last_bits_to_everything_is_not_blamed_for_its_rounding() -> None:
    def of_places(x: Tensor) -> Tensor:
        # What the two loops of one kernel may do to rows in different places.
        return _logistic(x * (1 + 2e-6 * torch.arange(x.shape[0])[:, None]))

    torch.manual_seed(1)
    example = torch.randn(2, 6)
    model = Applied(of_places).eval()
    off_by = (model(example).flip(0) - model(example.flip(0))).abs().max()
    assert off_by > 0.05
    _check(model, example)


def test_taking_a_number_of_each_row_by_its_index_passes() -> None:
    _check(Applied(lambda x: x[torch.arange(x.shape[0]), x.argmax(1)]), torch.randn(2, 6))


class Body(nn.Module):
    """Two layers, with something between them that a test brings along."""

    def __init__(self, between: Callable[[Body, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, torch.relu(self.first(x))))


def _if_several(body: Body, x: Tensor) -> Tensor:
    if x.size(0) > 1:
        x = body.norm(x)
    return x


def _if_single(_body: Body, x: Tensor) -> Tensor:
    return x * 2 if x.shape[0] == 1 else x


def _if_many_numbers(body: Body, x: Tensor) -> Tensor:
    if x.numel() > 6:
        x = body.norm(x)
    return x


def _padded(_body: Body, x: Tensor) -> Tensor:
    num_rows = x.shape[0]
    if num_rows == 1:
        x = torch.cat([x, torch.zeros_like(x)])
        x = x + x.mean(0, keepdim=True)
    return x[:num_rows]


def _squeezed_and_back(_body: Body, x: Tensor) -> Tensor:
    x = x.squeeze()
    return x if x.dim() == 2 else x.unsqueeze(0)


def _by_their_number(_body: Body, x: Tensor) -> Tensor:
    return x * (1 + 0.001 * x.shape[0])


def _by_whole_number(_body: Body, x: Tensor) -> Tensor:
    return x * x.shape[0]


def _not_alone(_body: Body, x: Tensor) -> Tensor:
    if len(x.unbind(1)[0].shape) and x.shape[0] == 1:
        raise ValueError("more than one row wanted")
    return x


@pytest.mark.parametrize(
    ("between", "line", "words"),
    [
        (_if_several, 1, "another way with 1 row than with 2 rows"),
        (_if_single, 1, "mul|another way with 1 row"),
        (_if_many_numbers, 1, "another way with 1 row than with 2 rows"),
        (_padded, 2, "another way with 1 row than with 2 rows"),
        (_squeezed_and_back, 1, r"squeeze gives the shape \[6\] with 1 row.*squeeze\(1\)"),
        (_by_their_number, 1, "mul is given 1.001 with 1 row and 1.002 with 2 rows"),
        (_by_whole_number, 1, "mul is given 1 with 1 row and 2 with 2 rows"),
        (_not_alone, 2, "with 1 row it fails: ValueError: more than one row wanted"),
    ],
)
def test_the_line_that_treats_a_number_of_rows_otherwise_is_named(
    between: Callable[[Body, Tensor], Tensor], line: int, words: str
) -> None:
    torch.manual_seed(0)
    with pytest.raises(CaptureError, match=words) as caught:
        _check(Body(between), torch.randn(2, 6))
    start = between.__code__.co_firstlineno
    assert caught.value.source == f"test_independence.py:{start + line}"


def _if_more_than_two(body: Body, x: Tensor) -> Tensor:
    if x.shape[0] > 2:
        x = body.norm(x)
    return x


def _if_even(body: Body, x: Tensor) -> Tensor:
    if x.shape[0] % 2 == 0:
        x = body.norm(x)
    return x


def _one_by_one(_body: Body, x: Tensor) -> Tensor:
    return torch.stack([row * 2 for row in x])


def _if_length(body: Body, x: Tensor) -> Tensor:
    if len(x) > 1:
        x = body.norm(x)
    return x


def _two_written_down(_body: Body, x: Tensor) -> Tensor:
    return x.view(2, 6)


@pytest.mark.parametrize(
    "between", [_if_more_than_two, _if_even, _one_by_one, _if_length, _two_written_down]
)
def test_the_line_that_torch_cannot_hold_for_any_number_is_named(
    between: Callable[[Body, Tensor], Tensor],
) -> None:
    with pytest.raises(CaptureError, match="--micro-batch-only N") as caught:
        _check(Body(between), torch.randn(2, 6))
    assert caught.value.source == f"test_independence.py:{between.__code__.co_firstlineno + 1}"


def _after_a_branch_without_a_trace(body: Body, x: Tensor) -> Tensor:
    if x.shape[0] > 1:
        pass
    scale = 1
    if len(x) > 1:
        scale = 2
    assert scale
    if x.size(0) > 1:  # this one
        x = body.norm(x)
    return x


def _after_the_same_on_both_sides(body: Body, x: Tensor) -> Tensor:
    x = x * 2 if x.shape[0] > 1 else 2 * x
    x = x + x if len(x) > 1 else 2 * x
    return body.norm(x) if len(x) > 1 else x  # this one


def _after_copies(body: Body, x: Tensor) -> Tensor:
    if x.shape[0] > 1:
        x = x.clone() + torch.zeros(6)
    x = x.contiguous() if len(x) == 1 else x
    if x.shape[0] > 1:  # this one
        x = x + torch.ones(6)
    return x


def _unchanged(x: Tensor) -> Tensor:
    if len(x) > 1:
        return x.reshape(len(x), -1)
    return x


def _normalised(body: Body, x: Tensor) -> Tensor:
    return x if len(x) < 2 else body.norm(x)  # this one, for _in_functions


def _in_functions(body: Body, x: Tensor) -> Tensor:
    return _normalised(body, _unchanged(x))


def _number_chosen(_body: Body, x: Tensor) -> Tensor:
    factor = 2.0 if len(x) > 1 else 3.0
    x = x.clone() if len(x) > 1 else x
    return x * factor  # this one


def _nested(body: Body, x: Tensor) -> Tensor:
    if len(x) > 1:
        x = x.clone()
        if len(x) > 4:  # this one
            x = body.norm(x)
    return x


@pytest.mark.parametrize(
    ("between", "where"),
    [
        (_after_a_branch_without_a_trace, _after_a_branch_without_a_trace),
        (_after_the_same_on_both_sides, _after_the_same_on_both_sides),
        (_after_copies, _after_copies),
        (_in_functions, _normalised),
        (_number_chosen, _number_chosen),
        (_nested, _nested),
    ],
)
def test_branches_that_do_no_harm_are_not_blamed(
    between: Callable[[Body, Tensor], Tensor], where: Callable[..., Tensor]
) -> None:
    torch.manual_seed(0)
    with pytest.raises(CaptureError, match="a row otherwise by how many there are") as caught:
        _check(Body(between), torch.randn(2, 6))
    lines, start = inspect.getsourcelines(where)
    line = next(start + index for index, text in enumerate(lines) if "# this one" in text)
    assert caught.value.source == f"test_independence.py:{line}"


def _copied_if_many(_body: Body, x: Tensor) -> Tensor:
    return x.clone() if len(x) > 4 else x


def test_a_harmless_branch_that_torch_cannot_hold_is_not_said_to_change_a_row() -> None:
    with pytest.raises(CaptureError, match=r"goes another way .* what comes out was the same") as e:
        _check(Body(_copied_if_many), torch.randn(2, 6))
    line = _copied_if_many.__code__.co_firstlineno + 1
    assert e.value.source == f"test_independence.py:{line}"


def test_what_squeezes_the_rows_away_at_the_end_is_refused() -> None:
    class Score(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(x)).squeeze()

    with pytest.raises(CaptureError, match=r"returns a result of shape \[\].*flatten\(1\)"):
        _check(Score(), torch.randn(2, 6))


def _unseen_if_seven(_body: Body, x: Tensor) -> Tensor:
    return x if torch.compiler.is_exporting() or len(x) != 7 else x * 2


def test_a_micro_batch_s_own_number_of_rows_is_tried() -> None:
    torch.manual_seed(0)
    model = Body(_unseen_if_seven).eval()
    captured = capture_model(model, torch.randn(2, 6))
    check_rows(captured)
    for num_rows in (1, 2, 3, 5, 6, 8):
        check_micro_batch(captured, num_rows)
    with pytest.raises(
        CaptureError, match=r"between 1 row and 7 rows.*--micro-batch-only"
    ) as caught:
        check_micro_batch(captured, 7)
    line = _unseen_if_seven.__code__.co_firstlineno + 1
    assert caught.value.source == f"test_independence.py:{line}"


def _honest_ways() -> list[Callable[[Body, Tensor], Tensor]]:
    return [
        lambda _, x: x.view(x.size(0), -1),
        lambda body, x: x + body.norm.weight.expand(x.shape[0], -1),
        lambda _, x: x.reshape(x.shape[0] if x.shape[0] > 1 else 1, -1),
        lambda _, x: torch.cat([x, torch.zeros(x.shape[0], 2)], 1)[:, :6],
    ]


@pytest.mark.parametrize("between", _honest_ways())
def test_what_reads_the_number_of_rows_and_computes_the_same_is_taken(
    between: Callable[[Body, Tensor], Tensor],
) -> None:
    torch.manual_seed(0)
    _check(Body(between), torch.randn(2, 6))


class KeepsHidden(nn.Module):
    """The hidden state is a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None
        self.gru = nn.GRU(12, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        result, self.hidden = self.gru(x, self.hidden)
        return result


class CountsInPython(nn.Module):
    """A plain number grows with every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.last(x) * self.calls


@pytest.mark.parametrize(
    ("model", "name"), [(KeepsHidden(), "hidden"), (CountsInPython(), "calls")]
)
def test_a_model_that_remembers_is_called_so(model: nn.Module, name: str) -> None:
    torch.manual_seed(0)
    words = rf"the model remembers \(in its '{name}'\): the same rows twice give two answers"
    with pytest.raises(CaptureError, match=words):
        _check(model, torch.randn(2, 5, 12))
