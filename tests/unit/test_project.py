"""The project's own files agree with each other: pins, checks, Pythons."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = [
    found[1]
    for each in PROJECT["project"]["classifiers"]
    if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", each))
]
WANTED = [
    *PROJECT["project"]["dependencies"],
    *(
        text
        for extra in PROJECT["project"]["optional-dependencies"].values()
        for text in extra
        if Requirement(text).name != "cutset"  # an extra that brings others
    ),
    *PROJECT["dependency-groups"]["dev"],
]
SHA256 = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")


def pins(name: str) -> list[Requirement]:
    """The requirements of a file of pins, each of which has a hash or more."""
    found = []
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    for block in re.split(r"\n(?=\S)", text.strip()):
        first, *hashes = block.split("\n")
        if first.startswith("#"):
            continue
        assert hashes, first
        assert [line for line in hashes if not SHA256.fullmatch(line)] == []
        found.append(Requirement(first.removesuffix("\\")))
    return found


def environment(python: str) -> dict[str, str]:
    return {
        **{key: str(value) for key, value in default_environment().items()},
        "python_version": python,
        "python_full_version": f"{python}.9",
    }


@pytest.mark.parametrize("python", PYTHONS)
def test_every_package_that_is_asked_for_has_its_pin(python: str) -> None:
    here = environment(python)
    pinned = {
        canonicalize_name(pin.name): str(pin.specifier).removeprefix("==")
        for pin in pins("ci.txt")
        if pin.marker is None or pin.marker.evaluate(here)
    }
    missing = [
        text
        for text in WANTED
        if (wanted := Requirement(text))
        and (wanted.marker is None or wanted.marker.evaluate(here))
        and not wanted.specifier.contains(pinned.get(canonicalize_name(wanted.name), "0"))
    ]
    assert missing == [], "run `make lock`"


def test_pins_name_no_place_to_take_them_from() -> None:
    for name in ("ci.txt", "assets.txt"):
        assert all(pin.url is None for pin in pins(name))
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        assert not re.search(r"://|--(extra-)?index|--find-links|--trusted", text)


def test_the_hooks_of_a_commit_are_the_checks() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.installed", "check"],
        cwd=ROOT,
        # Where `make test` runs this, the outer make would have the inner one say where it is.
        env={k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    (local,) = yaml.safe_load(text)["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"] for hook in local["hooks"]] == done.stdout.splitlines()
    assert all(hook["pass_filenames"] is False for hook in local["hooks"])


def test_the_forge_runs_what_is_run_here_on_every_python_that_is_claimed() -> None:
    text = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    job = yaml.safe_load(text)["jobs"]["ci"]
    assert job["strategy"]["matrix"]["python"] == PYTHONS
    assert [step["run"].split()[-1] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert PROJECT["project"]["requires-python"] == f">={PYTHONS[0]}"
    assert PROJECT["tool"]["mypy"]["python_version"] == PYTHONS[0]
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + PYTHONS[0].replace(".", "")
