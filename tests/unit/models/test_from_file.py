"""Models in the caller's own files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, export, save

from cutset.capture.torch_export import capture_graph
from cutset.errors import ModelError, WeightsMismatch
from cutset.models import find_model

SOURCE = """
import torch
from torch import nn
from cutset.data.images import Preprocessing
from cutset.models import FoundModel
from neighbour import WIDTH

class Net(nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 2)
        self.train()

    def forward(self, x):
        return self.head(self.norm(x))

ready = Net()

def plain():
    return Net()

def pair():
    return Net(), {"x": torch.full((2, 3), 7.0)}

def whole():
    preprocessing = Preprocessing(
        resize=1, crop=(1, 1), interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1))
    return FoundModel(model=Net(), name="?", weights="by hand", example_inputs=torch.zeros(2, 3),
                      preprocessing=preprocessing, labels=("yes", "no"))

def raises():
    raise ValueError("no weights here")

def needs(width):
    return Net(width)

def text():
    return "net"

def bad_inputs():
    return Net(), "inputs"

def no_tensors():
    return Net(), (1, 2)

def example_inputs():
    return (torch.zeros(2, 3),)
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "neighbour.py").write_text("WIDTH = 3\n")
    (tmp_path / "net.py").write_text(SOURCE)
    return tmp_path / "net.py"


@pytest.mark.parametrize("factory", ["plain", "Net", "ready"])
def test_module_with_inputs_of_the_file(source: Path, factory: str) -> None:
    found = find_model(f"{source}:{factory}")
    assert found.name == f"{source}:{factory}"
    assert found.weights == f"as {source}:{factory} made them"
    assert [tuple(tensor.shape) for tensor in found.example_inputs] == [(2, 3)]
    assert (found.preprocessing, found.labels) == (None, None)
    assert found.model.training is False


def test_pair(source: Path) -> None:
    found = find_model(f"{source}:pair")
    assert torch.equal(found.example_inputs["x"], torch.full((2, 3), 7.0))


def test_whole(source: Path) -> None:
    found = find_model(f"{source}:whole")
    assert found.name == f"{source}:whole"
    assert found.weights == "by hand"
    assert found.labels == ("yes", "no")
    assert found.preprocessing is not None


def test_weights_of_ones_own(source: Path, tmp_path: Path) -> None:
    state = find_model(f"{source}:plain").model.state_dict()
    torch.save(state, tmp_path / "w.pth")
    found = find_model(f"{source}:plain", weights=str(tmp_path / "w.pth"))
    assert torch.equal(found.model.head.weight, state["head.weight"])
    assert found.weights.startswith("file w.pth, sha256 ")
    torch.save({"other": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch):
        find_model(f"{source}:plain", weights=str(tmp_path / "w.pth"))


def test_random_weights_replace_the_factorys(source: Path) -> None:
    found = find_model(f"{source}:pair", weights="random:4")
    assert found.weights == "random, seed 4"
    assert not torch.equal(found.model.norm.weight, torch.ones(3))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("plane", "has no 'plane'; did you mean plain"),
        (
            "zzz",
            r"it offers Net, bad_inputs, .*, pair, plain, raises, \.\.\.$",
        ),
        ("raises", r"raises\(\) raised ValueError: no weights here"),
        ("needs", r"needs\(\) raised TypeError: .*called without arguments"),
        ("text", "gave str; expected a torch.nn.Module"),
        ("bad_inputs", "are str; expected a tensor, a sequence"),
        ("no_tensors", "with at least one tensor"),
        ("WIDTH", "gave int"),
    ],
)
def test_factory_that_gives_no_model(source: Path, factory: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        find_model(f"{source}:{factory}")
    assert "net.py" in str(caught.value)


def test_weights_by_name_are_unknown(source: Path) -> None:
    with pytest.raises(ModelError, match="has no weights called 'DEFAULT'; leave --weights out"):
        find_model(f"{source}:plain", weights="DEFAULT")


def test_files_that_cannot_be_used(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.py does not exist"):
        find_model(f"{tmp_path / 'gone.py'}:net")
    with pytest.raises(ModelError, match=r"net\.py names a file but nothing in it; write "):
        find_model(str(source))
    (tmp_path / "broken.py").write_text("def net(:\n")
    with pytest.raises(ModelError, match=r"broken\.py cannot be imported: SyntaxError"):
        find_model(f"{tmp_path / 'broken.py'}:net")
    (tmp_path / "bare.py").write_text("from torch.nn import Flatten\ndef net(): return Flatten()")
    with pytest.raises(ModelError, match=r"gave no example inputs; return a pair"):
        find_model(f"{tmp_path / 'bare.py'}:net")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


def _program(path: Path, *, rows: int = 2, **options: Any) -> Path:
    model = nn.Sequential(Block(), Block()).eval()
    save(export(model, (torch.zeros(rows, 3, 4, 4),), **options), path)
    return path


FREE = ({0: Dim("rows", min=1, max=64)},)


def test_program_keeps_its_architecture(tmp_path: Path) -> None:
    found = find_model(str(_program(tmp_path / "net.pt2", dynamic_shapes=FREE)))
    assert found.weights.startswith("held in net.pt2, sha256 ")
    graph = capture_graph(found.model, found.example_inputs)
    assert [operation.modules[-1].path for operation in graph.operations] == [
        "0.conv",
        "0",
        "1.conv",
        "1",
    ]
    blocks = {call.class_name for op in graph.operations for call in op.modules if call.path == "1"}
    assert len(blocks) == 1
    assert blocks.pop().endswith(".Block")
    with torch.no_grad():
        assert found.model(torch.zeros(64, 3, 4, 4)).shape == (64, 3, 4, 4)


def test_program_for_a_fixed_number_of_rows(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="was exported for 2 rows of 'input' only"):
        find_model(str(_program(tmp_path / "net.pt2")))


def test_program_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone\.pt2 does not exist"):
        find_model(str(tmp_path / "gone.pt2"))
    (tmp_path / "bad.pt2").write_bytes(b"PK")
    with pytest.raises(ModelError, match=r"bad\.pt2 is no program that torch\.export\.load can"):
        find_model(str(tmp_path / "bad.pt2"))
    with pytest.raises(ModelError, match="holds its own weights; leave --weights out"):
        find_model(str(tmp_path / "bad.pt2"), weights="random:0")
