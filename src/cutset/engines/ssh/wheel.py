"""A wheel of the very Cutset that runs here, made of what is installed; no network, no builder.

The format is the one of "Binary distribution format" in the Python packaging specifications.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path

from cutset.errors import EngineError
from cutset.version import __version__

_PACKAGE = Path(__file__).resolve().parents[2]
_INFO = f"cutset-{__version__}.dist-info"
_FROM_METADATA = ("METADATA", "WHEEL", "entry_points.txt")
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
    try:
        installed = importlib.metadata.distribution("cutset")
    except importlib.metadata.PackageNotFoundError:
        raise EngineError(
            f"this Cutset runs from {_PACKAGE} and was not installed, so nothing says what it"
            f" needs, and no wheel can be made of it; {_HOW}"
        ) from None
    if installed.version != __version__:
        raise EngineError(
            f"this Cutset is {__version__}, but what was installed says {installed.version}, so no"
            f" wheel can be made of it; install it again, or {_HOW}"
        )
    found = {name: installed.read_text(name) for name in _FROM_METADATA}
    lacking = [name for name, text in found.items() if not text]
    if lacking:
        raise EngineError(f"what is installed of Cutset lacks {', '.join(lacking)}; {_HOW}")
    return {name: (text or "").encode() for name, text in found.items()}


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
