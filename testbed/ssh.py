"""A real sshd on every node, and what a caller needs to log in: keys, settings, a cluster file."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from cutset.cluster.devices import Cluster
from cutset.cluster.file_writer import cluster_to_toml
from testbed.cgroups import Cgroups
from testbed.commands import run_tool
from testbed.errors import TestbedError
from testbed.layout import Layout, Node
from testbed.nodes import command_on, environment_on
from testbed.state import State, cluster_file, node_folder, ssh_config, ssh_key

SSHD = Path("/usr/sbin/sshd")

_PRIVILEGE_FOLDER = Path("/run/sshd")  # where the system's own service would have made it
_START_TIMEOUT_S = 30.0
_PAUSE_S = 0.02
_SERVER = """
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
Subsystem sftp internal-sftp
SetEnv HOME={folder}/home XDG_CACHE_HOME={folder}/cache
"""
_CLIENT = """
Host {names}
  User root
  IdentityFile {key}
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile /dev/null
"""


def prepare_ssh(layout: Layout, cluster: Cluster) -> None:
    """Makes the keys, the servers' settings, and the caller's settings and cluster file.

    Raises:
        TestbedError: a tool failed.
    """
    key = ssh_key(layout.name)
    _make_key(key)
    known, names = [], []
    for node in layout.nodes:
        folder = node_folder(layout, node)
        _make_key(folder / "host_key")
        (folder / "home").mkdir()
        (folder / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
        settings = _SERVER.format(address=node.address, folder=folder)
        (folder / "sshd_config").write_text(settings)
        public = (folder / "host_key.pub").read_text().rsplit(" ", 1)[0]
        known.append(f"{node.name},{node.address} {public}")
        names += [f"Host {node.name}", f"  HostName {node.address}"]
    config = ssh_config(layout.name)
    (config.parent / "known_hosts").write_text("\n".join(known) + "\n")
    every = " ".join(name for node in layout.nodes for name in (node.name, node.address))
    common = _CLIENT.format(names=every, key=key, folder=config.parent)
    config.write_text("\n".join(names) + "\n" + common)
    cluster_file(layout.name).write_text(cluster_to_toml(_reachable(cluster, config)))


def _make_key(path: Path) -> None:
    run_tool(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", str(path)])


def _reachable(cluster: Cluster, config: Path) -> Cluster:
    """The cluster as the engine `ssh` finds it on the testbed."""
    devices = tuple(
        msgspec.structs.replace(
            device, address=device.name, profile=None, python=device.python or sys.executable
        )
        for device in cluster.devices
    )
    return msgspec.structs.replace(cluster, devices=devices, engine="ssh", ssh_config=str(config))


def start_sshd(state: State, cgroups: Cgroups, node: Node) -> None:
    """Starts the ssh server of `node`, and waits until it listens.

    Raises:
        TestbedError: it does not.
    """
    folder = node_folder(state.layout, node)
    log = folder / "sshd.log"
    log.unlink(missing_ok=True)
    _PRIVILEGE_FOLDER.mkdir(exist_ok=True, mode=0o755)
    command = [str(SSHD), "-f", str(folder / "sshd_config"), "-E", str(log)]
    run_tool(
        command_on(state, cgroups, node, command),
        timeout_s=_START_TIMEOUT_S,
        environment=environment_on(state, node),
    )
    give_up_s = time.monotonic() + _START_TIMEOUT_S
    while not (log.exists() and "Server listening" in log.read_text()):
        if time.monotonic() > give_up_s:
            raise TestbedError(f"sshd does not listen on {node.name}; see {log}")
        time.sleep(_PAUSE_S)
