"""`cutset hosts install` with real pip; `test_tutorial` has it install everything there is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from beds.streams import END_S, THREE_NODES
from beds.wheels_of_installed import write_wheels
from cutset.cluster.cluster_file import cluster_from_toml
from cutset.engines.ssh.wheel import write_own_wheel
from testbed.build import down, require_machine, up
from testbed.cgroups import find_cgroups
from testbed.errors import TestbedError
from testbed.nodes import command_on, environment_on
from testbed.state import State, cluster_file

SMALL_NODES = THREE_NODES.replace("speed = 0.5", 'memory_bytes = "256 MiB"')


@pytest.fixture(scope="module")
def bed(machine: None) -> Iterator[State]:
    name = f"ins{os.getpid() % 10**7}"
    try:
        require_machine(ray=False, ssh=True)
    except TestbedError as error:
        pytest.skip(str(error))
    try:
        yield up(cluster_from_toml(SMALL_NODES), name=name, ray=False, ssh=True)
    finally:
        down(name)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_own_wheel(tmp_path_factory.mktemp("own"))


def _cluster(bed: State, file: Path, python: str, more: str = "") -> tuple[str, str]:
    """A cluster file whose devices all have `python`, and `more` of their own."""
    lines = cluster_file(bed.layout.name).read_text().splitlines()
    own = f'python = "{python}"\n{more}'
    changed = [own if line.startswith("python =") else line for line in lines]
    file.write_text("\n".join(changed) + "\n")
    return "--cluster", str(file)


def _type(bed: State, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Types a command on the first node, without its limits: the machine of who types."""
    node = bed.layout.head
    done = subprocess.run(
        command_on(bed, find_cgroups(), node, ["cutset", "hosts", *words], limited=False),
        env=environment_on(bed, node),
        capture_output=True,
        text=True,
        timeout=END_S,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done


def _without_cutset(folder: Path) -> Path:
    """An environment that has all that Cutset needs, pip included, but not Cutset itself."""
    environment = folder / "an env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    packages = next(environment.glob("lib/python3*/site-packages"))
    (packages / "others.pth").write_text(f"{Path(msgspec.__file__).parents[1]}\n")
    return environment


def test_devices_that_share_their_environment_install_it_once(
    bed: State, wheel: Path, tmp_path: Path
) -> None:
    environment, log = _without_cutset(tmp_path), tmp_path / "pip.log"
    more = f'env = {{ PIP_LOG = "{log}" }}'
    cluster = _cluster(bed, tmp_path / "shared.toml", f"{environment}/bin/python", more)
    assert _type(bed, "install", *cluster).stdout.splitlines() == [
        "server: installed",
        "pi-1: installed",
        "pi-2: installed",
    ]
    assert log.read_text().count("Successfully installed cutset-") == 1
    install = ("install", *cluster, "--wheel", str(wheel))
    assert _type(bed, *install).stdout.count("has this version already") == 3
    assert log.read_text().count("Successfully installed cutset-") == 1
    assert {path.name for path in environment.glob(".*")} == {".cutset-lock", ".cutset-made"}
    # What is broken afterwards is mended by the next call.
    package = next(environment.glob("lib/python3*/site-packages/cutset"))
    (package / "engines" / "ssh" / "board.py").unlink()
    assert _type(bed, "install", *cluster).stdout.count("installed") == 3
    assert log.read_text().count("Successfully installed cutset-") == 2


def test_a_folder_that_lacks_a_wheel_is_told(bed: State, wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "bare"
    make = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(make, check=True)
    packages = next(environment.glob("lib/python3*/site-packages"))
    (packages / "pip").symlink_to(Path(msgspec.__file__).parents[1] / "pip")
    cluster = _cluster(bed, tmp_path / "bare.toml", f"{environment}/bin/python")
    done = _type(bed, "install", *cluster, "--wheels", str(wheel.parent), status=6)
    for name in ("server", "pi-1", "pi-2"):
        assert f"{name}: Cutset cannot be installed there (ERROR: No matching" in done.stderr
    assert "--wheels FOLDER, with wheels for its processor and Python" in done.stderr
    assert not [path for path in environment.glob(".cutset-*") if path.is_dir()]


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_wheels_that_were_sent_make_one_environment_out_of_nothing_for_all(
    bed: State, wheel: Path, tmp_path: Path
) -> None:
    """Everything by real pip, which finds no index, on three nodes with one folder."""
    wheels = write_wheels(wheel, tmp_path / "wheels")
    log = tmp_path / "pip.log"
    more = f'env = {{ PIP_LOG = "{log}" }}\nbackends = ["onnxruntime"]'
    cluster = _cluster(bed, tmp_path / "shared.toml", f"{tmp_path}/made/bin/python", more)
    said = _type(bed, "install", *cluster, "--wheels", str(wheels)).stdout.splitlines()
    assert said == ["server: installed", "pi-1: installed", "pi-2: installed"]
    done = [line for line in log.read_text().splitlines() if "Successfully installed" in line]
    assert len(done) == 2  # Cutset, then all that it needs
    assert "cutset-" in done[0]
    assert "onnxruntime-" in done[1]
    hosts = json.loads(_type(bed, "check", *cluster, "--json").stdout)["hosts"]
    assert [(host["ok"], host["backends"]) for host in hosts] == [(True, ["onnxruntime"])] * 3
    again = _type(bed, "install", *cluster, "--wheels", str(wheels))
    assert again.stdout.count("has this version already") == 3
