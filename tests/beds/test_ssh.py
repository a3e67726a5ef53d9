"""The engine `ssh` on a testbed: three nodes with nothing but an sshd."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from beds.clusters import built_with_ssh
from beds.streams import (
    END_S,
    NODES,
    NUM_ROWS,
    THREE_NODES,
    Caller,
    assert_coded,
    assert_nothing_of_ours,
    objects_of,
    signal_workers,
    write_coded,
)
from cutset.bundles.open import open_bundle
from cutset.version import __version__
from testbed.cgroups import find_cgroups
from testbed.nodes import command_on, environment_on
from testbed.state import State, cluster_file, node_folder, ssh_config


@pytest.fixture(scope="module")
def bed(machine: None) -> Iterator[State]:
    with built_with_ssh(THREE_NODES) as state:
        yield state


def _on_server(
    bed: State, *words: str, check: bool = True, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Types a command on the first node, without its limits."""
    node = bed.layout.head
    done = subprocess.run(
        command_on(bed, find_cgroups(), node, list(words), limited=False),
        env=environment_on(bed, node) | variables,
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_every_row_through_three_nodes_and_each_node_gets_its_own_shard_once(
    bed: State, bundle: Path, rows: Path
) -> None:
    result = Caller(bed, str(cluster_file(bed.layout.name)), bundle, rows).follow({})
    assert result == {
        "asked": NUM_ROWS,
        "answered": NUM_ROWS,
        "wrong": [],
        "epoch": 1,
        "devices": list(NODES),
        "restarts": [0, 0, 0],
        "received_bytes": [NUM_ROWS * 3 * 16 * 16 * 4, NUM_ROWS * 8192, NUM_ROWS * 1024],
    }
    files = open_bundle(bundle).manifest.files
    folders = {}
    for stage, name in enumerate(NODES):
        own = {entry.sha256 for entry in files if entry.path.startswith(f"stage-{stage}/")}
        kept = objects_of(bed, name)
        assert own < kept
        assert len(kept) == len(own) + 1  # and the manifest
        folder = node_folder(bed.layout, bed.layout.node(name)) / "cache" / "cutset" / "objects"
        folders[folder] = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert_nothing_of_ours(bed)
    # Nothing is sent a second time: the files are the very same.
    _on_server(bed, "cutset", "run", str(bundle), str(_some_rows(bundle)), *_cluster(bed))
    for folder, inodes in folders.items():
        assert {path.name: path.stat().st_ino for path in folder.iterdir()} == inodes
    assert_nothing_of_ours(bed)


def _cluster(bed: State) -> tuple[str, str]:
    return "--cluster", str(cluster_file(bed.layout.name))


def _some_rows(bundle: Path) -> Path:
    file = bundle.parent / "some.npy"
    np.save(file, np.zeros((3, 3, 16, 16), np.float32))
    return file


def test_images_int8_and_fp16_travel_between_hosts_and_answers_are_the_coded_models(
    bed: State, tmp_path: Path
) -> None:
    coded, images = write_coded(tmp_path)
    proof = json.loads(_on_server(bed, "cutset", "verify", str(coded), "--json").stdout)
    assert (proof["ok"], proof["bit_exact"]) == (True, True)
    assert proof["agreement"]["num_rows"] == 2
    assert_coded(Caller(bed, str(cluster_file(bed.layout.name)), coded, images).follow({}))
    assert_nothing_of_ours(bed)


@pytest.mark.soak
def test_the_callers_own_machine_is_a_device_that_needs_no_ssh(
    bed: State, bundle: Path, rows: Path, tmp_path: Path
) -> None:
    text = cluster_file(bed.layout.name).read_text().replace('address = "server"\n', "")
    file = tmp_path / "here.toml"
    file.write_text(text)
    result = Caller(bed, str(file), bundle, rows).follow(
        {300: lambda: signal_workers(bed, "pi-1", signal.SIGKILL)}
    )
    assert (result["answered"], result["wrong"]) == (NUM_ROWS, [])
    assert result["devices"] == list(NODES)
    done = _on_server(bed, "cutset", "hosts", "check", "--cluster", str(file), "--json")
    assert all(host["ok"] for host in json.loads(done.stdout)["hosts"])
    assert_nothing_of_ours(bed)


# --- what can be wrong


def _changed(bed: State, tmp_path: Path, **changes: str) -> str:
    """The bed's cluster file with another value for a key of the device pi-1."""
    text = cluster_file(bed.layout.name).read_text()
    head, found, tail = text.partition('name = "pi-1"\n')
    for key, value in changes.items():
        tail, count = re.subn(rf"(?m)^{key} = .*$", f'{key} = "{value}"', tail, count=1)
        assert count == 1
    file = tmp_path / "changed.toml"
    file.write_text(head + found + tail)
    return str(file)


def _run(bed: State, bundle: Path, cluster: str, **variables: str) -> str:
    """What the command says that has to end with exit code 6, in one line."""
    words = ["cutset", "run", str(bundle), str(_some_rows(bundle)), "--cluster", cluster]
    done = _on_server(bed, *words, check=False, **variables)
    assert done.returncode == 6, done.stderr
    return done.stderr.strip().splitlines()[-1]


def _with_settings(bed: State, tmp_path: Path, cluster: str, more: str) -> str:
    """A cluster file whose ssh settings begin with `more`."""
    settings = ssh_config(bed.layout.name)
    changed = tmp_path / "settings"
    changed.write_text(more + settings.read_text())
    file = tmp_path / "with-settings.toml"
    file.write_text(Path(cluster).read_text().replace(str(settings), str(changed)))
    return str(file)


def test_a_host_whose_key_is_unknown_is_refused_with_the_command(
    bed: State, bundle: Path, tmp_path: Path
) -> None:
    cluster = str(cluster_file(bed.layout.name))
    unknown = _with_settings(bed, tmp_path, cluster, "Host pi-1\n  UserKnownHostsFile /dev/null\n")
    said = _run(bed, bundle, unknown)
    assert "pi-1: its key is not known here" in said
    assert f"`ssh -F {tmp_path / 'settings'} pi-1`" in said
    # Who checks nothing still has no host with a changed key.
    other = tmp_path / "known"
    node = bed.layout.node("pi-2")
    key = (node_folder(bed.layout, node) / "host_key.pub").read_text().rsplit(" ", 1)[0]
    address = bed.layout.node("pi-1").address
    other.write_text(f"pi-1,{address} {key}\n")
    careless = "Host pi-1\n  StrictHostKeyChecking no\n" + f"  UserKnownHostsFile {other}\n"
    said = _run(bed, bundle, _with_settings(bed, tmp_path, cluster, careless))
    assert "pi-1: it shows another key than before" in said
    assert "ssh-keygen -R" in said


def test_a_wrong_user_a_wrong_python_and_another_version_are_told(
    bed: State, bundle: Path, tmp_path: Path
) -> None:
    said = _run(bed, bundle, _changed(bed, tmp_path, address="nobody@pi-1"))
    assert "pi-1: it accepts none of this machine's keys for this user" in said
    assert "`ssh-copy-id -F " in said
    said = _run(bed, bundle, _changed(bed, tmp_path, python="/nowhere/bin/python"))
    assert "pi-1: there is no Python at /nowhere/bin/python" in said
    assert "`cutset hosts install --cluster FILE`" in said
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    said = _run(bed, bundle, _changed(bed, tmp_path, python=f"{bare}/bin/python"))
    assert f"pi-1: {bare}/bin/python has no Cutset" in said
    said = _run(bed, bundle, _changed(bed, tmp_path, python=str(_older(tmp_path))))
    assert "pi-1 has Cutset 0.0.9 and this machine" in said


def _older(tmp_path: Path) -> Path:
    """A Python whose Cutset says that it is another version."""
    python = tmp_path / "older"
    change = "import cutset.version; cutset.version.__version__ = '0.0.9'; "
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{change}$2"\n')
    python.chmod(0o755)
    return python


def test_a_device_that_the_cluster_file_lacks_is_named(
    bed: State, bundle: Path, tmp_path: Path
) -> None:
    text = cluster_file(bed.layout.name).read_text().replace('"pi-2"', '"pi-7"')
    (tmp_path / "other.toml").write_text(text)
    said = _run(bed, bundle, str(tmp_path / "other.toml"))
    assert "planned for 'pi-2', which is no device of the cluster file" in said


@pytest.mark.soak
def test_what_a_login_shell_prints_is_no_harm(bed: State, bundle: Path, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy"
    noisy.write_text(f'#!/bin/sh\necho "Welcome to this board"; echo\nexec {sys.executable} "$@"\n')
    noisy.chmod(0o755)
    cluster = _changed(bed, tmp_path, python=str(noisy))
    words = ["cutset", "run", str(bundle), str(_some_rows(bundle)), "--json"]
    done = _on_server(bed, *words, "--cluster", cluster)
    assert len(json.loads(done.stdout)["rows"]) == 3


# --- cutset hosts


def test_hosts_are_checked(bed: State, tmp_path: Path) -> None:
    done = _on_server(bed, "cutset", "hosts", "check", *_cluster(bed), "--json")
    hosts = json.loads(done.stdout)["hosts"]
    assert [host["name"] for host in hosts] == list(NODES)
    for host in hosts:
        assert host["ok"]
        assert host["cutset"] == __version__
        assert "onnxruntime" in host["backends"]
        assert {wire["target"] for wire in host["wires"]} == {*NODES} - {host["name"]}
    slow = next(wire for wire in hosts[1]["wires"] if wire["target"] == "pi-2")
    assert 0 < slow["bytes_per_s"] < 1.2 * 20e6 / 8
    cluster = _changed(bed, tmp_path, address="root@pi-1:23")
    done = _on_server(bed, "cutset", "hosts", "check", "--cluster", cluster, check=False)
    assert done.returncode == 6
    assert "pi-1: it does not answer" in done.stderr
    assert "start its ssh server" in done.stderr
    assert "Mbit/s" in done.stdout
    assert_nothing_of_ours(bed)
