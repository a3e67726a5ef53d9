"""Checks of a bundle where torch is not installed: processes in which nothing can import it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from cutset.bundles.allowance import allowance_of
from cutset.bundles.file_entries import sha256_of
from cutset.bundles.open import read_manifest
from cutset.bundles.proof.child import check_in_child
from cutset.bundles.proof.results import BACKENDS, VerificationReport
from distributed.bundles import small_net, write_bundle

NO_TORCH = f"import sys; sys.path[:0] = {sys.path!r}; sys.modules['torch'] = None; "
CHILD = NO_TORCH + "from cutset.bundles.proof.child import main; main()"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles") / "small.cutset"
    return write_bundle(small_net(), (torch.randn(2, 3, 16, 16),), (3,), folder)


def _verify(bundle: Path) -> VerificationReport:
    manifest = read_manifest(bundle)
    return check_in_child(
        bundle,
        stages=None,
        backends=BACKENDS,
        allowance=allowance_of(manifest, (5,), range(len(manifest.stages))),
        num_threads=1,
        progress=lambda _: None,
        command=(sys.executable, "-c", CHILD),
    )


def _changed(bundle: Path, target: Path, path: str, data: bytes) -> Path:
    """A copy with another file, which its manifest lists as it is."""
    copy = Path(shutil.copytree(bundle, target))
    (copy / path).write_bytes(data)
    document: dict[str, Any] = json.loads((copy / "manifest.json").read_text())
    for entry in document["files"]:
        if entry["path"] == path:
            entry["num_bytes"] = len(data)
            entry["sha256"] = sha256_of(copy / path)
    (copy / "manifest.json").write_text(json.dumps(document))
    return copy


def test_what_was_not_run_is_said_and_not_claimed(bundle: Path) -> None:
    report = _verify(bundle)
    assert report.ok, report.checks
    assert report.error is None
    assert not report.bit_exact
    assert report.max_abs_error is None
    (sentence,) = report.not_run
    assert sentence.startswith("torch is not installed, so no torch program was read: not whether")
    assert list(report.as_json()["not_run"]) == [sentence]
    details = {check.name: check.detail for check in report.checks}
    assert details["integrity"].endswith("sizes and hashes agree, ONNX models safe to load")
    assert details["contracts"] == (
        "1 boundary met on paper, 2 of 2 stages run in ONNX with 1, 2, 5 rows"
    )
    assert details["completeness"].endswith("by the manifest; no program was read")
    assert details["units"] == "no unit is divided by 1 cut"
    assert details["numerics"].startswith("torch was not run; onnxruntime within tolerance (")
    assert {(found.backend, found.stage) for found in report.comparisons} == {
        ("onnxruntime", 0),
        ("onnxruntime", 1),
    }


def test_a_changed_weight_is_found_by_its_numbers(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle / "stage-1/model.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    array = numpy_helper.to_array(weight) * 1.01
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    copy = _changed(bundle, tmp_path / "b", "stage-1/model.onnx", model.SerializeToString())
    report = _verify(copy)
    assert not report.ok
    assert "with onnxruntime stage 1 is the first that differs" in report.check("numerics").detail


def test_a_damaged_file_and_a_wrong_stage_are_found(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "damaged"))
    with (copy / "stage-0/program.pt2").open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    report = _verify(copy)
    assert "was changed or damaged" in report.check("integrity").detail

    copy = Path(shutil.copytree(bundle, tmp_path / "moved"))
    document = json.loads((copy / "manifest.json").read_text())
    first, second = document["stages"]
    first["parameters"], second["parameters"] = second["parameters"], first["parameters"]
    (copy / "manifest.json").write_text(json.dumps(document))
    report = _verify(copy)
    assert not report.check("completeness").ok
    assert "lacks" in report.check("completeness").detail


def test_a_stage_without_an_onnx_model_is_said_to_be_left_out(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "b"))
    document = json.loads((copy / "manifest.json").read_text())
    stage = document["stages"][0]
    document["files"] = [e for e in document["files"] if not e["path"].startswith(stage["model"])]
    for file in (copy / "stage-0").glob("model.onnx*"):
        file.unlink()
    stage["model"], stage["model_missing"] = None, "aten.odd has no ONNX form"
    (copy / "manifest.json").write_text(json.dumps(document))
    report = _verify(copy)
    assert report.ok, report.checks
    assert report.not_run[1] == "not run at all, for want of an ONNX model: stage 0"
    assert "1 of 2 stages run in ONNX" in report.check("contracts").detail
    assert "stage 0 has no ONNX model (aten.odd has no" in report.check("numerics").detail


def test_stages_are_loaded_and_run_without_it(bundle: Path) -> None:
    code = NO_TORCH + (
        "import cutset.bundles.open as o, cutset.bundles.proof.verify, cutset.bundles.allowance;"
        "import cutset.backends.selection as r;"
        f"b = o.open_bundle({str(bundle)!r});"
        "p = r.load_stage(b, 0, backend='onnxruntime', num_threads=1, micro_batch=2);"
        "print(p(r.random_inputs(b.manifest.stages[0], 2))[0].shape[0]);"
        "p = r.load_stage(b, 0, backend='auto', num_threads=1, micro_batch=2);"
        "print(p.backend != 'torch');"
        "print(r.missing_here('torch'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "2",
        "True",
        "torch is not installed; pip install 'cutset[torch]'",
    ]
