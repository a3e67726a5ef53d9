"""The tutorials of docs/ssh.md and docs/cluster.md, typed as they stand on three nodes.

Three things stand in for what a testbed lacks: a node has a home folder of its own, ``scp`` copies
from one to another, and the weights and photographs lie in the first one's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from beds.wheels_of_installed import write_wheels
from cutset.engines.ssh.wheel import write_own_wheel
from docs.blocks import Block, blocks_of, commands_of
from testbed import state as stored
from testbed.cgroups import find_cgroups
from testbed.nodes import command_on, environment_on
from testbed.ssh import SSHD
from testbed.state import node_folder

ROOT = Path(__file__).parents[2]
_HERE = "the machine"
_LIMIT_S = 600
_SCP = """#!/bin/sh
# scp ADDRESS:FILE FILE, where the hosts are folders
from="${1%%:*}" file="${1#*:}"
exec cp "$HOMES/$from/$file" "$2"
"""


_SLOW_LINK = """
[[link.between]]
devices = ["pi-1", "pi-2"]
bandwidth = "20 Mbit/s"
"""


class Hosts:
    """The nodes of a testbed as the reader of the page sees them: hosts with files and a shell.

    Args:
        name: of the testbed.
        folder: for the home folders.

    Attributes:
        limited: whether what is typed has the limits of the node where it is typed.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.limited = True
        self._name = name
        self._folder = folder
        self._exports: dict[str, list[str]] = {}
        self._servers: list[subprocess.Popen[str]] = []
        (folder / "bin").mkdir()
        (folder / "bin" / "scp").write_text(_SCP)
        (folder / "bin" / "scp").chmod(0o755)

    def type_on(self, host: str, text: str) -> str:
        """All output of a command; what it exports holds for the host's later ones.

        Raises:
            AssertionError: it fails.
        """
        done = subprocess.run(
            self._command(host, text),
            env=self._environment(host),
            cwd=self.home(host),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"on {host}: {text}\n{done.stdout}"
        if text.startswith("export "):
            self._exports.setdefault(host, []).append(text)
        return done.stdout

    def serve_on(self, host: str, text: str, expected: tuple[str, ...]) -> None:
        """Starts a server, and waits until it says what it is expected to say."""
        server = subprocess.Popen(
            self._command(host, f"exec {text}"),
            env=self._environment(host),
            cwd=self.home(host),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._servers.append(server)
        assert server.stdout is not None
        for line in expected:
            assert next(said for said in server.stdout if "INFO" not in said) == f"{line}\n"

    def close(self) -> None:
        """Ends the servers."""
        for server in self._servers:
            server.terminate()
            server.communicate(timeout=60)

    def home(self, host: str) -> Path:
        """The folder in which a host's commands are typed."""
        if host == _HERE:
            return ROOT
        home = self._folder / stored.load(self._name).layout.node(host).address
        home.mkdir(exist_ok=True)
        return home

    def _command(self, host: str, text: str) -> list[str]:
        script = "\n".join([*self._exports.get(host, ()), text])
        if host == _HERE:
            return ["/bin/bash", "-c", script]
        state = stored.load(self._name)
        shell = ["/bin/bash", "-c", f"set -e\n{script}"]
        node = state.layout.node(host)
        return command_on(state, find_cgroups(), node, shell, limited=self.limited)

    def _environment(self, host: str) -> dict[str, str]:
        if host == _HERE:
            return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        state = stored.load(self._name)
        environment = environment_on(state, state.layout.node(host))
        for key in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
            environment.pop(key, None)
        return environment | {
            "HOME": str(self.home(host)),
            "HOMES": str(self._folder),
            "PATH": f"{self._folder / 'bin'}:{environment['PATH']}",
            # All nodes have one file system, and the tests of this folder one Ray each.
            "RAY_TMPDIR": str(self._folder / "ray"),
            "COLUMNS": "80",
        }


@pytest.fixture
def hosts(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    """Hosts in a folder with a short name: Ray makes sockets below it."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        hosts = Hosts(name, Path(folder))
        try:
            yield hosts
        finally:
            hosts.close()
            hosts.type_on(_HERE, f"python -m testbed down --name {name}")


def _prints(expected: tuple[str, ...], actual: str) -> bool:
    """Whether every line is there, in order; ``...`` in it stands for anything."""
    pattern = ".*".join(
        ".*".join(re.escape(part.strip()) for part in line.split("...")) for line in expected
    )
    return re.search(pattern, actual, re.DOTALL) is not None


def _type_block(hosts: Hosts, block: Block, name: str, folder: Path) -> None:
    for host in block.hosts:
        *commands, last = commands_of(block)
        if not block.serves:
            commands.append(last)
        for command in commands:
            text = command.text
            if host == _HERE:
                text = f"{text.replace('three.toml', str(folder / 'three.toml'))} --name {name}"
            said = hosts.type_on(host, text)
            assert _prints(command.output, said), f"line {block.line}: {text}\n{said}"
        if block.serves:
            hosts.serve_on(host, last.text, last.output)


def _type_page(page: str, hosts: Hosts, name: str, folder: Path, assets: ModuleType) -> int:
    """Types all that a page has its reader type; returns how many blocks that were."""
    typed = 0
    for block in blocks_of(ROOT / "docs" / page):
        if block.title:
            (folder / block.title).write_text(block.text)
        if block.hosts and ("probe" in block.text or "hosts install" in block.text):
            _put_assets(hosts, assets)
        if "hosts install" in block.text:
            _give_all_but_cutset(name)
            shutil.copy(folder / "pis.toml", hosts.home("server"))
        if block.hosts:
            _type_block(hosts, block, name, folder)
            typed += 1
    return typed


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_tutorial_from_an_empty_host_to_a_lost_one(
    name: str, hosts: Hosts, tmp_path: Path, assets: ModuleType
) -> None:
    pytest.importorskip("ray")
    assert _type_page("cluster.md", hosts, name, tmp_path, assets) == 12


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_tutorial_by_ssh_from_an_ssh_server_to_a_lost_host(
    name: str, hosts: Hosts, tmp_path: Path, assets: ModuleType
) -> None:
    if not SSHD.exists():
        pytest.skip(f"there is no {SSHD}")
    assert _type_page("ssh.md", hosts, name, tmp_path, assets) == 6


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_five_commands_from_an_ssh_server_to_labels_on_boards_of_256_mib(
    name: str, hosts: Hosts, tmp_path: Path, assets: ModuleType
) -> None:
    """The page's own commands; the machine where they are typed has no limit, its device has."""
    if not SSHD.exists():
        pytest.skip(f"there is no {SSHD}")
    own = write_own_wheel(tmp_path)
    wheels = write_wheels(own, tmp_path / "wheels")  # in the place of an internet
    small = f'memory_bytes = "256 MiB"\nenv = {{ PIP_NO_INDEX = "1", PIP_FIND_LINKS = "{wheels}" }}'
    blocks = blocks_of(ROOT / "docs" / "ssh.md")
    files = {block.title: block.text for block in blocks if block.title}
    bed = files["three.toml"].replace("[[device]]\n", f"[[device]]\n{small}\n")
    (tmp_path / "three.toml").write_text(bed + _SLOW_LINK)
    hosts.type_on(_HERE, f"python -m testbed up {tmp_path}/three.toml --ssh --name {name}")
    _put_assets(hosts, assets)
    python = 'python = "~/cutset/bin/python"\n'
    text = files["pis.toml"].replace(python, f"{python}{small}\n")
    server = re.compile(r'name = "server".*\n')
    own_board = f'address = "10.77.0.1"\n{python}{small}\nbackends = ["onnxruntime"]\n'
    text, count = server.subn(f'name = "server"\n{own_board}', text)
    assert count == 1
    (hosts.home("server") / "pis.toml").write_text(text + _SLOW_LINK)
    hosts.limited = False
    (typed,) = (block for block in blocks if "hosts install" in block.text and block.hosts)
    assert len(commands_of(typed)) <= 5
    _type_block(hosts, typed, name, tmp_path)
    state = stored.load(name)
    for node in state.layout.nodes:
        folder = node_folder(state.layout, node) / "home" / "cutset"
        assert not list(folder.glob("lib/python3*/site-packages/torch"))
    again = hosts.type_on("server", "cutset hosts install --cluster pis.toml")
    assert again.count("has this version already") == 3


def _give_all_but_cutset(name: str) -> None:
    """Gives every node an environment with what Cutset needs: a testbed has no internet."""
    state = stored.load(name)
    for node in state.layout.nodes[1:]:
        environment = node_folder(state.layout, node) / "home" / "cutset"
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        packages = next(environment.glob("lib/python3*/site-packages"))
        (packages / "others.pth").write_text(f"{Path(msgspec.__file__).parents[1]}\n")


def _put_assets(hosts: Hosts, assets: ModuleType) -> None:
    home = hosts.home("server")
    weights = assets.mobilenet_weights()
    shutil.copy(weights, home / weights.name)
    (home / "photographs").mkdir()
    for photograph in assets.photographs():
        shutil.copy(photograph, home / "photographs" / photograph.name)


def test_an_output_that_is_not_as_the_page_says_is_noticed() -> None:
    assert _prints(("...", "cat.png  Egyptian cat ..."), "noise\ncat.png  Egyptian cat  0.5\n")
    assert not _prints(("...", "cat.png  Egyptian cat ..."), "noise\ncat.png  tiger  0.5\n")
