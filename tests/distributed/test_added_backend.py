"""A backend of another package, in one file, through all of Cutset: as the page shows it."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch

from command_line import call_cutset
from cutset.backends.selection import GROUP
from cutset.bundles.open import open_bundle
from cutset.measure.bench import bench_bundle
from cutset.runtime.session import open_session
from installed import install
from serve.running import ask, serving

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
    entry = f"{NAME} = onnx_reference_backend:ReferenceBackend"
    site = install(tmp_path / "site", "onnx_reference_backend", GROUP, entry)
    monkeypatch.syspath_prepend(str(site))
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


def test_doctor_lists_it() -> None:
    lines = call_cutset("doctor").out.splitlines()
    assert any(line.startswith(f"  yes  run stages with {NAME}: version ") for line in lines)
