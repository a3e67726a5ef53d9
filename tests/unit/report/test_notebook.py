"""What notebooks show: the drawings of the report, nothing that runs."""

from __future__ import annotations

import builtins
import importlib
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch
from torch import nn

import cutset
from cutset.workflow import PreparedModel, prepare_found


def _make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)]
    return nn.Sequential(*layers), (torch.randn(2, 8),)


@pytest.fixture(scope="module")
def prepared() -> PreparedModel:
    model, example = _make()
    return prepare_found(
        cutset.FoundModel(
            name="<script>alert(1)</script>", model=model, example_inputs=example, weights="none"
        )
    )


def _svg_words(html: str) -> str:
    """What the drawings say; each must be well-formed."""
    found = []
    for piece in html.split("<svg")[1:]:
        tree = ET.fromstring("<svg" + piece.partition("</svg>")[0] + "</svg>")
        found += [each.get("aria-label") or "" for each in tree.iter()]
        found += list(tree.itertext())
    return "\n".join(found)


def test_a_model_shows_where_it_may_be_cut(prepared: PreparedModel) -> None:
    html = prepared._repr_html_()
    assert html is not None
    assert "<script" not in html
    words = _svg_words(html)
    for point in prepared.cuts.points:
        assert f"cut after: {point.after}" in words
    assert "because: " in words


def test_a_plan_a_bundle_and_a_verification_show_themselves(
    prepared: PreparedModel, tmp_path: Path
) -> None:
    plan = cutset.plan_stages(prepared, num_stages=2)
    html = plan._repr_html_()
    assert html is not None
    assert html.count("<svg") == 3
    assert plan.stages[0].last in html

    bundle = cutset.split_model(prepared, plan, tmp_path / "b.cutset")
    report = bundle.verification
    checked = report._repr_html_()
    assert checked is not None
    assert f"{len(report.checks)} of {len(report.checks)} checks passed" in checked

    shown = cutset.open_bundle(bundle.directory)._repr_html_()
    assert shown is not None
    assert "<script" not in shown
    assert f"cut after: {plan.stages[0].last}" in _svg_words(shown)


def test_without_the_extra_the_text_is_shown(
    prepared: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = cutset.plan_stages(prepared, num_stages=2)
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.partition(".")[0] == "jinja2":
            raise ModuleNotFoundError(name=name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "cutset.report.notebook", raising=False)
    monkeypatch.setattr(builtins, "__import__", refuse)
    assert plan._repr_html_() is None
    monkeypatch.undo()
    assert importlib.import_module("cutset.report.notebook").plan_html(plan)
