"""What `cutset doctor` prints, and completion in a real shell."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import COMMAND, Cutset


def test_doctor_tells_what_to_paste(cutset: Cutset) -> None:
    outcome = cutset("doctor")
    assert outcome.code == 0, outcome.out
    lines = outcome.out.splitlines()
    assert lines[0].startswith("cutset 0.")
    assert "what Cutset can do here:" in lines
    assert "\x1b" not in outcome.out


def test_doctor_json(cutset: Cutset) -> None:
    document = cutset("doctor", "--json").document
    assert list(document) == ["cutset", "machine", "packages", "abilities"]
    assert set(document["abilities"][0]) == {"name", "ok", "is_optional", "detail"}
    assert {"name", "version", "wanted", "extra"} == set(document["packages"][0])


def test_doctor_fails_where_something_needed_is_missing(
    cutset: Cutset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(slot_bytes: int, num_slots: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cutset.links.arena.create_file", refuse)
    outcome = cutset("doctor")
    assert outcome.code == 1
    assert "no   share memory between workers: [Errno 28] No space left on device" in outcome.out


def test_completion_is_installed_and_completes(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "PATH": f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def bash(script: str) -> str:
        # `true` keeps bash alive as the command's parent: that is how the shell is recognised.
        done = subprocess.run(
            ["bash", "--norc", "-c", f"{script}\ntrue"],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=True,
        )
        return done.stdout

    assert "completion installed" in bash("cutset --install-completion")
    completed = bash(
        'source "$HOME/.bashrc"\n'
        "complete -p cutset\n"
        "COMP_WORDS=(cutset ver); COMP_CWORD=1; _cutset_completion cutset; echo ${COMPREPLY[@]}\n"
        "COMP_WORDS=(cutset bench --sec); COMP_CWORD=2; _cutset_completion cutset\n"
        "echo ${COMPREPLY[@]}"
    )
    # -o default: what the command does not complete, such as files, the shell does.
    assert completed.splitlines() == [
        "complete -o default -F _cutset_completion cutset",
        "verify",
        "--seconds",
    ]
