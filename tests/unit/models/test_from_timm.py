"""Models of timm."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config

from cutset.data.images import Preprocessing, read_image
from cutset.errors import ModelError, WeightsMismatch
from cutset.models import find_model


def test_random_weights() -> None:
    found = find_model("timm:tf_efficientnet_lite0", weights="random:0")
    assert found.name == "timm:tf_efficientnet_lite0"
    assert found.weights == "random, seed 0"
    assert found.example_inputs[0].shape == (2, 3, 224, 224)
    assert found.labels is None
    assert found.preprocessing == Preprocessing(
        resize=256,
        crop=(224, 224),
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    with torch.no_grad():
        out = found.model(*found.example_inputs)
    assert 0.1 < out.std() < 100


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "mobilevit_xxs", "mobilenetv4_conv_small"])
def test_rows_equal_those_of_timms_own_transform(tmp_path: Path, name: str) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (300, 411, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    found = find_model(f"timm:{name}", weights="random:0")
    assert found.preprocessing is not None
    transform = create_transform(**resolve_data_config({}, model=found.model))
    expected = transform(Image.fromarray(pixels))
    assert np.array_equal(read_image(tmp_path / "noise.png", found.preprocessing), expected.numpy())


def test_file_of_weights(tmp_path: Path) -> None:
    source = timm.create_model("mobilenetv3_small_050").eval()
    path = tmp_path / "w.pth"
    torch.save(source.state_dict(), path)
    found = find_model("timm:mobilenetv3_small_050", weights=str(path))
    assert found.weights.endswith(
        "; preprocessing and labels are assumed to be those of timm mobilenetv3_small_050.lamb_in1k"
    )
    assert found.labels is not None
    assert (len(found.labels), found.labels[967]) == (1000, "espresso")
    with torch.no_grad():
        assert torch.equal(found.model(*found.example_inputs), source(*found.example_inputs))
    with pytest.raises(WeightsMismatch):
        find_model("timm:mobilenetv3_small_075", weights=str(path))


def test_unknown_model_and_tag() -> None:
    with pytest.raises(ModelError, match="timm has no model 'resnet5o'; did you mean resnet50"):
        find_model("timm:resnet5o")
    with pytest.raises(ModelError, match="has no weights 'a4_in1k'; did you mean a3_in1k"):
        find_model("timm:resnet18", weights="a4_in1k")
    with pytest.raises(ModelError, match="has no weights 'nope'; it has "):
        find_model("timm:resnet18.nope", weights="random:0")


def test_model_without_any_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("timm.list_pretrained", lambda *_args: [])
    with pytest.raises(ModelError, match="timm:resnet18 has no weights; pass --weights"):
        find_model("timm:resnet18")


def test_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_args: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ModelError) as caught:
        find_model("timm:tf_efficientnet_lite0")
    assert str(caught.value) == (
        "timm:tf_efficientnet_lite0: its weights are not in the local cache and cannot be "
        "downloaded (huggingface.co: Name or service not known); "
        "pass --weights FILE.pth|FILE.safetensors|random:SEED"
    )


def test_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"not installed; pip install 'cutset\[timm\]'$"):
        find_model("timm:resnet18")
