"""Whatever is defined is used by something that is no test.

Fields are left out: they are what answers consist of, and JSON, tables and pages read them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from vulture import Vulture

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "testbed", "benchmarks", "examples", "docs")
KINDS = {"class", "function", "import", "method", "property", "unreachable_code"}
CALLED_FROM_OUTSIDE = {
    "__dir__",  # Python
    "__getattr__",
    "_repr_html_",  # notebooks
    "handle_exit",  # uvicorn
    "send_400_response",
    "on_files",  # MkDocs
    "seekable",  # torch, which writes a program into a file
    "writable",
    "part_in",  # whoever split a part of a model
    "efficientnet_lite0_weights",  # the tests of trained models, which share the demo's files
}
CALLED_BY_NAME = {
    "model_html",  # `cutset.notebooks.drawn`
    "plan_html",
    "verification_html",
    "begin_file",  # over Ray
    "clock",
    "finish_file",
    "hear_program",
    "hello",
    "keep_model",
    "missing_files",
    "missing_manifest",
    "next_events",
    "start_program",
    "start_worker",
    "tell_program",
}


def unused(*folders: Path) -> set[str]:
    """What nothing in some folders uses, as ``name (kind, file)``."""
    search = Vulture(ignore_decorators=["@*.callback*", "@app.command*", "@atexit.register"])
    search.scavenge([str(folder) for folder in folders])
    for folder in folders:
        for page in folder.rglob("*.html"):
            search.used_names.update(re.findall(r"\.(\w+)", page.read_text(encoding="utf-8")))
    return {
        f"{item.name} ({item.typ}, {Path(item.filename).name})"
        for item in search.get_unused_code(min_confidence=60)
        if item.typ in KINDS and item.name not in CALLED_FROM_OUTSIDE | CALLED_BY_NAME
    }


def test_nothing_is_defined_that_nothing_uses() -> None:
    assert unused(*(ROOT / name for name in FOLDERS)) == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("def spare(): ...\n", {"spare (function, one.py)"}),
        ("import os\n", {"os (import, one.py)"}),
        ("class Spare: ...\n", {"Spare (class, one.py)"}),
        (
            "class Kept:\n    def spare(self): ...\nprint(Kept())\n",
            {"spare (method, one.py)"},
        ),
        ("def used(): ...\nused()\n", set()),
        ("def shown(): ...\n", set()),
    ],
)
def test_what_is_spare_is_found(tmp_path: Path, text: str, found: set[str]) -> None:
    (tmp_path / "one.py").write_text(text)
    (tmp_path / "page.html").write_text("{{ report.shown }}")
    assert unused(tmp_path) == found
