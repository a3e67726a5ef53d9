"""Pieces that are timed under a quota of processor time take what they take in a stream."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from statistics import median

import onnx
import pytest
from onnx import TensorProto, helper

from cutset.cluster.cluster_file import cluster_from_toml
from cutset.costs.profile import Profile, profile_from_json
from testbed.build import down, up
from testbed.cgroups import find_cgroups
from testbed.nodes import command_on, environment_on
from testbed.state import State

CLUSTER = """
[[device]]
name = "large"
speed = 0.9
[[device]]
name = "small"
speed = 0.45
"""
RATIO = 2.0
WIDTHS = (96, 128, 64, 192, 96, 160)
NUM_TRIES = 5


def write_chain(path: Path) -> Path:
    """Convolutions of a few milliseconds each, beside which a stop costs little."""
    nodes, weights, width = [], [], 192
    for k, next_width in enumerate(WIDTHS):
        shape = (next_width, width, 3, 3)
        weights.append(
            helper.make_tensor(f"w{k}", TensorProto.FLOAT, shape, [0.01] * math.prod(shape))
        )
        taken = f"t{k}" if k else "x"
        nodes.append(helper.make_node("Conv", [taken, f"w{k}"], [f"c{k}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"t{k + 1}"]))
        width = next_width
    rows = ["rows", 192, 28, 28]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, rows)],
        [
            helper.make_tensor_value_info(
                f"t{len(WIDTHS)}", TensorProto.FLOAT, ["rows", width, 28, 28]
            )
        ],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def profiles(bed: State, model: Path) -> list[Profile]:
    """Of both nodes, which measure at the same time, so that a busy machine is busy for both."""
    command = [sys.executable, "-m", "cutset.cli", "profile", str(model), "--json", "--runs", "30"]
    started = [
        subprocess.Popen(
            command_on(bed, find_cgroups(), node, command),
            env=environment_on(bed, node) | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
        )
        for node in bed.layout.nodes
    ]
    try:
        return [profile_from_json(each.communicate(timeout=120)[0]) for each in started]
    finally:
        for each in started:
            each.kill()
            each.wait()


def test_every_piece_takes_twice_as_long_with_half_the_quota(name: str, tmp_path: Path) -> None:
    model = write_chain(tmp_path / "chain.onnx")
    bed = up(cluster_from_toml(CLUSTER), name=name, ray=False)
    ratios: dict[tuple[str, str], list[float]] = {}
    try:
        # What a busy machine does to a measurement differs from one to the next; a bias stays.
        for _ in range(NUM_TRIES):
            large, small = profiles(bed, model)
            for one, other in zip(large.pieces, small.pieces, strict=True):
                for backend, timing in one.timings.items():
                    ratio = other.timings[backend].median_s / timing.median_s
                    ratios.setdefault((backend, one.last), []).append(ratio)
            medians = {key: median(found) for key, found in ratios.items()}
            if all(abs(ratio / RATIO - 1) < 0.15 for ratio in medians.values()):
                break
    finally:
        down(name)
    assert len(medians) >= len(WIDTHS)
    assert medians == pytest.approx(dict.fromkeys(medians, RATIO), rel=0.15)
