"""A folder that is an aarch64 board: Debian's arm64 Python and wheels, run by qemu on this machine.

``ROOT/bin/python`` runs it, and can be a device's `python`. Nothing of this system is changed: apt
keeps its lists and packages in the folder, and nothing is installed outside of it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import Requirement

from cutset.engines.ssh.wheel import write_own_wheel
from testbed.commands import require_tools, run_tool
from testbed.errors import TestbedError

_QEMU = "qemu-aarch64-static"
_PACKAGES = ("python3", "libstdc++6")
_ONNXRUNTIME = "onnxruntime==1.26.0"
"""1.32.0 needs an instruction that qemu 7.2 does not have."""

PLATFORMS = (
    "manylinux2014",
    "manylinux_2_17",
    "manylinux_2_26",
    "manylinux_2_27",
    "manylinux_2_28",
)
"""What the tags of wheels that a board takes begin with; the processor follows."""

_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT_S = 900.0
_START_TIMEOUT_S = 120.0
_LAUNCHER = """#!/bin/sh
export PYTHONHOME='{root}/usr'
exec '{qemu}' -0 '{root}/bin/python' -L '{root}' '{root}/usr/bin/python3' "$@"
"""


def make_board(root: Path, progress: Callable[[str], None]) -> Path:
    """Fetches what an aarch64 board has; what is there already is kept.

    Args:
        root: the folder; its path may have no quote in it.
        progress: called with what is done next.

    Returns:
        The Python to name in a cluster file.

    Raises:
        TestbedError: this is no Debian, a tool is missing or fails, or the board does not start.
    """
    require_tools("apt-get", "dpkg-deb")
    root = root.absolute()
    if "'" in str(root):
        raise TestbedError(f"{root}: a board's folder may have no quote in its name")
    (root / "bin").mkdir(parents=True, exist_ok=True)
    launcher = root / "bin" / "python"
    if not (root / "usr" / "bin" / "python3").exists():
        progress("fetching Debian's arm64 Python")
        _unpack_python(root)
    qemu = shutil.which(_QEMU) or str(_own_qemu(root, progress))
    launcher.write_text(_LAUNCHER.format(root=root, qemu=qemu), encoding="utf-8")
    launcher.chmod(0o755)
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    python = run_tool([str(launcher), "-c", code], timeout_s=_START_TIMEOUT_S).split()[-1]
    progress("fetching aarch64 wheels")
    _install_wheels(root, python)
    progress("trying it")
    run_tool(
        [str(launcher), "-c", "import cutset.runtime.worker, onnxruntime"], timeout_s=_TIMEOUT_S
    )
    return launcher


def _unpack_python(root: Path) -> None:
    """Unpacks Python and all that it depends on, as apt finds out for an empty system."""
    own = root / "apt"
    for folder in ("lists/partial", "cache/archives/partial"):
        (own / folder).mkdir(parents=True, exist_ok=True)
    (own / "status").touch()
    (own / "sources.list").write_text(_debian_sources(), encoding="utf-8")
    apt = [
        *("apt-get", "-q", "-y", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures=arm64"),
        *("-o", f"Dir::State={own}", "-o", f"Dir::State::status={own}/status"),
        *("-o", f"Dir::State::lists={own}/lists", "-o", f"Dir::Cache={own}/cache"),
        *(
            "-o",
            f"Dir::Etc::sourcelist={own}/sources.list",
            "-o",
            "Dir::Etc::sourceparts=/dev/null",
        ),
        *("-o", "APT::Sandbox::User=root"),
    ]
    run_tool([*apt, "update"], timeout_s=_TIMEOUT_S)
    wanted = [*apt, "--no-install-recommends", "--download-only", "install", *_PACKAGES]
    run_tool(wanted, timeout_s=_TIMEOUT_S)
    for package in sorted((own / "cache" / "archives").glob("*.deb")):
        run_tool(["dpkg-deb", "-x", str(package), str(root)], timeout_s=_TIMEOUT_S)
    shutil.rmtree(own)


def _debian_sources() -> str:
    """Where this system's apt finds its own release of Debian.

    Raises:
        TestbedError: it has no Debian among its sources.
    """
    fields = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    said = run_tool(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"])
    for line in said.splitlines():
        origin, uri, release, component = line.split("|")
        if origin == "Debian" and component == "main" and "-" not in release:
            signed = f"[signed-by={_KEYS}] " if _KEYS.exists() else ""
            return f"deb {signed}{uri} {release} {component}\n"
    raise TestbedError("a board is made of Debian's packages, and this system's apt has none")


def _own_qemu(root: Path, progress: Callable[[str], None]) -> Path:
    """The qemu of Debian's package, where this system has none."""
    qemu = root / "qemu" / "usr" / "bin" / _QEMU
    if not qemu.exists():
        progress("fetching qemu")
        with tempfile.TemporaryDirectory() as folder:
            script = 'cd "$1" && apt-get -q -o APT::Sandbox::User=root download qemu-user-static'
            run_tool(["/bin/sh", "-c", script, "sh", folder], timeout_s=_TIMEOUT_S)
            (package,) = Path(folder).glob("*.deb")
            run_tool(["dpkg-deb", "-x", str(package), str(root / "qemu")], timeout_s=_TIMEOUT_S)
    return qemu


def _install_wheels(root: Path, python: str) -> None:
    """Puts Cutset and what it needs where Debian's Python looks for it."""
    target = root / "usr" / "local" / "lib" / f"python{python}" / "dist-packages"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    pip += ["--no-compile", "--upgrade", "--target", str(target)]
    with tempfile.TemporaryDirectory() as folder:
        wheel = write_own_wheel(Path(folder))
        if not (target / "onnxruntime").exists():
            there = ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
            for tag in PLATFORMS:
                there += ["--platform", f"{tag}_aarch64"]
            run_tool([*pip, *there, _ONNXRUNTIME, *_needs(wheel, python)], timeout_s=_TIMEOUT_S)
        run_tool([*pip, "--no-deps", str(wheel)], timeout_s=_TIMEOUT_S)


def _needs(wheel: Path, python: str) -> Sequence[str]:
    """What a wheel needs there; pip itself takes markers for those of the Python that runs it."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        texts = BytesParser().parsebytes(archive.read(name)).get_all("Requires-Dist", [])
    there = {"python_version": python, "platform_machine": "aarch64", "extra": ""}
    needs = map(Requirement, texts)
    return [f"{n.name}{n.specifier}" for n in needs if not n.marker or n.marker.evaluate(there)]
