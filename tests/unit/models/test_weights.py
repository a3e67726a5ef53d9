"""Files of weights: what is read, what is refused, what does not fit."""

from __future__ import annotations

import argparse
import hashlib
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cutset.errors import ModelError, WeightsMismatch
from cutset.models.checkpoint import read_checkpoint
from cutset.models.weights import load_weights_file
from cutset.models.weights_request import WeightsFile, parse_weights


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _request(path: Path, *, by_order: bool = False, keys: tuple[str, ...] = ()) -> WeightsFile:
    return WeightsFile(path=path, by_order=by_order, keys=keys)


def _saved(content: Any, path: Path, *, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def _equal(model: nn.Module, other: nn.Module) -> bool:
    pairs = zip(model.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def _trained() -> nn.Module:
    """A model whose statistics are no longer those of a new one."""
    model = _model()
    model(torch.randn(8, 3) + 1)
    return model.eval()


def _prefixed(prefix: str, state: Any) -> Any:
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


def _optimiser_state() -> Any:
    model = _model()
    optimiser = torch.optim.Adam(model.parameters())
    model(torch.randn(8, 3)).sum().backward()
    optimiser.step()
    return optimiser.state_dict()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("wrap", "remark"),
    [
        (lambda state: state, ""),
        (lambda state: {"state_dict": state, "epoch": 3}, "its 'state_dict'"),
        (lambda state: {"anything": state, "loss": torch.tensor(0.5)}, "its 'anything'"),
        (lambda state: {"run 7": {"net": state}, "args": ["a"]}, "its 'run 7:net'"),
        (
            lambda state: {"net": state, "optimizer": _optimiser_state()},
            "its 'net'",
        ),
        (lambda state: _prefixed("module.", state), "prefix 'module.' taken off every name"),
        (lambda state: _prefixed("_orig_mod.", state), "prefix '_orig_mod.' taken off every name"),
        (
            lambda state: {"state_dict": _prefixed("my.own.", state)},
            "its 'state_dict', prefix 'my.own.' taken off every name",
        ),
        (lambda state: _prefixed("0.", state), "prefix '0.' taken off every name"),
    ],
)
def test_pickled_files(
    tmp_path: Path, wrap: Any, remark: str, zipped: bool, caplog: pytest.LogCaptureFixture
) -> None:
    source, target = _trained(), _model()
    assert not _equal(source, target)
    path = _saved(wrap(source.state_dict()), tmp_path / "w.pth", zipped=zipped)
    words = load_weights_file(target, _request(path))
    assert _equal(source, target)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert words == f"file w.pth, sha256 {digest}{remark and ', '}{remark}"
    notes = [record.getMessage() for record in caplog.records]
    assert notes == ([f"weights file {path}: {remark}"] if remark else [])


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
        read_checkpoint(path)
    assert not (tmp_path / "sprung").exists()


def test_whole_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Save model\.state_dict\(\) instead of the model"):
        read_checkpoint(_saved(_model(), tmp_path / "w.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"hello world", bytes(64)])
def test_damaged_file(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights file .*w\.") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(46, b"\x80"), (6, b"\xff\0"), (20, b"\xff" * 4), (42, b"\xff" * 4)],
    ids=["a name that is no UTF-8", "a later version", "a size", "a place"],
)
def test_a_damaged_list_of_a_zip(tmp_path: Path, offset: int, value: bytes) -> None:
    path = _saved(_model().state_dict(), tmp_path / "w.pth")
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2")
    content[start + offset : start + offset + len(value)] = value
    path.write_bytes(bytes(content))
    with pytest.raises(ModelError, match=r"w\.pth"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"a": 1}, {1: torch.zeros(1)}])
def test_something_else_in_a_file(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ModelError, match="expected named tensors"):
        read_checkpoint(_saved(content, tmp_path / "w.pth"))


def test_a_prefix_that_is_the_models_own_stays(tmp_path: Path) -> None:
    source, target = nn.Sequential(_trained()), nn.Sequential(_model())
    words = load_weights_file(target, _request(_saved(source.state_dict(), tmp_path / "w.pth")))
    assert "prefix" not in words
    assert _equal(source, target)


def test_a_prefix_before_some_names_only_stays_an_error(tmp_path: Path) -> None:
    state = {**_prefixed("model.", _trained().state_dict()), "loss.weight": torch.ones(2)}
    with pytest.raises(WeightsMismatch) as caught:
        load_weights_file(_model(), _request(_saved(state, tmp_path / "w.pth")))
    assert "loss.weight" in caught.value.unexpected


def test_a_prefix_does_not_hide_another_shape(tmp_path: Path) -> None:
    state = _prefixed("module.", _trained().state_dict())
    state["module.2.bias"] = torch.ones(7)
    with pytest.raises(WeightsMismatch) as caught:
        load_weights_file(_model(), _request(_saved(state, tmp_path / "w.pth")))
    assert caught.value.misshaped == ("2.bias expects [2], found [7]",)
    assert caught.value.missing == caught.value.unexpected == ()


def test_the_only_set_that_fits_the_model_is_taken(tmp_path: Path) -> None:
    source, target = _trained(), _model()
    content = {"teacher": nn.Linear(9, 9).state_dict(), "student": source.state_dict()}
    words = load_weights_file(target, _request(_saved(content, tmp_path / "w.pth")))
    assert words.endswith(", its 'student'")
    assert _equal(source, target)


def test_several_sets_that_fit_are_a_choice(tmp_path: Path) -> None:
    source, target = _trained(), _model()
    content = {"model": _model().state_dict(), "ema": {"shadow": source.state_dict()}}
    path = _saved(content, tmp_path / "w.pth")
    with pytest.raises(ModelError) as caught:
        load_weights_file(target, _request(path))
    assert str(caught.value) == (
        f"weights file {path} holds several sets of named tensors: 'model' (9 tensors), "
        f"'ema:shadow' (9 tensors). Choose one: --weights {path}:model"
    )
    request = parse_weights(f"{path}:ema:shadow")
    assert request == WeightsFile(path=path, by_order=False, keys=("ema", "shadow"))
    words = load_weights_file(target, request)
    assert words.endswith(", its 'ema:shadow'")
    assert _equal(source, target)
    with pytest.raises(ModelError, match=r"no named tensors under 'ema'; it holds 'model' \(9"):
        load_weights_file(target, _request(path, keys=("ema",)))


def test_safetensors_with_a_prefix(tmp_path: Path) -> None:
    source, target = _trained(), _model()
    save_file(_prefixed("model.", source.state_dict()), tmp_path / "w.safetensors")
    words = load_weights_file(target, _request(tmp_path / "w.safetensors"))
    assert words.endswith(", prefix 'model.' taken off every name")
    assert _equal(source, target)


def test_half_precision_is_said(tmp_path: Path) -> None:
    source, target = _trained().half(), _model()
    words = load_weights_file(target, _request(_saved(source.state_dict(), tmp_path / "w.pth")))
    assert words.endswith(", float16 becomes float32")
    assert _equal(source.float(), target)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32])
