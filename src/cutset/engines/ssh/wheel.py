"""A wheel of the very Cutset that runs here, made of its files; no network, no builder.

What it needs is said by what was installed or, where Cutset runs from its source, by the source
itself: what was installed from there may be older. The formats are those of "Binary distribution
format" and "Core metadata" in the Python packaging specifications.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import sys
import zipfile
from pathlib import Path
from typing import Any

from cutset.errors import EngineError
from cutset.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PACKAGE = Path(__file__).resolve().parents[2]
_INFO = f"cutset-{__version__}.dist-info"
_FROM_METADATA = ("METADATA", "WHEEL", "entry_points.txt")
_WHEEL = """Wheel-Version: 1.0
Generator: cutset
Root-Is-Purelib: true
Tag: py3-none-any
"""
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_HOW = "build one (`python -m build --wheel` in Cutset's source) and give it with --wheel FILE"


def write_own_wheel(folder: Path) -> Path:
    """Writes the wheel into a folder.

    Raises:
        EngineError: what is installed does not say enough; says what to do.
    """
    files = {f"{_INFO}/{name}": data for name, data in _metadata().items()}
    for path in sorted(_PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            name = path.relative_to(_PACKAGE.parent).as_posix()
            files[name] = path.read_bytes()
    record = "".join(f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    files[f"{_INFO}/RECORD"] = f"{record}{_INFO}/RECORD,,\n".encode()
    wheel = folder / f"cutset-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), data, zipfile.ZIP_DEFLATED)
    return wheel


def _metadata() -> dict[str, bytes]:
    source = _PACKAGE.parents[1] / "pyproject.toml"
    try:
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        if project["name"] == "cutset":
            return _of_source(project)
    except (OSError, KeyError, ValueError):
        pass  # it does not run from its source
    return _of_installed()


def _of_source(project: dict[str, Any]) -> dict[str, bytes]:
    lines = ["Metadata-Version: 2.4", "Name: cutset", f"Version: {__version__}"]
    lines.append(f"Requires-Python: {project['requires-python']}")
    lines += [f"Requires-Dist: {each}" for each in project["dependencies"]]
    for extra, needs in project["optional-dependencies"].items():
        lines.append(f"Provides-Extra: {extra}")
        for need in needs:
            what, _, when = need.partition(";")
            both = f"({when.strip()}) and extra == {extra!r}" if when else f"extra == {extra!r}"
            lines.append(f"Requires-Dist: {what.strip()}; {both}")
    scripts = "".join(f"{name} = {what}\n" for name, what in project["scripts"].items())
    return {
        "METADATA": "\n".join([*lines, ""]).encode(),
        "WHEEL": _WHEEL.encode(),
        "entry_points.txt": f"[console_scripts]\n{scripts}".encode(),
    }


def _of_installed() -> dict[str, bytes]:
    try:
        installed = importlib.metadata.distribution("cutset")
    except importlib.metadata.PackageNotFoundError:
        raise EngineError(
            f"this Cutset runs from {_PACKAGE} and was not installed, so nothing says what it"
            f" needs, and no wheel can be made of it; {_HOW}"
        ) from None
    found = {name: installed.read_text(name) for name in _FROM_METADATA}
    lacking = [name for name, text in found.items() if not text]
    if lacking or installed.version != __version__:
        raise EngineError(
            f"this Cutset is {__version__}, but what was installed says {installed.version}"
            + (f" and lacks {', '.join(lacking)}" if lacking else "")
            + f", so no wheel can be made of it; install it again, or {_HOW}"
        )
    return {name: (text or "").encode() for name, text in found.items()}


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
