"""What tests of engines on a testbed share: a bundle for three nodes, rows, and a caller."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from cutset.bundles.coded_model import CodedModel, measured_agreement
from cutset.bundles.write.export import export_bundle
from cutset.capture.torch_export import capture_model
from cutset.data.pixels import normalised
from distributed import bundles
from distributed.test_codecs import IMAGES, coded_plan
from testbed import faults
from testbed.cgroups import find_cgroups, kill_member, members
from testbed.layout import Node
from testbed.nodes import command_on, environment_on, group_of, processes_on
from testbed.state import State, node_folder

NODES = ("server", "pi-1", "pi-2")
THREE_NODES = """
caller = "server"
[[device]]
name = "server"
[[device]]
name = "pi-1"
speed = 0.5
[[device]]
name = "pi-2"
speed = 0.5
[link]
bandwidth = "100 Mbit/s"
[[link.between]]
devices = ["pi-1", "pi-2"]
bandwidth = "20 Mbit/s"
"""
NUM_ROWS = 1000
NUM_CODED = 40
END_S = 420.0


def write_three_stages(folder: Path) -> Path:
    """A bundle of three stages, one for each node; micro-batches of a row."""
    plan = bundles.hand_plan

    def on_nodes(*arguments: object) -> object:
        made = plan(*arguments)  # type: ignore[arg-type]
        stages = tuple(
            msgspec.structs.replace(stage, device=name)
            for stage, name in zip(made.stages, NODES, strict=True)
        )
        return msgspec.structs.replace(made, stages=stages)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundles, "hand_plan", on_nodes)
        bundles.write_bundle(
            bundles.small_net(), (torch.randn(2, 3, 16, 16),), (3, 6), folder, micro_batch=1
        )
    return folder


def write_coded(folder: Path) -> tuple[Path, Path]:
    """A bundle to whose first node images go as pixels, with int8 and fp16 after it; and images.

    Beside the images lies what the whole model with the same codecs makes of them.
    """
    torch.set_num_threads(1)
    captured = capture_model(bundles.small_net(), (torch.randn(2, 3, 16, 16),))
    plan = coded_plan(captured, (3, 7), 1)
    stages = tuple(
        msgspec.structs.replace(stage, device=name)
        for stage, name in zip(plan.stages, NODES, strict=True)
    )
    plan = msgspec.structs.replace(plan, stages=stages, input_codec="uint8-image")
    coded = CodedModel(captured, plan)
    bundle = export_bundle(
        captured.module,
        plan,
        folder / "coded.cutset",
        captured=captured,
        preprocessing=IMAGES,
        agreement=measured_agreement(captured, coded, [captured.rows(2)], calibrated=False),
    )
    pixels = np.random.default_rng(1).integers(0, 256, (NUM_CODED, 16, 16, 3), np.uint8)
    inputs = normalised(pixels, IMAGES)
    answers = [coded.run((inputs[k : k + 1],), 1)[1][0] for k in range(NUM_CODED)]
    expected = torch.from_numpy(np.concatenate(answers))
    file = folder / "images.safetensors"
    save_file({"rows": torch.from_numpy(pixels), "expected": expected}, file)
    return bundle, file


def assert_coded(result: dict[str, object]) -> None:
    """Every image was answered as the whole model with the codecs does, and few bytes travelled."""
    received = result.pop("received_bytes")
    assert result == {
        "asked": NUM_CODED,
        "answered": NUM_CODED,
        "wrong": [],
        "epoch": 1,
        "devices": list(NODES),
        "restarts": [0, 0, 0],
    }
    assert isinstance(received, list)
    # 16 x 16 x 3 of pixels; 8 x 16 x 16 numbers of a byte with 5 for each of 8 channels and 4 of
    # the order, up to 64; 256 of two, likewise.
    assert received == [NUM_CODED * 768, NUM_CODED * (2048 + 64), NUM_CODED * (512 + 64)]


def write_rows(file: Path) -> Path:
    """A thousand rows, and what the whole model makes of each."""
    torch.set_num_threads(1)
    inputs = torch.randn(NUM_ROWS, 3, 16, 16)
    expected = bundles.whole_model(bundles.small_net(), inputs, 1)
    save_file({"rows": inputs, "expected": expected}, file)
    return file


class Caller:
    """A process on the first node that streams the rows."""

    def __init__(
        self,
        bed: State,
        where: str,
        bundle: Path,
        rows: Path,
        replan_after_s: float = 10.0,
        rounds: int = 1,
    ) -> None:
        node = bed.layout.head
        script = str(Path(__file__).parent / "streaming_caller.py")
        words = [where, str(bundle), str(rows), str(replan_after_s), "2.5", str(rounds)]
        command = [sys.executable, script, *words]
        self.process = subprocess.Popen(
            command_on(bed, find_cgroups(), node, command, limited=False),
            env=environment_on(bed, node),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pids: list[int] = []

    def follow(self, disturb: dict[int, Callable[[], object]]) -> dict[str, object]:
        """Reads what it says to the end; calls `disturb` with the rows' number as key."""
        assert self.process.stdout is not None
        killer = threading.Timer(END_S, self.process.kill)
        killer.start()
        result: dict[str, object] = {}
        for line in self.process.stdout:
            word, _, rest = line.partition(" ")
            if word == "up":
                self.pids = json.loads(rest)
            elif word == "at":
                disturb.get(int(rest), lambda: None)()
            elif word == "result":  # engines may print on their own
                result = json.loads(rest)
        _, words = self.process.communicate()
        killer.cancel()
        assert result, words
        return result

    def finish(self) -> None:
        """Has it ask for no more rows."""
        if self.process.stdin is not None:
            self.process.stdin.close()
            self.process.stdin = None

    def wait_until_up(self) -> None:
        """Reads until the pipeline stands."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("up"):
                self.pids = json.loads(line.partition(" ")[2])
                return
        pytest.fail(self.process.communicate()[1])


def cut_for_3_seconds(bed: State, node: Node) -> None:
    """Cuts a node off from all others; the length is the fault."""
    faults.cut(bed, node, None)
    threading.Event().wait(3.0)
    faults.mend(bed, node, None)


def signal_workers(bed: State, name: str, number: signal.Signals) -> None:
    """Sends a signal to the processes on a node that compute a stage of the engine `ssh`."""
    node, cgroups = bed.layout.node(name), find_cgroups()
    lines = processes_on(bed, cgroups, node)
    pids = [pid for pid, line in lines.items() if "cutset.runtime.worker" in line]
    assert pids
    for pid in pids:
        assert kill_member(cgroups, group_of(bed.layout, node), pid, number)


def objects_of(bed: State, name: str) -> set[str]:
    folder = node_folder(bed.layout, bed.layout.node(name)) / "cache" / "cutset" / "objects"
    return {path.name for path in folder.iterdir()}


def assert_nothing_of_ours(bed: State) -> None:
    """No stage's process is left on any node, a moment after its session ended."""
    for node in bed.layout.nodes:
        pids = members(find_cgroups(), group_of(bed.layout, node))
        ours = [p for pid in pids if psutil.pid_exists(pid) and _is_ours(p := psutil.Process(pid))]
        _, alive = psutil.wait_procs(ours, timeout=10)
        assert alive == []


def _is_ours(process: psutil.Process) -> bool:
    try:
        line = process.cmdline()
    except psutil.NoSuchProcess:
        return False
    ours = ("cutset.runtime.worker", "cutset.measure.stages", "ray::StageHost")
    return any(word in " ".join(line) for word in ours)
