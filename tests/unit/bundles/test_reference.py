from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from checked_here import check_here
from cutset.bundles.open import open_bundle
from cutset.bundles.reference import (
    as_sent,
    encode_reference,
    read_reference,
    reference_rows,
    with_rows,
)
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.capture.torch_export import capture_model
from cutset.dtypes import NUMPY_DTYPES
from cutset.tensors import TensorSpec
from distributed.bundles import write_bundle

X = TensorSpec(name="x", shape=("batch", 3, 2, 2), dtype="float32")
Y = TensorSpec(name="y", shape=("batch*2", 3), dtype="float32")


def _read(
    path: Path, content: bytes | dict[str, Tensor]
) -> tuple[dict[int, dict[str, Tensor]], str]:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file(content, path)
    found, faults = read_reference(path, (X, Y), (X,))
    return {n: {k: as_tensor(a) for k, a in g.items()} for n, g in found.items()}, "; ".join(faults)


def test_strides_and_other_numbers_of_rows_come_back(tmp_path: Path) -> None:
    x = torch.arange(24.0).reshape(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    y = torch.arange(12.0).reshape(3, 4).t()
    content = encode_reference(
        {2: {"x": as_array(x), "y": as_array(y)}, 1: {"y": as_array(torch.ones(2, 3))}}
    )
    found, faults = _read(tmp_path / "r", content)
    assert faults == ""
    assert list(found) == [2, 1]
    assert torch.equal(found[2]["x"], x)
    assert found[2]["x"].stride() == (12, 1, 6, 3)
    assert found[2]["y"].stride() == (1, 4)
    assert torch.equal(found[1]["x"], x[:1])
    assert found[1]["y"].stride() == (3, 1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rows-1/y": torch.ones(3, 3)}, "'y' is float32[3, 3], expected float32[batch*2, 3]"),
        ({"rows-1/z": torch.ones(1)}, "'rows-1/z' in excess"),
        ({"rows-1/x": torch.ones(1, 3, 2, 2)}, "lacks 'y' with 1 rows"),
        ({"rows-999999999/y": torch.ones(1, 3)}, "with 999999999 rows"),
        ({"rows-0/y": torch.ones(0, 3)}, "'rows-0/y' in excess"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, Tensor], fault: str) -> None:
    good = {"x": torch.ones(2, 3, 2, 2), "y": torch.ones(4, 3)}
    found, faults = _read(tmp_path / "r", good | change)
    assert fault in faults
    assert found == {}


@pytest.mark.parametrize("strides", ["[1, 1]", "[-1, 4]", "[3]", "[9, 1]", '"x"', "[true, 1]"])
def test_strides_that_fill_no_memory_are_not_followed(tmp_path: Path, strides: str) -> None:
    x, y = torch.ones(2, 3, 2, 2), torch.arange(12.0).reshape(4, 3)
    save_file({"x": x, "y": y}, tmp_path / "r", metadata={"strides": f'{{"y": {strides}}}'})
    found, faults = read_reference(tmp_path / "r", (X, Y), (X,))
    assert not faults
    assert found[2]["y"].strides == (12, 4)
    assert np.array_equal(found[2]["y"], y.numpy())


def test_numbers_of_rows() -> None:
    assert reference_rows((X, Y), 1, None) == [2, 1]
    assert reference_rows((X, Y), 8, None) == [2, 1, 8]
    assert reference_rows((X, Y), 8, 5) == [5]
    large = TensorSpec(name="l", shape=("batch", 1 << 24), dtype="float32")
    assert reference_rows((large,), 1000, None) == [2, 1, 4]


def test_rows_are_repeated_or_cut_off() -> None:
    rows = np.arange(12.0).reshape(4, 3)
    assert with_rows(rows, Y, 1).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert with_rows(rows, Y, 3)[:, 0].tolist() == [0, 3, 6, 9, 0, 3]


def test_a_link_sends_no_gaps_and_keeps_the_order() -> None:
    base = np.arange(48, dtype=np.uint8).reshape(2, 4, 6)
    there = base.transpose(0, 2, 1)
    assert as_sent(there) is there
    for gaps, strides in (
        (base[:, :, ::2].transpose(0, 2, 1), (12, 1, 3)),
        (base[:, ::-1], (24, 6, 1)),
        (np.broadcast_to(base[:, :1], base.shape), (24, 1, 4)),
    ):
        sent = as_sent(gaps)
        assert sent.strides == strides
        assert np.array_equal(sent, gaps)
        assert sent.ctypes.data % 64 == 0
    for dense in (np.zeros((0, 3)), np.zeros(()), base[:1, :1].transpose(1, 0, 2)):
        assert as_sent(dense) is dense


@pytest.mark.parametrize("name", [n for n in NUMPY_DTYPES if n != "complex128"])
def test_every_dtype_comes_back_where_kernels_like_it(tmp_path: Path, name: str) -> None:
    spec = TensorSpec(name="t", shape=("batch", 5), dtype=name)
    array = np.arange(10).astype(NUMPY_DTYPES[name]).reshape(5, 2).T
    (tmp_path / "r").write_bytes(encode_reference({2: {"t": array}}))
    found, faults = read_reference(tmp_path / "r", (spec,), (spec,))
    assert faults == ()
    back = found[2]["t"]
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    assert back.strides == array.strides
    assert back.ctypes.data % 64 == 0


class Maps(nn.Module):
    """Tokens become maps: row-major with one row, channels last with two."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.tokens(x).permute(0, 2, 1).reshape(x.shape[0], -1, 8, 8)
        return functional.interpolate(maps, size=(16, 16), mode="bilinear")


class ChannelsLast(nn.Module):
    """Maps in the order that is written down, whatever the number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


class Token(nn.Module):
    """The first token of a sequence, which has gaps between its rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


@pytest.mark.parametrize(
    ("first", "second", "shape"),
    [
        (Maps(), nn.Sequential(nn.Conv2d(64, 96, 1), nn.ReLU(), nn.Conv2d(96, 7, 3)), (64, 64)),
        (nn.Sequential(nn.Conv2d(3, 32, 3), ChannelsLast()), nn.Conv2d(32, 7, 3), (3, 9, 9)),
        (nn.Sequential(nn.Linear(64, 64), Token()), nn.Linear(64, 30), (5, 64)),
    ],
    ids=["maps", "channels_last", "token"],
)
def test_every_bit_at_every_number_of_rows_of_a_bundle(
    tmp_path: Path, first: nn.Module, second: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(first, nn.ReLU(), second).eval()
    rows = torch.randn(2, *shape)
    graph = capture_model(model, rows).graph
    relu = next(i for i, op in enumerate(graph.operations) if op.modules[-1].path == "1")
    bundle = write_bundle(model, (rows,), (relu + 1,), tmp_path / "b.cutset", micro_batch=5)
    report = check_here(bundle, model=model, backends=())
    assert report.ok, report.checks
    assert {d.num_rows for d in report.comparisons} == {1, 2, 5}
    assert "with 1, 2 and 5 rows" in report.check("numerics").detail
    alone = check_here(open_bundle(bundle, stages=(1,)), backends=())
    assert alone.ok, alone.checks
