"""What an installed wheel must be able to do, with nothing beside it but pytest.

``make wheel-smoke`` runs this in environments of their own, with the oldest and the newest versions
that the package allows. Nothing is imported from the rest of the test suite.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cutset

pytestmark = pytest.mark.smoke

COMMAND = str(Path(sys.executable).with_name("cutset"))
LIMIT_S = 240
MODEL = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x):
        return torch.relu(self.body(x) + x)


def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Block(8), Block(8), Block(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )
    return model, (torch.randn(2, 3, 12, 12),)
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    return subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "small.py"
    path.write_text(MODEL)
    return f"{path}:make"


@pytest.fixture(scope="session")
def bundle(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, written and proven through the library."""
    prepared = cutset.prepare_model(model)
    plan = cutset.plan_stages(prepared, num_stages=2)
    bundle = cutset.split_model(prepared, plan, tmp_path_factory.mktemp("bundles") / "small.cutset")
    assert bundle.verification.ok
    return bundle.directory


def test_what_is_imported_is_what_was_installed() -> None:
    assert importlib.metadata.version("cutset") == cutset.__version__
    assert Path(cutset.__file__).is_relative_to(Path(sys.prefix))


def test_the_package_has_its_files() -> None:
    package = importlib.resources.files("cutset")
    assert (package / "py.typed").is_file()
    assert (package / "serve/page/index.html").is_file()


def test_every_public_name_is_there() -> None:
    assert [name for name in cutset.__all__ if getattr(cutset, name, None) is None] == []


def test_the_command_answers() -> None:
    done = run("--help")
    assert done.returncode == 0, done.stderr
    assert "split" in done.stdout


def test_a_block_is_never_divided(model: str) -> None:
    prepared = cutset.prepare_model(model)
    assert [unit.path for unit in prepared.cuts.units] == ["2", "3", "4"]
    assert [point.after for point in prepared.cuts.points] == ["1", "2", "3", "4", "6"]


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_the_pieces_equal_the_whole(bundle: Path, model: str, backend: str) -> None:
    torch.set_num_threads(1)
    rows = torch.randn(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    whole = cutset.find_model(model).model
    with torch.inference_mode(), cutset.open_session(bundle, backend=backend) as session:
        answers = session.run(rows)
        expected = torch.cat([whole(row[None]) for row in rows])
    if backend == "torch":
        assert torch.equal(answers, expected)
    else:
        torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4)


def test_a_bundle_proves_itself_on_the_command_line(bundle: Path) -> None:
    done = run("verify", bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bit_exact"] is True


def test_a_missing_extra_is_named(bundle: Path) -> None:
    if importlib.util.find_spec("starlette"):
        pytest.skip("the extra is installed here")
    done = run("serve", bundle)
    assert done.returncode == 1
    assert "pip install 'cutset[serve]'" in done.stderr
