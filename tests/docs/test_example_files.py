"""The files that the pages about extensions show are the files that the tests install."""

from __future__ import annotations

from pathlib import Path

import pytest

from .blocks import blocks_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("page", "file"),
    [
        ("add-a-backend.md", "onnx_reference_backend.py"),
        ("add-an-engine.md", "toy_engine.py"),
        ("add-a-model-source.md", "toy_models.py"),
        ("add-a-cut-rule.md", "toy_cut_rule.py"),
    ],
)
def test_a_page_shows_the_file_that_the_tests_run(page: str, file: str) -> None:
    (block,) = [each for each in blocks_of(ROOT / "docs" / page) if each.title == file]
    assert block.text == (ROOT / "tests" / file).read_text(encoding="utf-8")
