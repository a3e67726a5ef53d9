"""Running the system's own tools, with a time limit and with what they said in the error."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence

from testbed.errors import TestbedError

_LAST_WORDS_CHARS = 2000
_PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "nsenter": "util-linux",
    "taskset": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
}


def require_tools(*tools: str) -> None:
    """Says which of these commands is not there.

    Raises:
        TestbedError: one is not.
    """
    for tool in tools:
        if shutil.which(tool) is None:
            package = _PACKAGES.get(tool)
            hint = f"; install the package {package}" if package else ""
            raise TestbedError(f"the command {tool!r} is missing{hint}")


def run_tool(
    arguments: Sequence[str],
    *,
    timeout_s: float = 10.0,
    environment: Mapping[str, str] | None = None,
    standard_input: str | None = None,
) -> str:
    """Runs a tool to its end and returns what it printed to stdout.

    Args:
        arguments: the tool and its arguments; no shell is involved.
        timeout_s: seconds after which it is killed.
        environment: variables in place of this process's own; None keeps these.
        standard_input: what it reads.

    Raises:
        TestbedError: it is not there, failed, or took too long.
    """
    require_tools(arguments[0])
    try:
        # The arguments are the testbed's own; a name out of a cluster file is never an option.
        done = subprocess.run(  # noqa: S603
            list(arguments),
            input=standard_input,
            stdin=subprocess.DEVNULL if standard_input is None else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TestbedError(
            f"{_short(arguments)} did not end within {timeout_s:g} s{_words(error.stdout or b'')}"
        ) from error
    if done.returncode != 0:
        raise TestbedError(
            f"{_short(arguments)} failed with exit status {done.returncode}{_words(done.stdout)}"
        )
    return done.stdout


def _short(arguments: Sequence[str]) -> str:
    text = " ".join(arguments)
    return f"`{text if len(text) <= 300 else text[:297] + '...'}`"


def _words(said: str | bytes) -> str:
    text = (said.decode(errors="replace") if isinstance(said, bytes) else said).strip()
    return f": {text[-_LAST_WORDS_CHARS:]}" if text else ""
