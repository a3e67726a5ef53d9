"""What is wrong with a device that ssh cannot start Cutset on, and the command that mends it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from cutset.engines.ssh.client import FOLDER_STATUS, Target
from cutset.printable import printable

_SHELL_FINDS_NONE = (126, 127)
_SSH_FAILED = 255


class Trouble(msgspec.Struct, frozen=True, kw_only=True):
    """Why a device cannot be used.

    Attributes:
        kind: ``"name"``, ``"away"``, ``"key"``, ``"login"``, ``"folder"``, ``"python"``,
            ``"cutset"``, ``"version"``, ``"backend"`` or ``"other"``.
        text: what is wrong.
        mend: what to do about it.
    """

    kind: str
    text: str
    mend: str

    def __str__(self) -> str:
        """Both in a sentence."""
        return f"{self.text}; {self.mend}" if self.mend else self.text

    @property
    def passes(self) -> bool:
        """Whether it may be over without anybody's doing."""
        return self.kind in ("name", "away", "other")


def trouble_of(target: Target, status: int | None, lines: Sequence[str]) -> Trouble:
    """What was the matter, from how ssh ended and what it and the device wrote.

    Args:
        target: the device.
        status: ssh's exit status; None where it was ended for taking too long.
        lines: of its standard error.
    """
    words = [printable(line) for line in lines if line.strip()]
    text = "\n".join(words)
    last = words[-1] if words else ""
    if target.address is not None and status == _SSH_FAILED:
        found = _ssh_trouble(target, text, last)
        if found is not None:
            return found
    return _device_trouble(target, status, text, last)


def _ssh_trouble(target: Target, text: str, last: str) -> Trouble | None:
    """What ssh itself says."""
    if "Could not resolve hostname" in text:
        return Trouble(
            kind="name",
            text=f"no host is called {target.address and target.address.host}",
            mend="write its address into the cluster file, or its name into ~/.ssh/config",
        )
    if "IDENTIFICATION HAS CHANGED" in text:
        return Trouble(
            kind="key",
            text="it shows another key than before, as a newly installed host does, or an impostor",
            mend=f"where you know why, forget the former key: ssh-keygen -R"
            f" {_known_name(target)}, then `{target.login}`",
        )
    if "Host key verification failed" in text or "requested strict checking" in text:
        return Trouble(
            kind="key",
            text="its key is not known here",
            mend=f"make it known: `{target.login}`, and say yes where the fingerprint is its own",
        )
    if denied := re.search(r"Permission denied \(([^)]*)\)", text):
        return _login_trouble(target, denied[1])
    if "Too many authentication failures" in text:
        return Trouble(
            kind="login",
            text="it refuses this user after too many keys",
            mend="name the right key: IdentityFile and IdentitiesOnly yes in ~/.ssh/config",
        )
    away = re.search(
        r"(Connection (refused|timed out|reset|closed)[^\n]*|No route to host|Network is"
        r" unreachable|Operation timed out|banner exchange[^\n]*|not responding)",
        text,
    )
    if away:
        hint = "start its ssh server" if "refused" in away[0] else "see that it is switched on"
        return Trouble(
            kind="away", text=f"it does not answer ({last})", mend=f"{hint}, then `{target.login}`"
        )
    return None


def _login_trouble(target: Target, ways: str) -> Trouble:
    asks = "password" in ways or "keyboard-interactive" in ways
    return Trouble(
        kind="login",
        text="it accepts none of this machine's keys for this user"
        + (" and would ask for a password, which Cutset never does" if asks else ""),
        mend=f"check the user's name; then `{target.copy_id}`"
        + ("" if asks else ", or put your public key into its ~/.ssh/authorized_keys"),
    )


def _device_trouble(target: Target, status: int | None, text: str, last: str) -> Trouble:
    """What the device's shell or Python says."""
    python = target.device.python or "python3"
    if status == FOLDER_STATUS:
        return Trouble(
            kind="folder",
            text=f"its working folder {target.device.folder} cannot be used ({last})",
            mend="name another folder in the cluster file",
        )
    if status in _SHELL_FINDS_NONE:
        return Trouble(
            kind="python",
            text=f"there is no Python at {python} ({last})",
            mend="`cutset hosts install --cluster FILE`, or name another python in the file",
        )
    if missing := re.search(r"(?:No module named|from) '(cutset[^']*)'", text):
        former = missing[1] != "cutset"
        return Trouble(
            kind="version" if former else "cutset",
            text=f"{python} has {'an older' if former else 'no'} Cutset",
            mend="`cutset hosts install --cluster FILE`",
        )
    if missing := re.search(r"No module named '([^']*)'", text):
        return Trouble(
            kind="cutset",
            text=f"Cutset there lacks the package {missing[1]}",
            mend="`cutset hosts install --cluster FILE`",
        )
    if status is None:
        return Trouble(
            kind="away", text="it does not answer in time", mend="see whether it is busy or frozen"
        )
    return Trouble(
        kind="other",
        text=f"the connection ended with status {status}" + (f": {last}" if last else ""),
        mend="",
    )


def _known_name(target: Target) -> str:
    assert target.address is not None
    host, port = target.address.host, target.address.port
    return f"'[{host}]:{port}'" if port else host
