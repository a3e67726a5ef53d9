"""A pipeline by ssh over two processors: x86-64, an emulated aarch64 board, x86-64."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from beds.streams import END_S, NODES, THREE_NODES, assert_nothing_of_ours
from cutset import Cluster, Device, PlanRequest, open_session
from cutset.cluster.cluster_file import cluster_from_toml, load_cluster
from cutset.cluster.file_writer import cluster_to_toml
from testbed.build import down, require_machine, up
from testbed.cgroups import find_cgroups
from testbed.errors import TestbedError
from testbed.nodes import command_on, environment_on, processes_on
from testbed.state import State, cluster_file

ROOT = Path(__file__).parents[2]
TOLERANCE = 1e-6
"""Of the magnitude of the answers: kernels of another processor add in another order."""

RUN = """
import json, sys
import numpy as np
from cutset import SshHosts, load_cluster, open_session
bundle, cluster, rows, answers = sys.argv[1:]
hosts = SshHosts(cluster=load_cluster(cluster))
with open_session(bundle, engine=hosts, backend="onnxruntime") as session:
    print("up", flush=True)
    sys.stdin.readline()
    np.save(answers, session.run(np.load(rows)))
"""


@pytest.fixture
def board() -> Path:
    """The Python of the folder that ``python -m testbed board FOLDER`` made."""
    folder = Path(os.environ.get("CUTSET_BOARD", ROOT / "build" / "board"))
    python = folder / "bin" / "python"
    if not python.exists():
        pytest.skip(f"there is no board in {folder}: python -m testbed board {folder}")
    said = subprocess.run(
        [str(python), "-c", "import platform; print(platform.machine())"],
        capture_output=True,
        text=True,
        check=False,
    )
    if said.stdout.strip() != "aarch64":
        pytest.skip(f"{python} does not run here: {said.stderr.strip()[-200:]}")
    return python


@pytest.fixture
def bed(machine: None) -> Iterator[State]:
    name = f"arm{os.getpid() % 10**7}"
    try:
        require_machine(ray=False, ssh=True)
    except TestbedError as error:
        pytest.skip(str(error))
    # Emulation costs enough without half cores.
    nodes = THREE_NODES.replace("speed = 0.5\n", "")
    try:
        yield up(cluster_from_toml(nodes), name=name, ray=False, ssh=True)
    finally:
        down(name)


@pytest.mark.emulated
@pytest.mark.timeout(900)
def test_rows_through_x86_64_and_aarch64_and_x86_64_give_the_same_answers(
    board: Path, bed: State, bundle: Path, rows: Path, tmp_path: Path
) -> None:
    stored = load_file(rows)
    answers = _answers(board, bed, bundle, stored["rows"][:64], tmp_path)
    assert _apart(answers, stored["expected"][:64]) <= TOLERANCE


@pytest.mark.emulated
@pytest.mark.timeout(900)
def test_a_mobilenet_answers_as_on_x86_64_alone(board: Path, bed: State, tmp_path: Path) -> None:
    from cutset.workflow import plan_stages, prepare_model, split_model  # which imports torch

    devices = tuple(Device(name=name) for name in NODES)
    request = PlanRequest(cluster=Cluster(devices=devices), num_stages=3, fixed_order=True)
    prepared = prepare_model("mobilenet_v2", weights="random:0")
    plan = plan_stages(prepared, request)
    assert [stage.device for stage in plan.stages] == list(NODES)
    split_model(prepared, plan, tmp_path / "mobilenet.cutset")
    rows = np.random.default_rng(0).standard_normal((3, 3, 224, 224), np.float32)
    answers = _answers(board, bed, tmp_path / "mobilenet.cutset", rows, tmp_path)
    with open_session(tmp_path / "mobilenet.cutset", backend="onnxruntime") as session:
        assert _apart(answers, session.run(rows)) <= TOLERANCE


def _apart(answers: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a fraction of the largest number."""
    assert answers.shape == expected.shape
    return float(np.abs(answers - expected).max() / np.abs(expected).max())


def _answers(board: Path, bed: State, bundle: Path, rows: np.ndarray, folder: Path) -> np.ndarray:
    """What the pipeline makes of rows; its second stage is computed on the board."""
    assert platform.machine() == "x86_64"
    devices = load_cluster(cluster_file(bed.layout.name))
    own = {"python": str(board), "env": (("PYTHONPATH", str(ROOT / "src")),)}
    changed = tuple(
        msgspec.structs.replace(device, **own) if device.name == "pi-1" else device
        for device in devices.devices
    )
    cluster = folder / "two-processors.toml"
    cluster.write_text(cluster_to_toml(msgspec.structs.replace(devices, devices=changed)))
    np.save(folder / "rows.npy", rows)
    node = bed.layout.head
    arguments = [str(bundle), str(cluster), str(folder / "rows.npy"), str(folder / "out.npy")]
    caller = subprocess.Popen(
        command_on(bed, find_cgroups(), node, ["python", "-c", RUN, *arguments], limited=False),
        env=environment_on(bed, node),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == "up\n", caller.communicate()[1]
    emulated = {
        name: any(
            "qemu-aarch64-static" in line and "cutset.runtime.worker" in line
            for line in processes_on(bed, find_cgroups(), bed.layout.node(name)).values()
        )
        for name in NODES
    }
    assert emulated == {"server": False, "pi-1": True, "pi-2": False}
    _, words = caller.communicate("go on\n", timeout=END_S)
    assert caller.returncode == 0, words
    assert_nothing_of_ours(bed)
    return np.load(folder / "out.npy")
