"""The steps of a release, on a small repository with this one's settings."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from release import steps
from release.steps import (
    ReleaseRefused,
    check_distributions,
    entries_by_hand,
    require_ready,
    section_of,
    tag,
    write_changelog,
)

ROOT = Path(__file__).parents[2]
MARKER = "<!-- `make changelog` puts the next version here -->\n"
BY_HAND = """
## Unreleased

### Added

- One thing that takes
  two lines, and `code`.
- Another.

### Fixed

- A fault.
"""
OLDER = "\n## 0.0.9 (2026-01-02)\n\n### Added\n\n- The first.\n"
METADATA = """Metadata-Version: 2.4
Name: cutset
Version: {}
Summary: Splits models.

What it is.
"""


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.invalid")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository at version 0.3.0, with one older version, entries by hand and a fragment."""
    for kind in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{kind}_NAME", "A")
        monkeypatch.setenv(f"GIT_{kind}_EMAIL", "a@example.invalid")
    root = tmp_path / "repository"
    (root / "src/cutset").mkdir(parents=True)
    (root / "changelog.d").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "changelog.d/README.md"):
        shutil.copy(ROOT / name, root / name)
    (root / "src/cutset/version.py").write_text('__version__ = "0.3.0"\n')
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\nWords.\n\n{MARKER}{BY_HAND}{OLDER}")
    (root / "changelog.d/speed.added.md").write_text("Something new.\n")
    (root / ".gitignore").write_text("/dist/\n")
    git(root, "init", "--quiet")
    commit(root)
    return root


def commit(root: Path) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "All")


def write_distributions(root: Path, version: str = "0.3.0", *, lack: str = "") -> None:
    folder = root / "dist"
    folder.mkdir()
    told = METADATA.format(version)
    held = {f"cutset-0.3.0.dist-info/{name}": "" for name in ("licenses/LICENSE",)}
    held |= dict.fromkeys(steps.NEEDED_IN_WHEEL, "")
    held["cutset-0.3.0.dist-info/METADATA"] = told
    with zipfile.ZipFile(folder / "cutset-0.3.0-py3-none-any.whl", "w") as archive:
        for name, text in held.items():
            if name != lack:
                archive.writestr(name, text)
    with tarfile.open(folder / "cutset-0.3.0.tar.gz", "w:gz") as archive:
        for name in (*steps.NEEDED_IN_SOURCE, "PKG-INFO"):
            data = told.encode() if name == "PKG-INFO" else b""
            info = tarfile.TarInfo(f"cutset-0.3.0/{name}")
            info.size = len(data)
            if name != lack:
                archive.addfile(info, io.BytesIO(data))


def test_entries_become_the_part_of_the_version(root: Path) -> None:
    write_changelog(root)
    text = (root / "CHANGELOG.md").read_text()
    assert "Unreleased" not in text
    assert text.startswith(f"# Changelog\n\nWords.\n\n{MARKER}\n## 0.3.0 (")
    assert text.endswith(OLDER)
    part = section_of(text, "0.3.0")
    expected = """### Added

- Something new.
- One thing that takes
  two lines, and `code`.
- Another.

### Fixed

- A fault."""
    assert part.partition("\n\n")[2] == expected
    assert steps.fragments(root) == []
    assert (root / "changelog.d/README.md").is_file()
    with pytest.raises(ReleaseRefused, match=r"has a part for 0\.3\.0: raise the version"):
        write_changelog(root)


def test_nothing_to_say_is_no_version(root: Path) -> None:
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n{MARKER}{OLDER}")
    (root / "changelog.d/speed.added.md").unlink()
    with pytest.raises(ReleaseRefused, match="nothing was changed"):
        write_changelog(root)


def test_a_kind_that_nobody_knows_is_refused(root: Path) -> None:
    (root / "changelog.d/speed.improved.md").write_text("Faster.\n")
    with pytest.raises(ReleaseRefused, match=r"Invalid news fragment name: speed\.improved\.md"):
        write_changelog(root)


def test_a_release_is_refused_until_all_is_told_and_committed(root: Path) -> None:
    with pytest.raises(ReleaseRefused, match=r"no part for 0\.3\.0: run `make changelog`"):
        require_ready(root)
    write_changelog(root)
    with pytest.raises(ReleaseRefused, match="not everything is committed"):
        require_ready(root)
    commit(root)
    assert require_ready(root) == "0.3.0"
    (root / "new.py").touch()
    with pytest.raises(ReleaseRefused, match=r"not everything is committed:\n\?\? new\.py"):
        require_ready(root)
    (root / "changelog.d/late.fixed.md").write_text("Late.\n")
    commit(root)
    with pytest.raises(ReleaseRefused, match="entries that are in none"):
        require_ready(root)


def test_the_tag_holds_the_notes_and_is_set_once(root: Path) -> None:
    write_changelog(root)
    commit(root)
    write_distributions(root)
    assert tag(root) == "v0.3.0"
    notes = git(root, "tag", "--list", "--format=%(objecttype)\n%(contents)", "v0.3.0")
    assert notes.startswith("tag\nCutset 0.3.0\n\n### Added\n\n- Something new.\n")
    with pytest.raises(ReleaseRefused, match=r"the tag v0\.3\.0 exists"):
        tag(root)


@pytest.mark.parametrize("lack", [*steps.NEEDED_IN_WHEEL, "LICENSE", "SECURITY.md"])
def test_a_distribution_that_lacks_a_file_is_refused(root: Path, lack: str) -> None:
    write_distributions(root, lack=lack)
    with pytest.raises(ReleaseRefused, match=re.escape(lack)):
        check_distributions(root / "dist", "0.3.0")


def test_distributions_of_another_version_are_refused(root: Path) -> None:
    write_distributions(root, version="0.2.0")
    with pytest.raises(ReleaseRefused, match=r"is called 0\.2\.0"):
        check_distributions(root / "dist", "0.3.0")
    with pytest.raises(ReleaseRefused, match=r"holds .*expected"):
        check_distributions(root / "dist", "0.4.0")


def test_a_changelog_without_such_a_part_has_no_entries_by_hand() -> None:
    assert entries_by_hand(f"# Changelog\n{OLDER}") == []
    assert section_of(OLDER, "0.0.8") == ""
    assert section_of(OLDER, "0.0.9") == OLDER.strip()


def test_the_fragments_of_this_repository_can_be_built() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert MARKER in text
    for fragment in steps.fragments(ROOT):
        words = fragment.read_text(encoding="utf-8")
        assert words.strip(), fragment
        assert not words.startswith(("-", "*", "#")), fragment
    done = subprocess.run(
        [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
