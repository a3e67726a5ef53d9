"""Wheels of what is installed here, for nodes without internet: nothing is fetched.

The files are those that an installer put there, as its RECORD lists them; what it made itself
(scripts, byte code, notes of its own) is left out. The format is that of "Binary distribution
format" in the Python packaging specifications.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib.metadata import Distribution
from pathlib import Path

from smoke.environment import closure, wheel_requirements

_MADE_BY_INSTALLERS = ("INSTALLER", "RECORD", "REQUESTED", "direct_url.json", "uv_cache.json")


def write_wheels(wheel: Path, folder: Path) -> Path:
    """Writes a wheel of each package that `wheel` needs; returns the folder."""
    folder.mkdir()
    for package in closure(wheel_requirements(wheel)).values():
        _write(package, folder)
    return folder


def _write(package: Distribution, folder: Path) -> None:
    tag = _tag(package)
    name = f"{package.name.replace('-', '_')}-{package.version}"
    files: dict[str, bytes] = {}
    for file in package.files or ():
        if ".." in file.parts or "__pycache__" in file.parts or file.name in _MADE_BY_INSTALLERS:
            continue
        files[file.as_posix()] = file.locate().read_bytes()
    info = next(each.split("/")[0] for each in files if ".dist-info/" in each)
    record = "".join(f"{each},sha256={_digest(data)},{len(data)}\n" for each, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(
        folder / f"{name}-{tag}.whl", "w", zipfile.ZIP_DEFLATED, compresslevel=1
    ) as archive:
        for each, data in files.items():
            archive.writestr(each, data)


def _tag(package: Distribution) -> str:
    """The tags of the wheel that it came from, as part of a file's name."""
    text = package.read_text("WHEEL") or ""
    tags = [line.split(": ")[1] for line in text.splitlines() if line.startswith("Tag: ")]
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    return "-".join(".".join(dict.fromkeys(part)) for part in parts)


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
