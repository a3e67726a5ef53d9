"""Cut rules of another package, from their names to a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from command_line import call_cutset
from cutset import PlanRequest, plan_model, prepare_model
from cutset.errors import PlanError
from cutset.workflow.cut_rules import GROUP
from installed import install

MODEL = """
import torch
from torch import nn

def make():
    layers = [nn.Linear(16, 4096), nn.ReLU(), nn.Linear(4096, 32), nn.ReLU(), nn.Linear(32, 32)]
    return nn.Sequential(*layers, nn.Tanh(), nn.Linear(32, 4)), (torch.zeros(2, 16),)
"""


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    monkeypatch.syspath_prepend(install(folder / "site", "radio-cuts", GROUP, entry))


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def test_a_rule_refuses_cuts_with_its_name_and_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(tmp_path, monkeypatch, "radio = toy_cut_rule:for_the_radio")
    (tmp_path / "model.py").write_text(MODEL)
    outcome = call_cutset("inspect", f"{tmp_path}/model.py:make", "--json")
    assert outcome.code == 0, outcome.err
    assert [point["after"] for point in outcome.document["cut_points"]] == ["3"]
    reasons = {point["after"]: point["reason"] for point in outcome.document["refused"]}
    assert reasons["1"] == "radio: 16384 bytes a row do not fit into a frame of 8192"
    assert reasons["5"] == "radio: tanh gives numbers below 0, which pack badly"
    assert reasons["0"] == "relu of 1 stays with linear of 0, whose output it activates"
    outcome = call_cutset(
        *("plan", f"{tmp_path}/model.py:make", "--cost", "flops", "--stages", "2", "--json")
    )
    assert outcome.code == 0, outcome.err
    assert outcome.document["stages"][0]["last"] == "3"


def test_more_tensors_are_judged_by_the_rule_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refuses_all.py").write_text("def rule(graph, point): return 'never'\n")
    _install(tmp_path, monkeypatch, "no = refuses_all:rule")
    monkeypatch.syspath_prepend(tmp_path)
    prepared = prepare_model(_model(), torch.zeros(2, 4))
    assert prepared.cuts.points == ()
    assert {point.reason for point in prepared.cuts.refused} >= {"no: never"}
    with pytest.raises(PlanError):
        plan_model(prepared, PlanRequest(num_stages=2), costs="flops")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "rule = 3",
            r"cut rule 'no' \(entry points 'cutset.cut_rules'\) is 3, expected a func",
        ),
        (
            "def rule(graph, point): return None",
            r"cut rule 'no' .* gives None at '1', expected why",
        ),
        ("def rule(graph, point): raise KeyError(7)", "cut rule 'no' .* fails at '1': KeyError: 7"),
        ("import nothing_like_it", "'no' .* of the package radio-cuts cannot be loaded"),
    ],
)
def test_a_rule_that_is_none_is_named(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"rule_{abs(hash(text))}"
    (tmp_path / f"{module}.py").write_text(text + "\n")
    _install(tmp_path, monkeypatch, f"no = {module}:rule")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PlanError, match=words):
        prepare_model(_model(), torch.zeros(2, 4))
