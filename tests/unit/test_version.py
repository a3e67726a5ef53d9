"""One place says the version, and everything that names one says the same."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import cutset
from cutset.bundles.open import open_bundle
from distributed.bundles import write_bundle
from models_of_trouble import residual_net

ROOT = Path(__file__).parents[2]
# Another version than the one that is written, so that a second source of it would show.
PRETEND = """
import sys, types
pretended = types.ModuleType("cutset.version")
pretended.__version__ = "7.8.9"
sys.modules["cutset.version"] = pretended
"""


def printed(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PRETEND + program], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_build_reads_the_same_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "version"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == cutset.__version__, done.stderr


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("import cutset; print(cutset.__version__)", "7.8.9"),
        ("from cutset.cli import main; sys.argv = ['cutset', '--version']; main()", "cutset 7.8.9"),
        ("from cutset import doctor; print(doctor.examine_machine().cutset)", "7.8.9"),
    ],
)
def test_what_a_person_is_told_comes_from_there(program: str, answer: str) -> None:
    assert printed(program) == answer


def test_a_bundle_names_the_version_that_wrote_it(tmp_path: Path) -> None:
    import torch

    path = write_bundle(residual_net(), (torch.randn(3, 3, 8, 8),), (4,), tmp_path / "b.cutset")
    assert open_bundle(path).manifest.created_by["cutset"] == cutset.__version__


def test_nothing_asks_the_installed_metadata_for_it() -> None:
    asks = re.compile(r"""version(_of)?\(\s*["']cutset["']""")
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    assert len(files) > 100
    assert [str(file) for file in files if asks.search(file.read_text(encoding="utf-8"))] == []


def test_the_documentation_shows_the_present_version() -> None:
    shown = {
        (page.name, version)
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for version in re.findall(r"^cutset (\d+\.\d+\S*?),? ", page.read_text("utf-8"), re.M)
    }
    assert shown == {("commands.md", cutset.__version__)}
