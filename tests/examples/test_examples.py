"""The scripts of ``examples/`` run and say what they are meant to say."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _in_a_fresh_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """Runs a script as ``python examples/NAME`` does; returns its exit code."""
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return caught.value.code


def test_split_your_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("split_your_own.py", monkeypatch) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "units: 2, 3, 4, 5",
        "may be cut after: 1, 2, 3, 4, 5, 7",
        "is cut after: 3",
    ]
    assert lines[-1] == "equal to the whole model: every bit"
    assert Path("own.cutset/manifest.json").is_file()


def test_plan_unequal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan_unequal.py", monkeypatch) == 0
    out = capsys.readouterr().out
    assert "server" in out
    assert "do not split: a row every" in out
    assert out.count(" rows/s, ") >= 1


def test_stream_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("stream_folder.py", monkeypatch) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == [f"picture-{index}.png" for index in range(8)]
    assert all(len(row["labels"]) == 3 for row in rows)
