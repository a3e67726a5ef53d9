"""Photographs and names for a model that says nothing of images: a file of one's own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

import cutset as library

from .conftest import Cutset

MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 22 * 30, 3)), (
        torch.randn(2, 3, 24, 32),)
"""
IMAGES = """
resize = [24, 32]
crop = [24, 32]
interpolation = "bilinear"
mean = [0.5, 0.25, 0.125]
std = [0.5, 0.25, 2.0]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    (folder / "net.py").write_text(MODEL)
    (folder / "images.toml").write_text(IMAGES)
    (folder / "names.txt").write_text("fox\nsea lion\nheron\n")
    pixels = np.random.default_rng(3).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder


@pytest.fixture(scope="module")
def bundle(cutset: Cutset, folder: Path) -> Path:
    outcome = cutset(
        "split", f"{folder / 'net.py'}:make", "--stages", 2, "--cost", "flops", "-o",
        folder / "net.cutset", "--preprocess", folder / "images.toml", "--labels",
        folder / "names.txt",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    return folder / "net.cutset"


def _by_torch(folder: Path) -> torch.Tensor:
    namespace: dict = {}
    exec(MODEL, namespace)
    model: nn.Module = namespace["make"]()[0].eval()
    transform = transforms.Compose(
        [
            transforms.Resize([24, 32]),
            transforms.ToTensor(),
            transforms.Normalize([0.5, 0.25, 0.125], [0.5, 0.25, 2.0]),
        ]
    )
    with torch.no_grad():
        return model(transform(Image.open(folder / "photo.png"))[None])


def test_the_answer_is_that_of_the_callers_own_transform(
    cutset: Cutset, folder: Path, bundle: Path
) -> None:
    outcome = cutset("run", bundle, folder / "photo.png", "--json", "--backend", "torch")
    assert outcome.code == 0, outcome.err
    scores = _by_torch(folder)
    (row,) = outcome.document["rows"]
    order = [("fox", "sea lion", "heron")[i] for i in scores[0].argsort(descending=True)]
    assert [each["label"] for each in row["top"]] == order
    with library.open_session(bundle, backend="torch") as session:
        preprocessing = session.bundle.manifest.preprocessing
        rows = library.read_image(folder / "photo.png", preprocessing)[None]
        assert torch.equal(session.run(torch.from_numpy(rows)), scores)


def test_a_bundle_is_told_other_names_without_splitting_anew(
    cutset: Cutset, folder: Path, bundle: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.json"
    names.write_text('["rot", "grün", "blau"]', encoding="utf-8")
    before = {
        file: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in bundle.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    }
    outcome = cutset("bundle", "set", bundle, "--labels", names)
    assert outcome.code == 0, outcome.err
    for file, digest in before.items():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == digest
    manifest = library.open_bundle(bundle).manifest
    assert manifest.labels == ("rot", "grün", "blau")
    assert manifest.preprocessing is not None
    verified = cutset("verify", bundle)
    assert verified.code == 0, verified.err


def test_what_does_not_fit_is_refused_before_anything_is_written(
    cutset: Cutset, folder: Path, bundle: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    before = (bundle / "manifest.json").read_bytes()
    for options, words in (
        (("--labels", few), "2 labels for the output"),
        (("--preprocess", "torchvision:resnet18"), "float32[3, 224, 224], but the model takes"),
        (("--preprocess", folder / "net.py"), "does not say how an image becomes a row"),
        ((), "say what to set: --preprocess SOURCE, --labels SOURCE or both"),
    ):
        outcome = cutset("bundle", "set", bundle, *options)
        assert outcome.code != 0
        assert words in " ".join(outcome.err.split()).replace("│ ", "")
        split = ("split", f"{folder / 'net.py'}:make", "--stages", 2, "--cost", "flops")
        if options:
            outcome = cutset(*split, "-o", tmp_path / "b", *options)
            assert outcome.code != 0
            assert words in outcome.err
            assert not (tmp_path / "b").exists()
    assert (bundle / "manifest.json").read_bytes() == before
    assert cutset("bundle", "set", tmp_path, "--labels", few).code == 4
    part = cutset(*split, "-o", tmp_path / "b", "--labels", few, "--part", "0")
    assert "--labels name what a whole model answers" in " ".join(part.err.split())
