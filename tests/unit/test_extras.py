"""What is said where a package that an extra brings is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cutset.errors import CutsetError, MissingExtra
from cutset.extras import EXTRA_OF, missing_extra, naming_extras
from without_torch import WITHOUT_TORCH

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPORTED_AS = {
    "opentelemetry-api": "opentelemetry",
    "pillow": "PIL",
    "vl-convert-python": "vl_convert",
}
"""Packages that are imported under another name than their own, but for dashes."""


def test_every_package_of_an_extra_is_known() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {}
    for extra, requirements in project["optional-dependencies"].items():
        for text in requirements:
            (name,) = re.findall(r"^[A-Za-z0-9-]+", text)
            if name != "cutset":
                found.setdefault(IMPORTED_AS.get(name, name.replace("-", "_")), extra)
    assert found == EXTRA_OF


def test_the_words() -> None:
    with pytest.raises(MissingExtra) as caught, naming_extras("cutset.capture_model"):
        raise ModuleNotFoundError("No module named 'torch.export'", name="torch.export")
    assert str(caught.value) == (
        "cutset.capture_model needs the package 'torch', which is not installed: "
        "pip install 'cutset[torch]'"
    )
    assert (caught.value.package, caught.value.extra) == ("torch", "torch")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, CutsetError)


def test_what_no_extra_brings_stays_as_it_is() -> None:
    error = ModuleNotFoundError("No module named 'of_the_caller'", name="of_the_caller")
    assert missing_extra(error) is None
    assert missing_extra(ModuleNotFoundError("without a name")) is None
    with pytest.raises(ModuleNotFoundError) as caught, naming_extras():
        raise error
    assert caught.value is error


NAMES = """
import cutset
for name in cutset.__all__:
    try:
        assert getattr(cutset, name) is not None
        print("has", name)
    except cutset.CutsetError as error:
        print(type(error).__name__, error)
"""


def test_every_public_name_is_there_or_says_what_to_type() -> None:
    """Without torch, in one process: what was tried first must not change what comes after."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + NAMES],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert {"has Cluster", "has Plan", "has make_plan", "has load_cluster"} <= set(lines)
    refused = [line for line in lines if not line.startswith("has ")]
    assert any("cutset.capture_model needs" in line for line in refused)
    odd = [
        line
        for line in refused
        if not re.fullmatch(
            r"MissingExtra cutset\.\w+ needs the package '\w+', which is not installed: "
            r"pip install 'cutset\[torch\]'",
            line,
        )
    ]
    assert odd == []


MODULES = {
    "run": "cutset.cli cutset.predict cutset.data.array_files cutset.report.documents",
    "bench": "cutset.measure.bench cutset.measure.stages",
    "serve": "cutset.serve.command cutset.serve.server",
    "verify": "cutset.bundles.proof.verify cutset.bundles.proof.child",
    "report": "cutset.report.html cutset.report.read_sources",
    "doctor": "cutset.doctor",
    "plan": "cutset.planning cutset.cluster.cluster_file",
    "split FILE.onnx": "cutset.workflow cutset.models.from_onnx cutset.bundles.write.export",
    "probe": "cutset.measure.probe cutset.measure.overhead",
    "a worker": "cutset.runtime.worker cutset.backends.onnxruntime",
}


@pytest.mark.parametrize("what", MODULES)
def test_what_works_without_torch_imports_none(what: str) -> None:
    """An early word of what `make test-core` tries with the wheel."""
    lines = [f"import {name}" for name in MODULES[what].split()]
    program = WITHOUT_TORCH + "\n".join(lines)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
