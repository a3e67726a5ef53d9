"""What a caller may write for the weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutset.errors import ModelError
from cutset.models.weights_request import (
    NamedWeights,
    RandomWeights,
    WeightsFile,
    near_names,
    parse_weights,
)


def test_names_and_seeds() -> None:
    assert parse_weights(None) is None
    assert parse_weights("DEFAULT") == NamedWeights(name="DEFAULT")
    assert parse_weights("a1.in1k") == NamedWeights(name="a1.in1k")
    assert parse_weights("random:17") == RandomWeights(seed=17)


@pytest.mark.parametrize("text", ["random", "random:", "random:-1", "random:x", f"random:{2**63}"])
def test_no_seed(text: str) -> None:
    with pytest.raises(ModelError, match="expected random:SEED with a whole number from 0"):
        parse_weights(text)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".safetensors"])
def test_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    with pytest.raises(ModelError, match=r"w\.\w+ does not exist; pass --weights FILE\.pth"):
        parse_weights(str(path))
    path.write_bytes(b"")
    assert parse_weights(str(path)) == WeightsFile(path=path, by_order=False)
    assert parse_weights(f"{path}:by-order") == WeightsFile(path=path, by_order=True)


def test_file_with_another_suffix(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"expected a name that ends in one of .*'\.onnx'"):
        parse_weights(str(tmp_path / "w.onnx"))


def test_near_names() -> None:
    assert near_names("Resnet5O", ["resnet50", "vgg16"]) == "; did you mean resnet50?"
    assert near_names("zzz", ["resnet50", "vgg16"]) == ""


def test_names_that_go_on_come_before_names_that_look_alike() -> None:
    known = ["davit_tiny", "vit_tiny_patch16_384", "vit_tiny_patch16_224", "gcvit_tiny"]
    assert near_names("vit_tiny", known) == (
        "; did you mean vit_tiny_patch16_224, vit_tiny_patch16_384, gcvit_tiny, davit_tiny?"
    )
