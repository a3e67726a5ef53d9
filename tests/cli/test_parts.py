"""A part in the place of a model: taken only where it is named, and named wherever it is shown."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cutset.bundles.open import open_bundle

from .conftest import Cutset

SOURCE = '''
import torch
from torch import nn


class Scales(nn.Module):
    """Its part has the shapes of the whole, so that results look like the model's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
        )
        self.gain = nn.Linear(4, 4)

    def forward(self, x):
        y = self.body(x)
        if y.abs().max() > 0.05:
            y = y * 10
        return self.gain(y)


def make():
    return Scales(), (torch.randn(2, 8),)
'''
SHARE = (64 + 64 + 32) / (64 + 64 + 32 + 16)
WORDS = "only a part of the model: body, 90.9% of its work; the results are the part's"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("parts") / "scales.py"
    path.write_text(SOURCE)
    return f"{path}:make"


@pytest.fixture(scope="module")
def bundle(cutset: Cutset, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "scales.cutset"
    outcome = cutset(
        *("split", model, "--part", "body", "--stages", 2, "--cost", "flops", "-o", folder)
    )
    assert outcome.code == 0, outcome.err
    assert WORDS in outcome.out
    return folder


def test_without_a_name_no_part_is_taken(cutset: Cutset, model: str, tmp_path: Path) -> None:
    for command in ("inspect", "profile", "plan", "split"):
        more = {"plan": ("--stages", 2), "split": ("--stages", 2, "-o", tmp_path / "x.cutset")}
        outcome = cutset(command, model, *more.get(command, ()))
        assert outcome.code == 1
        assert "if you name it (--part body): body (90.9% of the work)." in outcome.err
    assert not list(tmp_path.iterdir())


def test_every_document_names_the_part_and_its_share(
    cutset: Cutset, model: str, bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", np.ones((2, 8), np.float32))
    named = (model, "--part", "body", "--json")
    wanted = ("--stages", 2, "--cost", "flops")
    documents = [
        cutset("inspect", *named).document,
        cutset("plan", *named, *wanted).document,
        cutset("plan", *named, *wanted, "--objective", "pareto").document["plans"][0],
        cutset("split", *named, *wanted, "-o", tmp_path / "x.cutset").document,
        cutset("verify", bundle, "--model", model, "--json").document,
        cutset("run", bundle, tmp_path / "rows.npy", "--backend", "onnxruntime", "--json").document,
        json.loads((bundle / "manifest.json").read_text()),
    ]
    for document in documents:
        assert document["part"]["path"] == "body"
        assert document["part"]["work_share"] == pytest.approx(SHARE)
    profile = cutset("profile", *named, "--runs", 5, "--batch-size", 1).document
    assert profile["model"].endswith("make, part body (90.9% of the work)")


def test_people_are_told_of_the_part(
    cutset: Cutset, model: str, bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", np.ones((2, 8), np.float32))
    for arguments in (
        ("inspect", model, "--part", "body"),
        ("plan", model, "--part", "body", "--stages", 2, "--cost", "flops"),
        ("verify", bundle, "--model", model),
        ("run", bundle, tmp_path / "rows.npy", "--backend", "onnxruntime"),
    ):
        outcome = cutset(*arguments)
        assert outcome.code == 0, outcome.err
        assert WORDS in outcome.out
    assert open_bundle(bundle).manifest.model.endswith("make, part body (90.9% of the work)")
    verified = " ".join(cutset("verify", bundle, "--model", model).out.split())
    assert "part body, whole, gives the same" in verified
    assert "the whole model gives" not in verified


def test_a_whole_model_s_documents_name_no_part(cutset: Cutset, small_bundle: Path) -> None:
    assert cutset("verify", small_bundle, "--json").document["part"] is None
    assert "only a part" not in cutset("verify", small_bundle).out
