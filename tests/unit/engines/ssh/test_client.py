from __future__ import annotations

import itertools
import os
import subprocess
from pathlib import Path

import pytest

from cutset.cluster.devices import Cluster, Device
from cutset.engines.ssh.client import Target, remote_command, targets_of
from cutset.errors import EngineError

_FAKE_PYTHON = """#!/bin/sh
echo "$0" > "$OUT/name"
printf '%s\\n' "$@" > "$OUT/arguments"
echo "$SAYS" > "$OUT/says"
echo "$CUTSET_CACHE_DIR" > "$OUT/cache"
pwd > "$OUT/folder"
"""


def _cluster(address: str | None = "pi@10.0.0.1:2222", **more: object) -> Cluster:
    return Cluster(devices=(Device(name="a", address=address),), **more)  # type: ignore[arg-type]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with a space in its name, and a Python that says how it was called."""
    home = tmp_path / "a home"
    python = home / "my env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(_FAKE_PYTHON)
    python.chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OUT", str(tmp_path))
    return home


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_what_a_login_shell_makes_of_the_command(home: Path, tmp_path: Path, shell: str) -> None:
    device = Device(
        name="a",
        address="x",
        python="~/my env/bin/python",
        folder="~/it's here; $(touch $OUT/never)",
        env=(("SAYS", "a 'b' $HOME `id` \\"),),
    )
    command = remote_command(device)
    done = subprocess.run([shell, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "name").read_text() == f"{home}/my env/bin/python\n"
    option, code, name = (tmp_path / "arguments").read_text().rstrip("\n").split("\n")
    assert (option, name) == ("-c", "SAYS")
    assert "from cutset.engines.ssh.board import main; main()" in code
    assert (tmp_path / "says").read_text() == "a 'b' $HOME `id` \\\n"
    folder = home / "it's here; $(touch $OUT/never)"
    assert (tmp_path / "folder").read_text() == f"{folder}\n"
    assert (tmp_path / "cache").read_text() == f"{folder}/cache\n"
    assert not (tmp_path / "never").exists()


def test_a_folder_that_cannot_be_made_has_a_status_of_its_own(home: Path) -> None:
    device = Device(name="a", address="x", python="~/my env/bin/python", folder="/dev/null/x")
    done = subprocess.run(
        ["/bin/sh", "-c", remote_command(device)], capture_output=True, check=False
    )
    assert done.returncode == 93


def test_the_command_line_asks_nothing_and_trusts_nobody_new() -> None:
    command = targets_of(_cluster())["a"].command("true")
    assert command[0] == "ssh"
    assert command[-7:] == ["-l", "pi", "-p", "2222", "--", "10.0.0.1", "true"]
    settings = dict(
        setting.split("=", 1) for option, setting in itertools.pairwise(command) if option == "-o"
    )
    assert settings["BatchMode"] == "yes"
    assert settings["ControlPath"] == "none"
    assert int(settings["ServerAliveInterval"]) * int(settings["ServerAliveCountMax"]) <= 30
    assert int(settings["ConnectTimeout"]) <= 30
    assert "StrictHostKeyChecking" not in settings


@pytest.mark.parametrize("careless", ["no", "off"])
def test_a_user_who_checks_no_keys_still_has_changed_ones_refused(
    tmp_path: Path, careless: str
) -> None:
    config = tmp_path / "config"
    config.write_text(f"Host *\n  StrictHostKeyChecking {careless}\n")
    command = targets_of(_cluster(ssh_config=str(config)))["a"].command("true")
    assert command[1:3] == ["-F", str(config)]
    assert "StrictHostKeyChecking=accept-new" in command


@pytest.mark.parametrize("word", ["ask", "yes", "accept-new"])
def test_other_wishes_about_keys_are_the_users_own(tmp_path: Path, word: str) -> None:
    config = tmp_path / "config"
    config.write_text(f"StrictHostKeyChecking {word}\n")
    assert targets_of(_cluster(ssh_config=str(config)))["a"].options == ()


def test_a_file_of_settings_may_stand_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "my config"
    config.write_text("Host *\n  User ann\n")
    monkeypatch.setenv("CUTSET_SSH_CONFIG", str(config))
    target = targets_of(_cluster("host"))["a"]
    assert target.login == f"ssh -F '{config}' host"
    assert target.copy_id == f"ssh-copy-id -F '{config}' host"
    monkeypatch.setenv("CUTSET_SSH_CONFIG", str(tmp_path / "none"))
    with pytest.raises(EngineError, match="none: there is no such file of ssh's settings"):
        targets_of(_cluster())


def test_settings_that_ssh_does_not_understand_are_told(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  NoSuchThing yes\n")
    with pytest.raises(EngineError) as caught:
        targets_of(_cluster(ssh_config=str(config)))
    assert "ssh does not understand its settings for pi@10.0.0.1:2222" in str(caught.value)
    assert "nosuchthing" in str(caught.value)


def test_without_ssh_one_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError) as caught:
        targets_of(_cluster())
    assert "needs the program ssh, which is not on this machine's PATH" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_device_without_an_address_is_this_machine_if_the_caller_is_on_it() -> None:
    target = targets_of(_cluster(None, caller="a"))["a"]
    assert target.address is None
    assert target.board_command()[-2:] == ["cutset.engines.ssh.board", "--keep"]
    with pytest.raises(EngineError, match="device 'a' has no address"):
        targets_of(_cluster(None))
    with pytest.raises(EngineError, match=r"device 'a': .* is no host"):
        targets_of(_cluster("-oX=y"))


def test_nothing_of_the_command_is_lost_on_its_way_through_ssh(tmp_path: Path) -> None:
    """ssh joins words with spaces, so the remote command has to be one word."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\nfor last; do :; done\nexec sh -c "$last"\n')
    ssh.chmod(0o755)
    target = Target(device=Device(name="a"), address=targets_of(_cluster())["a"].address)
    done = subprocess.run(
        target.command("echo 'a  b'"),
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "a  b\n"
