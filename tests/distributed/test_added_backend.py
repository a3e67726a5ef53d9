"""A backend of another package, in one file, through all of Cutset: as the page shows it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

import onnx_reference_backend
from command_line import call_cutset
from cutset.bundles.open import open_bundle
from cutset.measure.bench import bench_bundle
from cutset.runtime.session import open_session
from serve.running import ask, serving

from .added_backend import install

ROOT = Path(__file__).parents[2]
NAME = "onnx-reference"
MODEL = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)
    )
    return model.eval(), torch.zeros(2, 3, 8, 8)
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        tmp_path / "site",
        monkeypatch,
        {NAME: "onnx_reference_backend:ReferenceBackend"},
        package="onnx-reference-backend",
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(MODEL)


def test_it_is_profiled_planned_split_run_benched_and_served() -> None:
    profiled = call_cutset("profile", "net.py:make", "-o", "profile.json", "--runs", "5")
    assert profiled.code == 0, profiled.err
    profile = json.loads(Path("profile.json").read_text())
    assert {"torch", "onnxruntime", NAME} <= profile["whole"].keys()
    assert profile["software"][NAME] == onnx.__version__

    split = call_cutset(
        *("split", "net.py:make", "--stages", "2", "--profile", "profile.json"),
        *("--backend", NAME, "-o", "net.cutset"),
    )
    assert split.code == 0, split.err
    bundle = open_bundle("net.cutset")
    assert [stage.backend for stage in bundle.manifest.plan.stages] == [NAME, NAME]

    rows = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with open_session(bundle) as session, torch.inference_mode():
        answer = torch.as_tensor(session.run(rows))
        assert [stage.backend for stage in session.stats().stages] == [NAME, NAME]
    with open_session(bundle, backend="torch") as session:
        expected = torch.as_tensor(session.run(rows))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)

    report, _ = bench_bundle(bundle, duration_s=0.1)
    assert [stage.backend for stage in report.stages] == [NAME, NAME]
    with serving(Path("net.cutset"), backend=NAME) as server:
        body = {
            "inputs": [
                {
                    "name": bundle.manifest.graph.inputs[0].name,
                    "shape": [3, 3, 8, 8],
                    "datatype": "FP32",
                    "data": rows.flatten().tolist(),
                }
            ]
        }
        headers = {"Content-Type": "application/json"}
        status, _, text = ask(server, body=json.dumps(body).encode(), headers=headers)
    assert status == 200, text
    (output,) = json.loads(text)["outputs"]
    torch.testing.assert_close(
        torch.tensor(output["data"]).reshape(3, 5), expected, rtol=1e-4, atol=1e-5
    )


def test_the_page_shows_the_very_file() -> None:
    page = (ROOT / "docs/add-a-backend.md").read_text()
    shown = page.split('```python title="onnx_reference_backend.py"\n')[1].split("```")[0]
    assert shown == Path(onnx_reference_backend.__file__).read_text()


def test_doctor_lists_it() -> None:
    lines = call_cutset("doctor").out.splitlines()
    assert any(line.startswith(f"  yes  run stages with {NAME}: version ") for line in lines)
