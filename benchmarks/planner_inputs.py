"""Reads planning problems that others published, each with its own cost rules.

Nothing here is part of Cutset: these are adapters from other projects' files to the plain numbers
that the planner takes. The files are not part of the project; `INPUTS` says where they are looked
for.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from cutset.planning.downsets import DagProblem, Tensor
from cutset.planning.problem import ChainProblem, Variant

INPUTS = Path(__file__).resolve().parents[2] / "shared" / "planner-inputs"


def chain_problem(
    seconds: np.ndarray,
    memory: np.ndarray,
    limits: np.ndarray,
    cut_bytes: np.ndarray,
    s_per_byte: np.ndarray,
    counts: tuple[int, ...] | None = None,
    **options: object,
) -> ChainProblem:
    """A chain from plain tables.

    Args:
        seconds: of each piece on each class, shape (C, n).
        memory: of each piece, shape (n,); a stage needs the sum.
        limits: memory of a device of each class, shape (C,).
        cut_bytes: after each piece, shape (n,).
        s_per_byte: of the link between two classes, shape (C, C).
        counts: devices in each class; one each by default.
        options: further fields of the problem.
    """
    num_classes, num = seconds.shape
    weights = np.concatenate([[0.0], np.cumsum(memory)])
    variants = []
    for k in range(num_classes):
        prefix = np.concatenate([[0.0], np.cumsum(seconds[k])])
        reach = np.searchsorted(weights, weights[:-1] + limits[k] * (1 + 1e-12), side="right") - 1
        variants.append(Variant(device_class=k, backend="", prefix_s=prefix, furthest=reach))
    fields: dict[str, object] = {
        "num_pieces": num,
        "counts": counts or (1,) * num_classes,
        "variants": tuple(variants),
        "cut_bytes": np.concatenate([[0.0], cut_bytes]),
        "link_latency_s": np.zeros((num_classes, num_classes)),
        "link_s_per_byte": s_per_byte,
        "source_s": np.zeros(num_classes),
        "sink_s": np.zeros(num_classes),
        "tie_cost": np.ones(num + 1),
    }
    return ChainProblem(**{**fields, **options})  # type: ignore[arg-type]


def read_speed_case(path: Path) -> ChainProblem:
    """A made-up case of p distinct devices: see the folder's README for the format."""
    lines = [np.array(line.split(), dtype=float) for line in path.read_text().splitlines()]
    num, num_devices = (int(x) for x in lines[0])
    speed, bandwidth, limits = np.array(lines[4 : 4 + num_devices]).T
    between = np.minimum(bandwidth[:, None], bandwidth)
    return chain_problem(
        lines[1][:num] / speed[:, None], lines[2], limits, lines[3][:num], 1 / between
    )


def read_placement_case(path: Path, max_tensors: int | None = None) -> DagProblem:
    """A case of dnn-partitioning (NeurIPS 2020) with its own cost rules.

    An accelerator stage pays for each distinct tensor that enters or leaves it, a processor stage
    pays for none; nodes of one colour share a stage.
    """
    case = json.loads(path.read_text())
    nodes = case["nodes"]
    place = {node["id"]: k for k, node in enumerate(nodes)}
    targets: dict[int, list[int]] = {}
    cost: dict[int, float] = {}
    for edge in case["edges"]:
        source = place[edge["sourceId"]]
        targets.setdefault(source, []).append(place[edge["destId"]])
        cost[source] = float(edge["cost"])
    colour = [node.get("colorClass", f"node {node['id']}") for node in nodes]  # none: its own
    colours = {c: k for k, c in enumerate(dict.fromkeys(colour))}
    fast = [n["fpgaLatency"] if n["supportedOnFpga"] else math.inf for n in nodes]
    return DagProblem(
        seconds=np.array([fast, [n["cpuLatency"] for n in nodes]], dtype=float),
        weight_bytes=np.array([n["size"] for n in nodes], dtype=float),
        tensors=tuple(
            Tensor(source=s, targets=tuple(t), transfer_s=cost[s]) for s, t in targets.items()
        ),
        groups=np.array([colours[c] for c in colour]),
        counts=(case["maxFPGAs"], case["maxCPUs"]),
        limit_bytes=np.array([case["maxSizePerFPGA"], math.inf]),
        through_host=True,
        pays=(True, False),
        max_tensors=max_tensors,
    )
