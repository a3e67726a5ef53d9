"""Every command and every block of the documentation runs, page by page, in an empty folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from command_line import Outcome, call_cutset
from cutset.cluster.cluster_file import load_cluster

from .blocks import Block, Command, agrees, blocks_of, commands_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LIMIT_S = 240
_SHELL = set("|;&<>$`*\n")
SHOWN = ("", "text", "mermaid")  # output and drawings: nothing that could be run


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assets: ModuleType) -> None:
    """An empty folder with what the pages speak of: photographs, torchvision's file of weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.setattr(sys, "path", sys.path[:])
    weights = assets.mobilenet_weights()
    Path(weights.name).symlink_to(weights)
    Path("photographs").mkdir()
    generator = np.random.default_rng(0)
    for name in ("cat", "cup"):
        pixels = generator.integers(0, 256, (240, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photographs/{name}.png")


def _run(command: Command) -> tuple[int, str]:
    """Exit code and all output of a command, as a terminal shows them."""
    text, _, file = command.text.partition(" > ")
    if text.startswith("cutset ") and not set(text + file) & _SHELL:
        words = shlex.split(text)[1:]
        outcome = _split_once(words) or call_cutset(*words)
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


_SPLIT: dict[tuple[str, ...], tuple[Outcome, Path]] = {}


def _split_once(words: list[str]) -> Outcome | None:
    """The outcome of a ``split`` of a known model, with its bundle; None where it is none.

    Several pages give the very same command, each in an empty folder. It reads nothing but what is
    installed, so that it would write the same again: the others get a copy of what it wrote first.
    """
    if words[:4] != ["split", "squeezenet1_1", "--weights", "random:0"] or words[-2] != "-o":
        return None
    if tuple(words) in _SPLIT:
        outcome, kept = _SPLIT[tuple(words)]
        shutil.copytree(kept, words[-1])
        return outcome
    outcome = call_cutset(*words)
    if outcome.code == 0:
        kept = Path.cwd().with_name(f"split-{len(_SPLIT)}")
        _SPLIT[tuple(words)] = outcome, shutil.copytree(words[-1], kept)
    return outcome


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


def _wait_for(server: subprocess.Popen[str], port: int, where: str) -> None:
    """Waits until a server takes connections; its watchdog ends it in time."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=10).close()
        except ConnectionRefusedError:  # noqa: PERF203  # some times a second
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.fail(f"{where} ended with {server.wait(timeout=0.2)} before it served")
        else:
            return


@contextlib.contextmanager
def _served(block: Block, where: str, names: dict[str, object]) -> Iterator[tuple[str, str]]:
    """Runs a block that serves; gives the port that the page names, and the real one."""
    found = re.search(r"127\.0\.0\.1:(\d+)|port=(\d+)", block.text)
    assert found, f"{where}: a server whose port the page does not say"
    shown = found[1] or found[2]
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = str(asked.getsockname()[1])
    if block.language == "console":
        *first, last = commands_of(block)
        if first:
            text = "\n".join(f"$ {command.text}" for command in first)
            _check(dataclasses.replace(block, lines=tuple(text.splitlines())), where, names)
        arguments = ["-m", "cutset.cli", *shlex.split(last.text)[1:], "--port", port]
        expected = [line.replace(shown, port) for line in last.output]
    else:
        arguments = ["-c", block.text.replace(f"port={shown}", f"port={port}")]
        expected = []
    server = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    watchdog = threading.Timer(LIMIT_S, server.kill)
    watchdog.start()
    try:
        if expected:
            assert server.stdout is not None
            said = [server.stdout.readline().rstrip() for _ in expected]
            assert said == expected, f"{where} prints {said}"
        _wait_for(server, int(port), where)
        yield shown, port
    finally:
        watchdog.cancel()
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_the_page_runs(page: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    addresses: dict[str, str] = {}
    with contextlib.ExitStack() as servers:
        for block in blocks_of(page):
            where = f"{page.name}:{block.line}"
            if block.skip:
                assert re.fullmatch(r'next ".{10,}"', block.skip), f"{where}: say why"
                continue
            if block.hosts:
                pages = ("cluster.md", "ssh.md")
                assert page.name in pages, f"{where}: tests/beds runs {pages} only"
                continue
            if block.serves:
                shown, port = servers.enter_context(_served(block, where, names))
                addresses[f"127.0.0.1:{shown}"] = f"127.0.0.1:{port}"
                continue
            text = block.text
            for shown, real in addresses.items():
                text = text.replace(shown, real)
            _check(dataclasses.replace(block, lines=tuple(text.splitlines())), where, names)


def test_a_wrong_output_is_noticed() -> None:
    assert agrees(["a", "...", "c"], "a\nb\nc\n")
    assert agrees(["...", "b", "..."], "a\nb\nc\n")
    assert not agrees(["...", "d", "..."], "a\nb\nc\n")
    assert not agrees(["a", "c"], "a\nb\nc\n")
    assert not agrees(["a", "..."], "b\na\n")
    assert not agrees(["...", "b"], "a\nb\nc\n")
