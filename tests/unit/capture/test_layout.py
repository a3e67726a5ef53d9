from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cutset.capture.layout import lay_out, layout_of

BASE = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
VIEWS = {
    "permuted": BASE.permute(0, 2, 3, 1),
    "channels_last": BASE.contiguous(memory_format=torch.channels_last),
    "vectors_channels_last": torch.arange(16.0).as_strided((2, 8, 1, 1), (8, 1, 8, 8)),
    "one_of_a_dimension": BASE[:, 0],
    "part_of_a_dimension": BASE[:, :, 1:3],
    "every_second": BASE[..., ::2],
    "every_second_of_two": BASE[:, :, ::2, ::2],
    "permuted_part": BASE.permute(0, 2, 3, 1)[:, :, 1:4],
    "first_of_the_fastest": BASE[..., 0],
    "rows_inside": BASE.transpose(0, 1),
}


def _restored(view: Tensor) -> Tensor:
    layout = layout_of(view)
    assert layout is not None
    graph = torch.fx.Graph()
    packed = graph.placeholder("packed")
    graph.output(lay_out(graph, packed, layout, tuple(view.shape)))
    module = torch.fx.GraphModule({}, graph)
    result: Tensor = module(view.clone(memory_format=torch.contiguous_format))
    return result


@pytest.mark.parametrize("name", VIEWS)
def test_numbers_and_strides_come_back(name: str) -> None:
    restored = _restored(VIEWS[name])
    assert torch.equal(restored, VIEWS[name])
    assert restored.stride() == VIEWS[name].stride()


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(BASE, id="packed"),
        pytest.param(torch.tensor(1.0), id="a_number"),
        pytest.param(torch.ones(2, 1, 4).expand(2, 3, 4), id="expanded"),
        pytest.param(torch.ones(0, 3).t(), id="empty"),
        pytest.param(torch.ones(40).as_strided((3, 4), (7, 2)), id="uneven_gaps"),
    ],
)
def test_nothing_to_do_or_nothing_that_padding_describes(tensor: Tensor) -> None:
    assert layout_of(tensor) is None
