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
import yaml

from cutset.planning.anyorder.downsets import DagProblem, Space, Tensor
from cutset.planning.problem import ChainProblem, Placed
from cutset.planning.variant import Variant

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
        reach = np.searchsorted(weights, weights[:-1] + limits[k] * (1 + 1e-12), side="right") - 1
        variants.append(Variant(device_class=k, backend="", seconds=seconds[k], furthest=reach))
    fields: dict[str, object] = {
        "num_pieces": num,
        "counts": counts or (1,) * num_classes,
        "variants": tuple(variants),
        "cut_bytes": np.concatenate([[0.0], cut_bytes]),
        "link_latency_s": np.zeros((num_classes, num_classes)),
        "link_s_per_byte": s_per_byte,
        "source_s": np.zeros(num_classes),
        "sink_s": np.zeros(num_classes),
        "overhead_s": np.zeros(num_classes),
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


def cuts_with_one_reader(space: Space) -> np.ndarray:
    """Which cuts of a space have one reader: all that crosses goes into the same node.

    That node begins the next stage, and several tensors may meet in it (the branches of a block
    in its addition); one tensor that two nodes read (a skip) does not count as one. Tensors that
    cost nothing are left out. Nodes of one colour are one node.

    This gives the optima published as "with one tensor per cut". `DagProblem.max_tensors` counts
    what is made before a cut instead, and gives others.
    """
    reads = np.zeros_like(space.member)
    for cost, source, targets in zip(space.costs, space.sources, space.targets, strict=True):
        if cost > 0:
            for target in targets:
                reads[target] |= space.member[source] & ~space.member[target]
    return reads.sum(axis=0) <= 1


PIPEEDGE_TYPES = ("Minnowboard-E3845", "RCC-VE-C2000")


def read_pipeedge_case(folder: Path, model: str, counts: tuple[int, int]) -> ChainProblem:
    """A case of PipeEdge (DSD 2022): two types of devices, profiles at 8 rows, float32.

    Seconds are the profile's, memory is the sum of `mem_MB`, a link has the bandwidth of the slower
    of its ends.
    """
    models = yaml.safe_load((folder / "models.yml").read_text())
    types = yaml.safe_load((folder / "device_types.yml").read_text())
    profiles = [types[name]["model_profiles"][model][0] for name in PIPEEDGE_TYPES]
    megabits = np.array([types[name]["bw_Mbps"] for name in PIPEEDGE_TYPES], dtype=float)
    sent = np.array(models[model]["parameters_out"]) * 4.0 * profiles[0]["batch_size"]
    return chain_problem(
        np.array([profile["time_s"] for profile in profiles]),
        np.array(models[model]["mem_MB"]),
        np.array([types[name]["mem_MB"] for name in PIPEEDGE_TYPES], dtype=float),
        sent,
        8e-6 / np.minimum(megabits[:, None], megabits),
        counts,
    )


def published_pipeedge_period(folder: Path, problem: ChainProblem) -> float:
    """The period of PipeEdge's own schedule for ViT-Base on 4 + 4 devices, costed rightly."""
    schedule = yaml.safe_load((folder / "published_schedule_vit-base_4+4.yml").read_text())
    stages = []
    for entry in schedule:
        (name, (first, last)) = next(iter(entry.items()))
        stages.append(Placed(first - 1, last, 0 if name.startswith("mb") else 1))
    return problem.period_s(tuple(stages))


def read_pipedream_case(path: Path, k: int) -> DagProblem:
    """A layer graph of PipeDream (SOSP 2019): forward milliseconds, on k equal devices.

    Activations go through the host at the rate of dnn-partitioning's files, which were made from
    these graphs: their cost of 0.095703125 is 205520896 bytes at 2 GiB a second in seconds.
    """
    names: dict[str, int] = {}
    fields: list[dict[str, float]] = []
    targets: dict[int, list[int]] = {}
    for line in path.read_text().splitlines():
        parts = line.split(" -- ")
        if line.startswith("\t"):
            source, target = (names[part.strip()] for part in parts)
            targets.setdefault(source, []).append(target)
        else:
            names[parts[0]] = len(names)
            pairs = (item.split("=") for item in parts[-1].split(", "))
            fields.append({key: float(value.strip("[]")) for key, value in pairs})
    sizes = [f["activation_size"] for f in fields]
    return DagProblem(
        seconds=np.array([[f["forward_compute_time"] for f in fields]]),
        weight_bytes=np.array([f["parameter_size"] for f in fields]),
        tensors=tuple(
            Tensor(source=s, targets=tuple(t), transfer_s=sizes[s] / 2**31)
            for s, t in targets.items()
        ),
        groups=np.arange(len(fields)),
        counts=(k,),
        limit_bytes=np.array([math.inf]),
        through_host=True,
        pays=(True,),
    )


INCEPTION_BRANCHES = (
    *(((3, 6, 9, 4),) * 3),
    (3, 9, 1),
    *(((3, 9, 15, 4),) * 4),
    (6, 12, 1),
    *(((3, 9, 12, 4),) * 2),
)
"""Layers (convolution, normalisation, activation, pooling) in the branches of each module."""


def inception_like(seed: int) -> DagProblem:
    """A graph with InceptionV3's shape and made-up costs, on 6 accelerators and a processor."""
    rng = np.random.default_rng(seed)
    edges: list[tuple[int, int]] = []
    num = 18  # the stem
    edges += [(k, k + 1) for k in range(num - 1)]
    last = num - 1
    for branches in INCEPTION_BRANCHES:
        ends = []
        for length in branches:
            edges += [(last if k == 0 else num + k - 1, num + k) for k in range(length)]
            num += length
            ends.append(num - 1)
        edges += [(end, num) for end in ends]
        last, num = num, num + 1
    targets: dict[int, list[int]] = {}
    for source, target in edges:
        targets.setdefault(source, []).append(target)
    seconds = rng.uniform(0.05, 2.0, num)
    return DagProblem(
        seconds=np.array([seconds, 10 * seconds]),
        weight_bytes=rng.uniform(1e4, 1e7, num),
        tensors=tuple(
            Tensor(source=s, targets=tuple(t), transfer_s=float(rng.uniform(0.05, 0.5)))
            for s, t in targets.items()
        ),
        groups=np.arange(num),
        counts=(6, 1),
        limit_bytes=np.array([math.inf, math.inf]),
        through_host=True,
        pays=(True, False),
    )
