"""Makes a clean environment that holds a built wheel, what it needs, and pytest.

``python tests/smoke/environment.py WHEEL FOLDER`` takes the packages that the wheel needs from the
environment that runs it, as hard links: torch alone unpacks to gigabytes, and they are the very
files that pip put there. The wheel itself is installed by pip, without an index, so that it says
what is missing. ``--extra NAME``, which may be repeated, is for what an extra brings.
``--torch VERSION --torchvision VERSION`` has pip install everything anew instead, the extra torch
included.
"""

from __future__ import annotations

import argparse
import email
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

BESIDE = ("pytest",)


def wheel_requirements(wheel: Path) -> list[str]:
    """What a wheel says it needs."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name)).get_all("Requires-Dist") or []


def closure(requirements: Iterable[str], extras: Iterable[str] = ()) -> dict[str, Distribution]:
    """All installed distributions that the requirements, with some extras, lead to, by name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), asked) for text in requirements for asked in ("", *extras)]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        found[name] = distribution(name)
        for asked in ("", *sorted(wanted.extras)):
            if (name, asked) not in seen:
                seen.add((name, asked))
                needs = found[name].requires or []
                waiting += [(Requirement(text), asked) for text in needs]
    return found


def link_files(package: Distribution, target: Path) -> None:
    """Puts the files of an installed distribution into another site-packages."""
    for file in package.files or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue  # scripts and byte code belong to the environment that they were made in
        source, place = Path(str(package.locate_file(file))), target / file
        if not source.is_file() or place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, place)
        except OSError:  # another file system
            shutil.copy2(source, place)


def main() -> None:
    """Makes the environment, or ends with pip's error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--extra", action="append", default=[])
    parser.add_argument("--torch")
    parser.add_argument("--torchvision")
    given = parser.parse_args()
    venv.create(given.folder, clear=True, with_pip=True)
    python = given.folder / "bin" / "python"
    if given.torch:
        wanted = [f"torch=={given.torch}", f"torchvision=={given.torchvision}", *BESIDE]
        given.extra.append("torch")
    else:
        wanted = ["--no-index"]
        asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        target = Path(subprocess.check_output(asked, text=True, timeout=120).strip())
        needed = [*wheel_requirements(given.wheel), *BESIDE]
        for package in closure(needed, given.extra).values():
            link_files(package, target)
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheel = f"{given.wheel}[{','.join(given.extra)}]" if given.extra else given.wheel
    subprocess.run([*pip, "install", *wanted, wheel], check=True, timeout=1800)
    subprocess.run([*pip, "check"], check=True, timeout=120)


if __name__ == "__main__":
    sys.exit(main())
