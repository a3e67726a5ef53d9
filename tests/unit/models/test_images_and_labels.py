"""Where the command line takes preprocessing and labels from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from cutset.data.images import Preprocessing
from cutset.errors import ModelError
from cutset.models import FoundModel
from cutset.models.images_and_labels import described, read_labels, read_preprocessing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEXT = """
resize = 40
crop = [32, 32]
interpolation = "bilinear"
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_preprocessing_from_a_file(folder: Path) -> None:
    Path("images.toml").write_text(TEXT)
    assert read_preprocessing("images.toml") == Preprocessing(
        resize=40,
        crop=(32, 32),
        interpolation="bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    Path("images.toml").write_text(TEXT.replace("resize = 40", "resize = [32, 48]"))
    assert read_preprocessing("images.toml").resize == (32, 48)


@pytest.mark.parametrize(
    "source", ["torchvision:ResNet18_Weights.IMAGENET1K_V1", "torchvision:resnet18"]
)
def test_preprocessing_and_labels_of_torchvisions_weights(source: str) -> None:
    expected = Preprocessing(
        resize=256, crop=(224, 224), interpolation="bilinear", mean=MEAN, std=STD
    )
    assert read_preprocessing(source) == expected
    labels = read_labels(source)
    assert (len(labels), labels[0], labels[-1]) == (1000, "tench", "toilet tissue")


@pytest.mark.parametrize("source", ["timm:resnet18", "timm:resnet18.tv_in1k"])
def test_preprocessing_and_labels_of_timms_weights(source: str) -> None:
    pytest.importorskip("timm")
    found = read_preprocessing(source)
    assert (found.crop, found.mean, found.std) == ((224, 224), MEAN, STD)
    assert len(read_labels(source)) == 1000


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("images.toml", "resize = 0\n" + TEXT[13:], "images.toml: resize 0 and crop (32, 32) are"),
        ("images.toml", TEXT.replace("std", "deviation"), "images.toml: Object contains unknown"),
        ("images.toml", TEXT[13:], "images.toml: Object missing required field `resize`; expected"),
        ("images.toml", "resize", "images.toml: "),
        ("images.toml", "\udc80", "images.toml: "),
        ("gone.toml", None, "gone.toml cannot be read: No such file or directory"),
        ("images.json", "{}", "'images.json' does not say how an image becomes a row; give FILE."),
        ("torchvision:resnet81", None, "torchvision has no weights or model 'resnet81'; did you"),
        ("torchvision:ResNet18_Weights.V9", None, "torchvision has no weights or model 'ResNet18"),
        ("torchvision:r3d_18", None, "torchvision:r3d_18: its images do not become rows by"),
        ("timm:resnet81", None, "timm has no weights of the name 'resnet81'; did you mean resnet"),
    ],
)
def test_what_is_no_preprocessing(
    folder: Path, source: str, content: str | None, words: str
) -> None:
    if content is not None:
        (folder / source).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ModelError, match=re.escape(words)):
        read_preprocessing(source)


def test_labels_from_files(folder: Path) -> None:
    Path("names.txt").write_text("﻿ cat\nsea lion \r\n\n\n", encoding="utf-8")
    assert read_labels("names.txt") == ("cat", "sea lion")
    Path("names.json").write_text(json.dumps(["cat", "Füchsin"]))
    assert read_labels("names.json") == ("cat", "Füchsin")


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("names.txt", b"cat\n\ndog\n", "names.txt, line 2 is empty; a name is expected in each"),
        ("names.txt", b"\xff\xfe", "names.txt: 'utf-8' codec can't decode"),
        ("names.json", b'{"0": "cat"}', "names.json: Expected `array`, got `object`; expected"),
        ("names.json", b"[1]", "names.json: Expected `str`, got `int`"),
        ("names.csv", b"cat", "'names.csv' does not name classes; give FILE.txt (a name a line)"),
        ("gone.txt", None, "gone.txt cannot be read: No such file"),
        ("torchvision:raft_small", None, "torchvision:raft_small names no classes"),
    ],
)
def test_what_is_no_labels(folder: Path, source: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (folder / source).write_bytes(content)
    with pytest.raises(ModelError, match=re.escape(words)):
        read_labels(source)


def test_a_file_of_any_size_is_not_read(folder: Path) -> None:
    with Path("names.txt").open("wb") as file:
        file.truncate((1 << 24) + 1)
    with pytest.raises(ModelError, match=r"names\.txt has more than 16 MiB"):
        read_labels("names.txt")


def test_what_is_not_given_stays() -> None:
    example = torch.zeros(2, 3, 8, 8)
    found = FoundModel(
        model=nn.Flatten(), name="m", weights="none", example_inputs=(example,), labels=("a",)
    )
    preprocessing = Preprocessing(
        resize=8, crop=(8, 8), interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1)
    )
    told = described(found, preprocessing=preprocessing)
    assert (told.preprocessing, told.labels, told.model) == (preprocessing, ("a",), found.model)
    told = described(told, labels=["b", "c"])
    assert (told.preprocessing, told.labels) == (preprocessing, ("b", "c"))
