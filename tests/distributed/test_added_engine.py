"""An engine of another package, found by its entry point: a bundle runs, is benched and served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from command_line import call_cutset
from cutset.engines.registry import GROUP, EngineSettings, find_engine
from cutset.errors import EngineError
from cutset.runtime.session import open_session
from installed import install
from toy_engine import Plain, PlainEngine

from .bundles import SmallNet

TESTS = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = install(tmp_path / "site", "plain-engine", GROUP, "plain = toy_engine:Plain")
    monkeypatch.syspath_prepend(folder)
    return folder


@pytest.mark.usefixtures("package")
def test_it_runs_a_bundle_and_replaces_a_worker_that_dies(bundle: Path, model: SmallNet) -> None:
    rows = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        whole = torch.cat([model(rows[:4]), model(rows[4:])])
    with open_session(bundle, engine="plain", backend="torch") as session:
        assert isinstance(session._engine, PlainEngine)
        assert torch.equal(torch.as_tensor(session.run(rows)), whole)
        os.kill(session.worker_pids[0], 9)
        assert torch.equal(torch.as_tensor(session.run(rows)), whole)
        assert session.epoch > 1


@pytest.mark.usefixtures("package")
def test_it_is_benched_by_its_name(bundle: Path) -> None:
    outcome = call_cutset(
        *("bench", bundle, "--engine", "plain", "--backend", "torch", "--seconds", "0.1", "--json")
    )
    assert outcome.code == 0, outcome.err
    assert outcome.document["rows_per_s"] > 0
    assert outcome.document["slowest_stage_alone_s"] > 0


@pytest.mark.usefixtures("package")
def test_an_option_that_it_does_not_take_is_refused(bundle: Path) -> None:
    outcome = call_cutset("bench", bundle, "--engine", "plain", "--address", "here:1")
    assert outcome.code == 2
    assert "--address is for --engine ray" in outcome.err


@pytest.fixture
def server(bundle: Path, package: Path) -> Iterator[str]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "cutset.cli", "serve", bundle, "--engine", "plain"),
            *("--port", "0", "--no-auth", "--name", "small", "--backend", "torch"),
        ],
        env={**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{package}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.readline()
        assert said.startswith("serving"), said + process.stderr.read()
        yield said.split()[-1]
        process.terminate()
        process.stderr.read()
        assert process.wait(60) == 0


def test_it_serves_a_bundle(server: str, model: SmallNet) -> None:
    row = torch.randn(1, 3, 16, 16)
    tensor = {"name": "x", "shape": [1, 3, 16, 16], "datatype": "FP32"}
    body = {"inputs": [{**tensor, "data": row.flatten().tolist()}]}
    request = urllib.request.Request(
        f"{server.rstrip('/')}/v2/models/small/infer",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        (output,) = json.load(answer)["outputs"]
    with torch.no_grad():
        expected = model(row)
    assert torch.allclose(torch.tensor(output["data"]), expected.flatten(), atol=1e-6)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("odd = math:pi", r"the engine 'odd' .* is 3\.14.*; expected a class"),
        (
            "odd = math:tau2",
            r"'odd' .* of the package odd-engine cannot be loaded .* AttributeError",
        ),
        ("odd = no_such_module:X", r"'odd' .* cannot be loaded .* ModuleNotFoundError"),
        (
            "other = toy_engine:Plain",
            r"no engine 'odd'; this version has: local, ssh, ray; .* add: other",
        ),
        ("odd = needy:Needy", r"'odd' needs the package absent, .*: pip install 'needy\[all\]'"),
    ],
)
def test_what_is_no_engine_is_said(
    entry: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needy.py").write_text(
        "from toy_engine import Plain\n"
        "class Needy(Plain):\n    package, install = 'absent', 'needy[all]'\n"
    )
    monkeypatch.syspath_prepend(install(tmp_path, "odd-engine", GROUP, entry))
    with pytest.raises(EngineError, match=words):
        find_engine("odd")


def test_a_name_of_two_packages_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        install(tmp_path, name, GROUP, "plain = toy_engine:Plain")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EngineError, match="is of several packages: one and two"):
        find_engine("plain")


def test_nobody_takes_the_place_of_an_engine_of_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(install(tmp_path, "sly", GROUP, "local = toy_engine:Plain"))
    assert find_engine("local").__name__ == "LocalMachine"
    assert issubclass(find_engine("ray"), EngineSettings)


@pytest.mark.parametrize("engine", [None, 3, Plain, object()])
def test_what_is_neither_a_name_nor_an_engine_is_refused(engine: object, bundle: Path) -> None:
    with pytest.raises(TypeError, match="an engine is a name, an EngineSettings or an Engine"):
        open_session(bundle, engine=engine)
