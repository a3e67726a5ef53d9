"""The steps of a release, each of which changes one thing or refuses.

Nothing here sends anything anywhere: who releases pushes the tag and the files of ``dist/``.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from packaging.metadata import Metadata

UNRELEASED = re.compile(r"^## Unreleased\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
FRAGMENT_FOLDER = "changelog.d"
NEEDED_IN_WHEEL = ("cutset/py.typed", "cutset/version.py", "cutset/serve/page/index.html")
NEEDED_IN_SOURCE = ("pyproject.toml", "LICENSE", "README.md", "CHANGELOG.md", "SECURITY.md")


class ReleaseRefused(Exception):
    """What stands against a release, and what to do about it."""


def run(root: Path, *command: str, given: str | None = None) -> str:
    """What a command prints, run in `root`; a release is refused with its words if it fails."""
    done = subprocess.run(
        command, cwd=root, input=given, capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        raise ReleaseRefused(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def version_of(root: Path) -> str:
    """The version that a build of `root` would have."""
    return run(root, sys.executable, "-m", "hatchling", "version").strip()


def fragments(root: Path) -> list[Path]:
    """The changelog's entries that no version has yet."""
    return sorted(
        path for path in (root / FRAGMENT_FOLDER).glob("*.md") if path.name != "README.md"
    )


def entries_by_hand(text: str) -> list[tuple[str, str]]:
    """The entries under ``## Unreleased`` of a changelog: kinds (``"added"``) and texts."""
    found = UNRELEASED.search(text)
    if found is None:
        return []
    entries = []
    for section in re.split(r"^### ", found[1], flags=re.MULTILINE)[1:]:
        kind, _, body = section.partition("\n")
        texts = re.split(r"^- ", body, flags=re.MULTILINE)[1:]
        entries += [(kind.strip().lower(), text.replace("\n  ", "\n").strip()) for text in texts]
    return entries


def write_changelog(root: Path) -> None:
    """Makes the present version's part of the changelog out of the fragments, and removes these.

    What was written under ``## Unreleased`` by hand is taken as fragments.

    Raises:
        ReleaseRefused: the version has its part already, or there is nothing to say.
    """
    path, version = root / "CHANGELOG.md", version_of(root)
    text = path.read_text(encoding="utf-8")
    if section_of(text, version):
        raise ReleaseRefused(
            f"CHANGELOG.md has a part for {version}: raise the version in src/cutset/version.py"
        )
    written = entries_by_hand(text)
    if not written and not fragments(root):
        raise ReleaseRefused(f"{FRAGMENT_FOLDER} is empty: nothing was changed")
    for number, (kind, entry) in enumerate(written):
        name = f"unreleased-{number:03}.{kind}.md"
        (root / FRAGMENT_FOLDER / name).write_text(entry + "\n", encoding="utf-8")
    path.write_text(UNRELEASED.sub("", text), encoding="utf-8")
    run(root, sys.executable, "-m", "towncrier", "build", "--yes", "--version", version)


def section_of(changelog: str, version: str) -> str:
    """What a changelog says of a version, with its heading; ``""`` where it says nothing."""
    pattern = rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)\n.*?(?=^## |\Z)"
    found = re.search(pattern, changelog, re.MULTILINE | re.DOTALL)
    return found[0].strip() if found else ""


def require_ready(root: Path) -> str:
    """Makes sure that what stands in `root` can be released as it is; returns its version.

    Raises:
        ReleaseRefused: something is not committed, the changelog has no part for this version or
            entries of none, or the version has its tag.
    """
    changes = run(root, "git", "status", "--porcelain").strip()
    if changes:
        raise ReleaseRefused(f"not everything is committed:\n{changes}")
    version = version_of(root)
    text = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    if not section_of(text, version):
        raise ReleaseRefused(
            f"CHANGELOG.md has no part for {version}: run `make changelog`, read it, commit it"
        )
    if entries_by_hand(text) or fragments(root):
        raise ReleaseRefused(
            f"the changelog has a part for {version}, and entries that are in none: raise the"
            " version in src/cutset/version.py and run `make changelog`"
        )
    if run(root, "git", "tag", "--list", f"v{version}").strip():
        raise ReleaseRefused(f"the tag v{version} exists: raise src/cutset/version.py")
    return version


def check_distributions(folder: Path, version: str) -> None:
    """Checks a built wheel and source distribution: names, metadata, what must be in them.

    Raises:
        ReleaseRefused: says what is missing, too much or of another version.
    """
    wheel, source = f"cutset-{version}-py3-none-any.whl", f"cutset-{version}.tar.gz"
    names = sorted(path.name for path in folder.iterdir())
    if names != [wheel, source]:
        raise ReleaseRefused(f"{folder} holds {names}, expected {[wheel, source]}")
    with zipfile.ZipFile(folder / wheel) as archive:
        held = set(archive.namelist())
        told = archive.read(f"cutset-{version}.dist-info/METADATA")
    top = {name.partition("/")[0] for name in held}
    if top != {"cutset", f"cutset-{version}.dist-info"}:
        raise ReleaseRefused(f"{wheel} holds {sorted(top)}, expected the package alone")
    require_all(wheel, held, (*NEEDED_IN_WHEEL, f"cutset-{version}.dist-info/licenses/LICENSE"))
    with tarfile.open(folder / source) as archive:
        base = f"cutset-{version}/"
        require_all(source, set(archive.getnames()), [base + name for name in NEEDED_IN_SOURCE])
        file = archive.extractfile(base + "PKG-INFO")
        if file is None or file.read() != told:
            raise ReleaseRefused(f"{wheel} and {source} have other metadata")
    metadata = Metadata.from_email(told, validate=True)  # raises a group of what is wrong
    if str(metadata.version) != version or not metadata.description:
        raise ReleaseRefused(f"{wheel} is called {metadata.version}, or describes nothing")


def require_all(name: str, held: set[str], needed: tuple[str, ...] | list[str]) -> None:
    """Makes sure that an archive holds some files.

    Raises:
        ReleaseRefused: it lacks some.
    """
    missing = [each for each in needed if each not in held]
    if missing:
        raise ReleaseRefused(f"{name} lacks {missing}")


def tag(root: Path) -> str:
    """Sets the annotated tag of the present version here; returns its name.

    Raises:
        ReleaseRefused: as `require_ready` and `check_distributions`.
    """
    version = require_ready(root)
    check_distributions(root / "dist", version)
    notes = section_of((root / "CHANGELOG.md").read_text(encoding="utf-8"), version)
    name = f"v{version}"
    message = f"Cutset {version}\n\n{notes.partition(chr(10))[2].strip()}\n"
    run(root, "git", "tag", "--annotate", "--cleanup=whitespace", "--file=-", name, given=message)
    return name
