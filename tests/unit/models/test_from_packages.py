"""A source of models of another package, from its name to rows that ran."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import call_cutset
from cutset.errors import ModelError, WeightsMismatch
from cutset.models import find_model
from cutset.models.from_packages import GROUP
from installed import install
from toy_models import chain


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = install(tmp_path / "site", "chains", GROUP, "chain = toy_models:chain")
    monkeypatch.syspath_prepend(site)


@pytest.mark.usefixtures("package")
def test_a_model_of_it_is_profiled_planned_split_and_run(tmp_path: Path) -> None:
    profile, bundle, rows = (tmp_path / name for name in ("p.json", "chain.cutset", "rows.npy"))
    outcome = call_cutset("profile", "chain:3", "-o", profile, "--runs", "5")
    assert outcome.code == 0, outcome.err
    outcome = call_cutset("plan", "chain:3", "--profile", profile, "--stages", "2", "--json")
    assert outcome.code == 0, outcome.err
    assert len(outcome.document["stages"]) == 2
    outcome = call_cutset("split", "chain:3", "--cost", "flops", "--stages", "2", "-o", bundle)
    assert outcome.code == 0, outcome.err
    np.save(rows, np.ones((3, 32), np.float32))
    outcome = call_cutset("run", bundle, rows, "--backend", "torch", "--top", "1", "--json")
    assert outcome.code == 0, outcome.err
    with torch.no_grad():
        best = int(chain("3", None).model(torch.ones(1, 32)).argmax())
    label = ("north", "east", "south", "west")[best]
    assert [row["top"][0]["label"] for row in outcome.document["rows"]] == [label] * 3


@pytest.mark.usefixtures("package")
def test_weights_are_its_own_or_the_users(tmp_path: Path) -> None:
    assert find_model("chain:2").weights == "chain's quiet"
    assert find_model("chain:2", weights="loud").weights == "chain's loud"
    assert find_model("chain:2", weights="random:7").weights == "random, seed 7"
    torch.save(chain("2", "loud").model.state_dict(), tmp_path / "two.pth")
    loaded = find_model("chain:2", weights=str(tmp_path / "two.pth"))
    assert torch.equal(loaded.model[0].weight, chain("2", "loud").model[0].weight)
    with pytest.raises(WeightsMismatch):
        find_model("chain:3", weights=str(tmp_path / "two.pth"))
    with pytest.raises(ModelError, match="chain:2 has no weights 'shrill'; it has quiet, loud"):
        find_model("chain:2", weights="shrill")
    with pytest.raises(ModelError, match=r"'hub:x' names no model; .*, chain:NAME$"):
        find_model("hub:x")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("odd = 3", r"'odd' \(entry points 'cutset\.models'\) is 3; expected a function"),
        ("def odd(name): ...", r"odd:x raised TypeError: .*takes 1 positional"),
        ("def odd(name, weights): return 3", r"odd:x gave int; expected a torch\.nn\.Module"),
        (
            "def odd(name, weights): return nn.ReLU()",
            r"odd:x gave no example inputs; return a pair",
        ),
        ("raise OSError('disk')", r"'odd' .* of the package odd-models cannot be loaded .*: disk"),
    ],
)
def test_what_is_no_source_is_said(
    body: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"odd_{tmp_path.name}"
    (tmp_path / f"{module}.py").write_text(f"from torch import nn\n{body}\n")
    monkeypatch.syspath_prepend(install(tmp_path, "odd-models", GROUP, f"odd = {module}:odd"))
    with pytest.raises(ModelError, match=words):
        find_model("odd:x")


def test_a_name_for_weights_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deaf_models.py").write_text(
        "import torch\ndef deaf(name, weights): return torch.nn.Linear(2, 2), torch.zeros(2, 2)\n"
    )
    entry = "deaf = deaf_models:deaf"
    monkeypatch.syspath_prepend(install(tmp_path, "deaf-models", GROUP, entry))
    assert find_model("deaf:x").weights == "as deaf:x made them"
    with pytest.raises(ModelError, match="deaf:x has no weights called 'best'"):
        find_model("deaf:x", weights="best")
