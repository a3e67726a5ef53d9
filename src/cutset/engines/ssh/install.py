"""Puts the caller's own version of Cutset on every device of a cluster, by ssh.

What is sent is one wheel, and others where these are given; a device's own pip brings the rest. A
device that has this version already is left as it is. Devices that share their folders are served
one after the other, and the first does it for all.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
import shlex
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import msgspec

from cutset.cluster.devices import Cluster
from cutset.engines.ssh.check import reach
from cutset.engines.ssh.client import (
    Target,
    as_script,
    in_folder,
    remote_path,
    targets_of,
)
from cutset.engines.ssh.connection import SshHost
from cutset.engines.ssh.troubles import Trouble, trouble_of
from cutset.engines.ssh.wheel import write_own_wheel
from cutset.errors import EngineError
from cutset.printable import printable
from cutset.progress import Progress, no_progress

_LIMIT_S = 3600
_LAST_LINES = 20
_SSH_FAILED = 255
_KILLED = 137
_MENDED_BY_INSTALLING = ("python", "cutset", "version")
_SCRIPT = """
set -e
mkdir -p -- {environment}
exec 9>>{environment}/.cutset-lock
any=python3; [ ! -x {python} ] || any={python}
"$any" -c 'import fcntl, signal; signal.alarm({limit_s}); fcntl.flock(9, fcntl.LOCK_EX)'
[ "$(cat {environment}/.cutset-made 2>/dev/null)" != {made} ] || exit 0
folder=$(mktemp -d {environment}/.cutset-XXXXXX)
trap 'rm -rf -- "$folder"' EXIT
export TMPDIR="$folder"
tar -xf - -C "$folder"
[ -x {python} ] || python3 -m venv -- {environment}
{python} -m pip --version >/dev/null 2>&1 || {python} -m ensurepip
pip() {{ {python} -m pip install --no-input --disable-pip-version-check --no-compile -q "$@"; }}
pip --force-reinstall --no-deps --no-index "$folder"/cutset-*.whl
pip {options} "$folder"/cutset-*.whl
echo {made} > {environment}/.cutset-made
"""
"""What a device's shell does. The lock is that of the shell's own descriptor, and ends with it.
What is unpacked lies in the environment's folder, as a board's /tmp may be its memory. The mark
tells the other devices that have this folder that this very call has been there."""

_FAILURES = (
    ("ensurepip", "install venv on it (Debian: sudo apt install python3-venv)"),
    (
        "No matching distribution|Could not find a version",
        "a device without internet needs --wheels FOLDER, with wheels for its processor and Python",
    ),
    ("requires a different Python", "install a newer Python on it"),
    (
        "python3: (command )?not found",
        "install Python on it (Debian: sudo apt install python3-venv)",
    ),
    (
        "externally-managed-environment",
        'the system keeps that Python; name an environment, python = "~/cutset/bin/python"',
    ),
    ("No space left|Errno 28", "make room on its disk: Cutset and what it needs take 250 MB"),
    ("Permission denied|Read-only file", "name an environment in a folder that its user may write"),
    ("Alarm clock", "another installation there does not end; see what pip does there"),
)
"""What pip and the shell say, as patterns, and what to do about it."""


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Script:
    """What every device gets: an archive of wheels, this call's mark, options for pip."""

    sent: Path
    made: str
    options: str


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
    progress("logging in")
    with (
        tempfile.TemporaryDirectory(prefix="cutset-wheel-") as folder,
        ThreadPoolExecutor(len(targets)) as pool,
    ):
        own = _checked(wheel) if wheel is not None else write_own_wheel(Path(folder))
        sent = _packed(Path(folder), [own, *others])
        script = _Script(
            sent=sent,
            made=secrets.token_hex(16),
            options='--no-index --find-links "$folder"' if wheels is not None else "",
        )
        # All are looked at before one is changed: several may share an environment.
        found = list(pool.map(_tried, targets))

        def install(target: Target, trouble: Trouble | None) -> Installation:
            return _installed(target, trouble, script, progress)

        return tuple(pool.map(install, targets, found))


def _installed(
    target: Target, found: Trouble | None, script: _Script, progress: Progress
) -> Installation:
    name = target.device.name
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
    left = _run(target, script) or _tried(target)
    return Installation(name=name, changed=True, trouble=left)


def _tried(target: Target) -> Trouble | None:
    """What is the matter with a device; None where it can be used."""
    found = reach(target)
    if isinstance(found, SshHost):
        found.kill().join(1.0)
        return None
    return found


def _run(target: Target, script: _Script) -> Trouble | None:
    """Makes the environment and installs; what went wrong, or None."""
    python = PurePosixPath(target.device.python or "")
    exports = [f"export {shlex.quote(f'{key}={value}')}" for key, value in target.device.env]
    text = (
        in_folder(target.device)
        + "\n".join(exports)
        + _SCRIPT.format(
            python=remote_path(str(python)),
            environment=remote_path(str(python.parent.parent)),
            limit_s=_LIMIT_S,
            made=script.made,
            options=script.options,
        )
    )
    try:
        with script.sent.open("rb") as sent:
            done = subprocess.run(  # noqa: S603  # the command line is `Target`'s own
                target.command(as_script(text)),
                stdin=sent,
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
    return _failed(done.returncode, lines)


def _failed(status: int, lines: Sequence[str]) -> Trouble:
    text = "\n".join(lines)
    if status == _KILLED:
        last = "pip was killed, as happens where memory does not suffice"
        return Trouble(
            kind="python",
            text=f"Cutset cannot be installed there ({last})",
            mend="free memory on it",
        )
    mends = (mend for pattern, mend in _FAILURES if re.search(pattern, text))
    last = next((line for line in reversed(lines) if line.strip()), f"exit status {status}")
    return Trouble(
        kind="python",
        text=f"Cutset cannot be installed there ({printable(last)})",
        mend=next(mends, "see what pip says there"),
    )


def _wheels_in(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise EngineError(f"{folder}: there are no wheels in it")
    return found


def _checked(wheel: Path) -> Path:
    if not (wheel.is_file() and wheel.name.startswith("cutset-") and wheel.suffix == ".whl"):
        raise EngineError(f"{wheel}: expected a wheel of Cutset, cutset-VERSION-py3-none-any.whl")
    return wheel


def _packed(folder: Path, wheels: Sequence[Path]) -> Path:
    """Writes an archive of wheels, the first of which is Cutset's own; another one is left out."""
    archive = folder / "wheels.tar"
    own = wheels[0].name
    names = {wheel.name: wheel for wheel in reversed(wheels)}
    with tarfile.open(archive, mode="w") as packed:
        for name, wheel in names.items():
            if name == own or not name.startswith("cutset-"):
                packed.add(wheel, arcname=name)
    return archive
