from __future__ import annotations

import email.parser
import hashlib
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cutset.engines.ssh import wheel
from cutset.errors import EngineError
from cutset.version import __version__


def test_the_wheel_is_whole_and_says_what_it_needs(tmp_path: Path) -> None:
    made = wheel.write_own_wheel(tmp_path)
    assert made.name == f"cutset-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(made) as archive:
        assert archive.testzip() is None
        names = set(archive.namelist())
        info = f"cutset-{__version__}.dist-info"
        lines = archive.read(f"{info}/RECORD").decode().splitlines()
        assert {line.split(",")[0] for line in lines} == names
        for line in lines[:-1]:
            name, digest, size = line.split(",")
            data = archive.read(name)
            found = urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, size) == (f"sha256={found}", str(len(data)))
        said = email.parser.Parser().parsestr(archive.read(f"{info}/METADATA").decode())
    assert "cutset/engines/ssh/board.py" in names
    assert "cutset/py.typed" in names
    assert not any("__pycache__" in name for name in names)
    assert (said["Name"], said["Version"]) == ("cutset", __version__)
    needs = [Requirement(text) for text in said.get_all("Requires-Dist", [])]
    plain = {need.name for need in needs if need.marker is None}
    assert {"numpy", "onnxruntime", "msgspec"} <= plain
    assert "torch" not in plain
    torch = next(need for need in needs if need.name == "torch")
    assert torch.marker is not None
    assert torch.marker.evaluate({"extra": "torch"})
    assert not torch.marker.evaluate({"extra": ""})


def test_the_wheel_is_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    once, again = (wheel.write_own_wheel(f) for f in (tmp_path, tmp_path / "again"))
    assert once.read_bytes() == again.read_bytes()


def test_what_is_in_the_wheel_runs(tmp_path: Path) -> None:
    made = wheel.write_own_wheel(tmp_path)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from cutset import version as v"
    code += "; print(v.__file__)"
    command = [sys.executable, "-c", code, str(made)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(made))


def test_without_a_source_or_an_installation_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.metadata

    def nothing(_name: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(wheel, "_PACKAGE", tmp_path / "a" / "cutset")
    monkeypatch.setattr(importlib.metadata, "distribution", nothing)
    with pytest.raises(EngineError, match=r"python -m build --wheel.*--wheel FILE"):
        wheel.write_own_wheel(tmp_path)
