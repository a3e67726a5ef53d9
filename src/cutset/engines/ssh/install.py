"""Puts the caller's own version of Cutset on every device of a cluster, by ssh.

What is sent is one wheel, and others where these are given; a device's own pip brings the rest. A
device that has this version already is left as it is.
"""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import msgspec

from cutset.cluster.devices import Cluster
from cutset.engines.ssh.check import reach
from cutset.engines.ssh.client import Target, as_script, remote_path, targets_of
from cutset.engines.ssh.connection import SshHost
from cutset.engines.ssh.troubles import Trouble, trouble_of
from cutset.engines.ssh.wheel import write_own_wheel
from cutset.errors import EngineError
from cutset.progress import Progress, no_progress

_LIMIT_S = 3600.0
_LAST_LINES = 20
_SSH_FAILED = 255
_MENDED_BY_INSTALLING = ("python", "cutset", "version")
_SCRIPT = """
set -e
[ -x {python} ] || python3 -m venv -- {environment}
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
tar -xf - -C "$folder"
pip() {{ {python} -m pip install --no-input --disable-pip-version-check -q "$@"; }}
pip {options} "$folder"/cutset-*.whl
pip --force-reinstall --no-deps "$folder"/cutset-*.whl
"""


class Installation(msgspec.Struct, frozen=True, kw_only=True):
    """What was done on one device.

    Attributes:
        name: of the device.
        changed: whether anything was installed.
        trouble: why it cannot be used; None where it can.
    """

    name: str
    changed: bool = False
    trouble: Trouble | None = None


def install_on_hosts(
    cluster: Cluster,
    *,
    wheel: Path | None = None,
    wheels: Path | None = None,
    progress: Progress = no_progress,
) -> tuple[Installation, ...]:
    """Installs Cutset on every device that lacks it or has another version.

    Args:
        cluster: whose devices; each says by `python` in which environment.
        wheel: of Cutset; where None, one is made of what is installed here.
        wheels: a folder with the wheels of all that Cutset needs on the devices, for those without
            internet.
        progress: told of every step.

    Raises:
        EngineError: there is no ssh, no wheel can be made, or one that was named is none.
    """
    targets = list(targets_of(cluster).values())
    others = _wheels_in(wheels) if wheels is not None else []
    with tempfile.TemporaryDirectory(prefix="cutset-wheel-") as folder:
        own = _checked(wheel) if wheel is not None else write_own_wheel(Path(folder))
        sent = _packed([own, *(other for other in others if other.name != own.name)])
    options = '--no-index --find-links "$folder"' if wheels is not None else ""

    def install(target: Target) -> Installation:
        return _installed(target, sent, options, progress)

    with ThreadPoolExecutor(len(targets)) as pool:
        return tuple(pool.map(install, targets))


def _installed(target: Target, sent: bytes, options: str, progress: Progress) -> Installation:
    name = target.device.name
    progress(f"logging in to {name}")
    found = _tried(target)
    if found is None or found.kind not in _MENDED_BY_INSTALLING:
        return Installation(name=name, trouble=found)
    python = target.device.python or ""
    if PurePosixPath(python).parent.name != "bin":
        trouble = Trouble(
            kind="python",
            text="the cluster file names no environment to install into",
            mend='give the device python = "~/cutset/bin/python"',
        )
        return Installation(name=name, trouble=trouble)
    progress(f"installing on {name}")
    left = _run(target, sent, options) or _tried(target)
    return Installation(name=name, changed=True, trouble=left)


def _tried(target: Target) -> Trouble | None:
    """What is the matter with a device; None where it can be used."""
    found = reach(target)
    if isinstance(found, SshHost):
        found.kill().join(1.0)
        return None
    return found


def _run(target: Target, sent: bytes, options: str) -> Trouble | None:
    """Makes the environment and installs; what went wrong, or None."""
    python = target.device.python or ""
    script = _SCRIPT.format(
        python=remote_path(python),
        environment=remote_path(str(PurePosixPath(python).parent.parent)),
        options=options,
    )
    try:
        done = subprocess.run(  # noqa: S603  # the command line is `Target`'s own
            target.command(as_script(script)),
            input=sent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Trouble(kind="other", text=f"installing did not end: {error}", mend="")
    if done.returncode == 0:
        return None
    lines = done.stdout.decode(errors="replace").splitlines()[-_LAST_LINES:]
    if done.returncode == _SSH_FAILED:
        return trouble_of(target, done.returncode, lines)
    return _failed(lines)


def _failed(lines: Sequence[str]) -> Trouble:
    text = "\n".join(lines)
    mend = "see what pip says there"
    if "ensurepip" in text:
        mend = "install venv on it (Debian: sudo apt install python3-venv)"
    elif "No matching distribution" in text or "Could not find a version" in text:
        mend = "a device without internet needs --wheels FOLDER, with wheels for its processor"
    elif "requires a different Python" in text:
        mend = "install a newer Python on it"
    elif "python3: not found" in text:
        mend = "install Python on it (Debian: sudo apt install python3-venv)"
    last = next((line for line in reversed(lines) if line.strip()), "")
    return Trouble(kind="python", text=f"Cutset cannot be installed there ({last})", mend=mend)


def _wheels_in(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise EngineError(f"{folder}: there are no wheels in it")
    return found


def _checked(wheel: Path) -> Path:
    if not (wheel.is_file() and wheel.name.startswith("cutset-") and wheel.suffix == ".whl"):
        raise EngineError(f"{wheel}: expected a wheel of Cutset, cutset-VERSION-py3-none-any.whl")
    return wheel


def _packed(wheels: Sequence[Path]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for wheel in wheels:
            archive.add(wheel, arcname=wheel.name)
    return buffer.getvalue()
