"""Every command and every block of the documentation runs, page by page, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import call_cutset
from cutset.devices import load_cluster

from .blocks import Block, Command, agrees, blocks_of, commands_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LIMIT_S = 240
_SHELL = set("|;&<>$`*\n")
SHOWN = ("", "text", "mermaid")  # output and drawings: nothing that could be run


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder with the photographs that the pages speak of; the commands are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setattr(sys, "path", sys.path[:])
    Path("photographs").mkdir()
    generator = np.random.default_rng(0)
    for name in ("cat", "cup"):
        pixels = generator.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photographs/{name}.png")


def _run(command: Command) -> tuple[int, str]:
    """Exit code and all output of a command, as a terminal shows them."""
    text, _, file = command.text.partition(" > ")
    if text.startswith("cutset ") and not set(text + file) & _SHELL:
        outcome = call_cutset(*shlex.split(text)[1:])
        if file:
            Path(file).write_text(outcome.out, encoding="utf-8")
            return outcome.code, outcome.err
        return outcome.code, outcome.out + outcome.err
    done = subprocess.run(
        ["/bin/bash", "-c", command.text],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "COLUMNS": "80"},
    )
    return done.returncode, done.stdout


def _check_console(block: Block, where: str) -> None:
    commands = commands_of(block)
    for command in commands:
        code, output = _run(command)
        expected = block.code if command is commands[-1] else 0
        assert code == expected, f"{where}: {command.text}\nends with {code}:\n{output}"
        if not block.output_varies:
            said = "\n".join(command.output)
            assert agrees(command.output, output), (
                f"{where}: {command.text}\nprints\n{output}\nthe page says\n{said}"
            )


def _check(block: Block, where: str, names: dict[str, object]) -> None:
    """Runs a block, or reads it where it is data."""
    if block.title:
        Path(block.title).write_text(block.text, encoding="utf-8")
    if block.language == "console":
        _check_console(block, where)
    elif block.language == "python":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")  # as for a reader: an exporter may have some
                exec(compile(block.text, where, "exec"), names)
        except Exception:  # noqa: BLE001  # whatever the page raises is what is wrong with it
            pytest.fail(f"{where}:\n{traceback.format_exc()}")
    elif block.language == "toml":
        Path("block.toml").write_text(block.text, encoding="utf-8")
        load_cluster("block.toml")
    elif block.language == "json":
        json.loads(block.text)
    else:
        assert block.language in SHOWN, f"{where}: nothing runs {block.language!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_the_page_runs(page: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks_of(page):
        where = f"{page.name}:{block.line}"
        if block.skip:
            assert re.fullmatch(r'next ".{10,}"', block.skip), f"{where}: say why it is skipped"
            continue
        _check(block, where, names)


def test_a_wrong_output_is_noticed() -> None:
    assert agrees(["a", "...", "c"], "a\nb\nc\n")
    assert agrees(["...", "b", "..."], "a\nb\nc\n")
    assert not agrees(["...", "d", "..."], "a\nb\nc\n")
    assert not agrees(["a", "c"], "a\nb\nc\n")
    assert not agrees(["a", "..."], "b\na\n")
    assert not agrees(["...", "b"], "a\nb\nc\n")
