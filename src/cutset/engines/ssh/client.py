"""The command lines of the system's own ``ssh``, and of what it starts on a device.

The user's configuration, keys, agent, known hosts and jump hosts do the rest. Nothing asks at a
terminal, and no setting given here makes ssh trust a host that the user has not made known.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cutset.cluster.devices import Cluster, Device
from cutset.cluster.ssh_address import SshAddress, read_ssh_address
from cutset.engines.ssh.board_calls import KEEP
from cutset.errors import EngineError
from cutset.processes import command_of
from cutset.programs import PROGRAMS

CONFIG_VARIABLE = "CUTSET_SSH_CONFIG"
CONNECT_TIMEOUT_S = 10
FOLDER_STATUS = 93
"""The exit status where a device's working folder cannot be made."""

_CONFIG_TIMEOUT_S = 30.0
_PROGRAM = "board"
_OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": str(CONNECT_TIMEOUT_S),
    "ConnectionAttempts": "1",
    "TCPKeepAlive": "yes",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    # A connection of its own for each worker, so that ending it ends the worker and nothing else.
    "ControlMaster": "no",
    "ControlPath": "none",
    # What a user may have set for logging in, and what has no place here.
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
}
_CARELESS = ("no", "off", "false")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A device, and how ssh gets there.

    Attributes:
        device: of the cluster.
        address: None for this machine itself, where no ssh is needed.
        config: file of ssh's settings instead of the user's own, or None.
        options: further settings for ssh.
    """

    device: Device
    address: SshAddress | None
    config: str | None = None
    options: tuple[str, ...] = ()

    @property
    def login(self) -> str:
        """What a person types to log in there."""
        assert self.address is not None
        return shlex.join([*self._program("ssh"), *_typed(self.address)])

    @property
    def copy_id(self) -> str:
        """What a person types to have the own key accepted there."""
        assert self.address is not None
        return shlex.join([*self._program("ssh-copy-id"), *_typed(self.address)])

    def command(self, remote: str) -> list[str]:
        """The command line that runs `remote`, for a shell, on the device."""
        if self.address is None:
            return ["/bin/sh", "-c", remote]
        settings = [f"{key}={value}" for key, value in _OPTIONS.items()]
        options = [word for setting in settings for word in ("-o", setting)]
        return [
            *self._program("ssh"),
            *("-T", "-x", "-a"),
            *options,
            *self.options,
            *self.address.arguments,
            remote,
        ]

    def board_command(self) -> list[str]:
        """The command line that starts `cutset.engines.ssh.board` on the device."""
        if self.address is None:
            variables = [f"{name}={text}" for name, text in self.device.env]
            names = [name for name, _ in self.device.env]
            return ["env", *variables, *command_of(_PROGRAM), KEEP, *names]
        return self.command(remote_command(self.device))

    def _program(self, name: str) -> list[str]:
        return [name, *(("-F", self.config) if self.config else ())]


def _typed(address: SshAddress) -> list[str]:
    port = ["-p", str(address.port)] if address.port else []
    return [*port, f"{address.user}@{address.host}" if address.user else address.host]


def targets_of(cluster: Cluster) -> dict[str, Target]:
    """The devices of a cluster by name.

    Raises:
        EngineError: there is no ssh; a device has no address, or one that is none; the file of
            settings is not there or is not understood.
    """
    config = cluster.ssh_config or os.environ.get(CONFIG_VARIABLE) or None
    if config is not None:
        config = str(Path(config).expanduser())
        if not Path(config).is_file():
            raise EngineError(f"{config}: there is no such file of ssh's settings")
    return {device.name: _target_of(device, cluster, config) for device in cluster.devices}


def _target_of(device: Device, cluster: Cluster, config: str | None) -> Target:
    if device.address is None:
        if device.name == cluster.caller:
            return Target(device=device, address=None)
        raise EngineError(
            f"device {device.name!r} has no address, so ssh does not find it; give it"
            ' address = "USER@HOST" in the cluster file'
        )
    try:
        address = read_ssh_address(device.address)
    except ValueError as error:
        raise EngineError(f"device {device.name!r}: {error}") from error
    target = Target(device=device, address=address, config=config)
    strict = _settings_for(target).get("stricthostkeychecking", "ask")
    # New keys may be welcome, for that is what the user says; changed ones never are.
    options = ("-o", "StrictHostKeyChecking=accept-new") if strict in _CARELESS else ()
    return dataclasses.replace(target, options=options)


def _settings_for(target: Target) -> Mapping[str, str]:
    """The settings with which ssh would log in to a device.

    Raises:
        EngineError: there is no ssh, or it does not understand its configuration.
    """
    if shutil.which("ssh") is None:
        raise EngineError(
            "the engine 'ssh' needs the program ssh, which is not on this machine's PATH; install"
            " OpenSSH's client (Debian: apt install openssh-client)"
        )
    assert target.address is not None
    command = [*target._program("ssh"), "-G", *target.address.arguments]
    try:
        done = subprocess.run(  # noqa: S603  # the address was checked, and no shell reads it
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_CONFIG_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"`{shlex.join(command)}` does not work: {error}") from error
    if done.returncode:
        words = " ".join(done.stderr.decode(errors="replace").split())
        raise EngineError(f"ssh does not understand its settings for {target.address}: {words}")
    lines = (line.partition(" ") for line in done.stdout.decode(errors="replace").splitlines())
    return {key: value for key, _, value in lines}


def remote_command(device: Device) -> str:
    """What starts `cutset.engines.ssh.board` on a device, for whatever shell its user has there."""
    code = (
        "import sys; sys.path[:] = [path for path in sys.path if path];"
        " from cutset.launch import keep; keep();"
        f" from {PROGRAMS[_PROGRAM]} import main; main()"
    )
    python = remote_path(device.python or "python3")
    variables = " ".join(shlex.quote(f"{name}={text}") for name, text in device.env)
    names = " ".join(name for name, _ in device.env)
    lines = [f"exec env {variables} {python} -c {shlex.quote(code)} {names}"]
    if device.folder is not None:
        lines = [': "${CUTSET_CACHE_DIR:=$PWD/cache}"', "export CUTSET_CACHE_DIR", *lines]
    return as_script(in_folder(device) + "\n".join(lines))


def in_folder(device: Device) -> str:
    """The line of a script that goes to the device's working folder, if it has one."""
    if device.folder is None:
        return ""
    folder = remote_path(device.folder)
    return f"mkdir -p -- {folder} && cd -- {folder} || exit {FOLDER_STATUS}\n"


def as_script(text: str) -> str:
    """A command that runs a script by ``sh`` in the place of the user's own shell."""
    return f"exec sh -c {shlex.quote(text)}"


def remote_path(path: str) -> str:
    """A path on a device, quoted; ``~/`` is its user's home folder."""
    if path.startswith("~/"):
        return f'"$HOME"/{shlex.quote(path[2:])}'
    return shlex.quote(path)
