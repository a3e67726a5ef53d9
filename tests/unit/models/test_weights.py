"""Files of weights: what is read, what is refused, what does not fit."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cutset.errors import ModelError, WeightsMismatch
from cutset.models.request import WeightsFile
from cutset.models.weights import load_weights_file, read_state_dict


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _request(path: Path, *, by_order: bool = False) -> WeightsFile:
    return WeightsFile(path=path, by_order=by_order)


def _saved(content: Any, path: Path, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def _equal(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}},
    ],
    ids=["plain", "state_dict", "model", "wrapped", "nested-wrapped"],
)
def test_pickled_files(tmp_path: Path, wrap: Any, zipped: bool) -> None:
    source, target = _model(), _model()
    assert not _equal(source, target)
    path = _saved(wrap(source.state_dict()), tmp_path / "w.pth", zipped=zipped)
    words = load_weights_file(target, _request(path))
    assert _equal(source, target)
    assert words == f"file w.pth, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_safetensors(tmp_path: Path) -> None:
    source, target = _model(), _model()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights_file(target, _request(tmp_path / "w.safetensors"))
    assert _equal(source, target)


def test_by_order_only_when_asked(tmp_path: Path) -> None:
    source, target = _model(), _model()
    renamed = OrderedDict((f"_n{i}", t) for i, t in enumerate(source.state_dict().values()))
    path = _saved(renamed, tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch) as caught:
        load_weights_file(target, _request(path))
    assert len(caught.value.missing) == 8  # num_batches_tracked may always be missing
    assert caught.value.unexpected == tuple(f"_n{i}" for i in range(9))
    words = load_weights_file(target, _request(path, by_order=True))
    assert words.endswith(", matched by order")
    assert _equal(source, target)


def test_by_order_needs_every_shape_to_agree(tmp_path: Path) -> None:
    target = _model()
    before = {name: t.clone() for name, t in target.state_dict().items()}
    entries = list(target.state_dict().items())
    entries[0], entries[1] = entries[1], entries[0]
    path = _saved(dict(entries), tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch, match="matched by order: 2 of another shape") as caught:
        load_weights_file(target, _request(path, by_order=True))
    assert caught.value.misshaped == (
        "0.weight expects [4, 3], found 0.bias [4]",
        "0.bias expects [4], found 0.weight [4, 3]",
    )
    path = _saved(dict(list(target.state_dict().items())[:-1]), tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch) as caught:
        load_weights_file(target, _request(path, by_order=True))
    assert caught.value.missing == ("2.bias",)
    assert all(torch.equal(before[name], t) for name, t in target.state_dict().items())


def test_weights_for_another_model(tmp_path: Path) -> None:
    target = _model()
    state = target.state_dict()
    state["2.weight"] = torch.zeros(5, 4)
    state["extra"] = torch.zeros(1)
    del state["1.running_var"]
    path = _saved(dict(state), tmp_path / "w.pth")
    with pytest.raises(WeightsMismatch) as caught:
        load_weights_file(target, _request(path))
    assert caught.value.path == str(path)
    assert caught.value.missing == ("1.running_var",)
    assert caught.value.unexpected == ("extra",)
    assert caught.value.misshaped == ("2.weight expects [2, 4], found [5, 4]",)
    assert (
        "is for another model: 1 missing (1.running_var), 1 unexpected (extra), "
        "1 of another shape (2.weight expects [2, 4], found [5, 4])"
    ) in str(caught.value)


class _Trap:
    """Runs code when it is unpickled in full."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    content = {"w": torch.zeros(1), "trap": _Trap(tmp_path / "sprung")}
    path = _saved(content, tmp_path / "w.pth", zipped=zipped)
    with pytest.raises(ModelError, match="holds more than tensors"):
        read_state_dict(path)
    assert not (tmp_path / "sprung").exists()


def test_whole_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Save model\.state_dict\(\) instead of the model"):
        read_state_dict(_saved(_model(), tmp_path / "w.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello world", bytes(64)])
def test_damaged_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights file .*w\.") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"a": 1}, {1: torch.zeros(1)}])
def test_something_else_in_a_file(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ModelError, match="expected named tensors"):
        read_state_dict(_saved(content, tmp_path / "w.pth"))