def test_numbers_that_the_model_cannot_hold(tmp_path: Path, dtype: torch.dtype) -> None:
    target = _model().to(torch.float32)
    state = target.state_dict()
    name = "2.bias" if dtype.is_complex else "1.num_batches_tracked"
    state[name] = state[name].to(dtype)
    with pytest.raises(ModelError, match="which cannot hold such numbers"):
        load_weights_file(target, _request(_saved(state, tmp_path / "w.pth")))


def _write_torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that TorchScript grows old
        torch.jit.save(torch.jit.trace(_trained(), torch.randn(2, 3)), path)


def _write_program(path: Path) -> None:
    program = torch.export.export(_trained(), (torch.randn(2, 3),))
    torch.export.save(program, path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


def _write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")


def _write_half(path: Path) -> None:
    torch.save(_trained().state_dict(), path)
    path.write_bytes(path.read_bytes()[:1500])


def _write_namespace(path: Path) -> None:
    torch.save({"model": _trained().state_dict(), "args": argparse.Namespace(lr=1)}, path)


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (_write_torchscript, "is a TorchScript file: a program"),
        (_write_program, "is an exported program (torch.export.save)"),
        (_write_zip, "it is a zip archive, but none that torch.save wrote whole"),
        (_write_half, "it is damaged, or torch.save did not write it"),
        (_write_namespace, "holds more than tensors (argparse.Namespace)"),
        (lambda path: path.write_bytes(b""), "it is empty"),
        (
            lambda path: torch.save({"optimizer": _optimiser_state(), "epoch": 3}, path),
            "expected named tensors (a state dict) in it, found 'optimizer': dict, 'epoch': int",
        ),
        (lambda path: torch.save([torch.zeros(1)], path), "found list"),
        (lambda path: torch.save(None, path), "found NoneType"),
    ],
)
def test_files_that_are_something_else_are_called_by_their_name(
    tmp_path: Path, write: Any, what: str, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "w.pth"
    write(path)
    recwarn.clear()
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    assert what in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not recwarn.list
