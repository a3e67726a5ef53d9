"""`cutset report`: one page without network, from a bundle or a plan."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import Cutset


@pytest.fixture(scope="module")
def page(cutset: Cutset, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the small bundle, with its verification and a bench run."""
    folder = tmp_path_factory.mktemp("report")
    documents = {
        "--verification": cutset("verify", small_bundle, "--json"),
        "--bench": cutset(
            *("bench", small_bundle, "--seconds", 1, "--backend", "onnxruntime", "--json")
        ),
    }
    options: list[object] = []
    for option, outcome in documents.items():
        file = folder / f"{option[2:]}.json"
        file.write_text(outcome.out, encoding="utf-8")
        options += [option, file]
    outcome = cutset("report", small_bundle, "-o", folder / "page.html", *options)
    assert outcome.code == 0, outcome.err
    return (folder / "page.html").read_text(encoding="utf-8")


def test_the_page_needs_no_network(page: str) -> None:
    assert len(page.encode()) < 5 * 10**6
    assert "default-src 'none'" in page.partition("</head>")[0]
    outside_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', outside_scripts) == []


def test_the_page_names_the_cut_and_both_stages(
    page: str, cutset: Cutset, small_model: str
) -> None:
    plan = cutset("plan", small_model, "--stages", 2, "--cost", "flops", "--json").document
    text = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    for stage in plan["stages"][:-1]:
        assert stage["last"] in text, stage
    assert len(plan["stages"]) == 2


def test_a_document_that_is_no_plan_is_an_error(
    cutset: Cutset, small_bundle: Path, tmp_path: Path
) -> None:
    file = tmp_path / "v.json"
    file.write_text(cutset("verify", small_bundle, "--json").out, encoding="utf-8")
    outcome = cutset("report", file, "-o", tmp_path / "page.html")
    assert outcome.code == 3
    assert len(outcome.error_lines) == 1
    assert list(tmp_path.iterdir()) == [file]
