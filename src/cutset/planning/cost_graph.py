"""Plans without a model: a cost graph from a file (`cutset plan --cost-graph FILE`).

The file is JSON, strict::

    {
      "format": "cutset-cost-graph/1",
      "transfers": "neighbour",            or "host", see below
      "nodes": [
        {"name": "conv1", "seconds": {"": 0.02, "pi-1": 0.09}, "weight_bytes": 37632, "group": ""}
      ],
      "tensors": [
        {"source": "conv1", "targets": ["relu1", "add1"], "num_bytes": 802816}
      ]
    }

``seconds`` is by device name; ``""`` is the reference, divided by the speed of devices that are
not named. Nodes of the same non-empty ``group`` share a stage. ``weight_bytes``, ``group`` and
``transfers`` may be left out. With ``"neighbour"`` a cut sends every tensor alive there to the
next stage; with ``"host"`` each stage takes from and gives to host memory, over the cluster's
default link, every tensor that crosses its border, one after the other with computing.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import msgspec
import numpy as np

from cutset.devices import Cluster, Device
from cutset.errors import InfeasiblePlan, PlanError
from cutset.planning.downset_search import solve_downsets
from cutset.planning.downsets import DagProblem, DagSolution, Tensor
from cutset.planning.lattice import OverBudget
from cutset.planning.plan import PLAN_FORMAT, Certificate, Plan, StagePlan

COST_GRAPH_FORMAT = "cutset-cost-graph/1"


class CostNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the work: seconds by device name, ``""`` for the reference device."""

    name: str
    seconds: dict[str, float]
    weight_bytes: int = 0
    group: str = ""


class CostTensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one node gives to others, sent once however many read it."""

    source: str
    targets: tuple[str, ...]
    num_bytes: int


class CostGraph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A graph of costs; see the module's docstring."""

    format: str
    nodes: tuple[CostNode, ...]
    tensors: tuple[CostTensor, ...]
    transfers: str = "neighbour"


def load_cost_graph(path: str | Path) -> CostGraph:
    """Reads and checks a cost graph.

    Raises:
        PlanError: the file cannot be read or breaks a rule; the message gives the path within it.
    """
    try:
        graph = msgspec.json.decode(Path(path).read_bytes(), type=CostGraph)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: the cost graph cannot be read: {error}") from error
    problem = _first_problem(graph)
    if problem:
        raise PlanError(f"{path}: {problem}")
    return graph


def _first_problem(graph: CostGraph) -> str:
    if graph.format != COST_GRAPH_FORMAT:
        return f"expected format {COST_GRAPH_FORMAT!r}, got {graph.format!r}"
    if graph.transfers not in ("neighbour", "host"):
        return f"$.transfers: expected 'neighbour' or 'host', got {graph.transfers!r}"
    if not graph.nodes:
        return "$.nodes: a cost graph needs at least one node"
    names: set[str] = set()
    for k, node in enumerate(graph.nodes):
        if node.name in names:
            return f"$.nodes[{k}].name: {node.name!r} is the name of another node too"
        names.add(node.name)
        if any(not 0 <= s < math.inf for s in node.seconds.values()) or node.weight_bytes < 0:
            return f"$.nodes[{k}]: seconds and bytes must be 0 or more and finite"
    for k, tensor in enumerate(graph.tensors):
        for name in (tensor.source, *tensor.targets):
            if name not in names:
                return f"$.tensors[{k}]: {name!r} is no node"
        if tensor.num_bytes < 0:
            return f"$.tensors[{k}].num_bytes: must be 0 or more, got {tensor.num_bytes}"
    return ""


def plan_cost_graph(
    graph: CostGraph | str | Path,
    cluster: Cluster,
    *,
    serial: bool = False,
    num_stages: int | None = None,
    max_tensors: int | None = None,
) -> Plan:
    """The plan of least period for a cost graph.

    Exact over all downsets where there are at most 10^5, over the prefixes of one topological
    order where there are more; `Plan.family` says which. A stage's `units` are its nodes; `start`
    and `stop` count nodes in the order of the stages. Through the host a stage's `receive_s` holds
    all its transfers.

    Args:
        graph: the costs, or the file that holds them.
        cluster: devices; all links must cost the same.
        serial: whether computing and sending add up.
        num_stages: exactly this many, or None for any number.
        max_tensors: the most tensors that may cross a cut, or None.

    Raises:
        PlanError: the graph, the cluster or the number of stages allows no plan.
        InfeasiblePlan: no placement fits the devices' memory.
    """
    costs = graph if isinstance(graph, CostGraph) else load_cost_graph(graph)
    problem = _first_problem(costs)
    if problem:
        raise PlanError(problem)
    if cluster.overrides or cluster.caller is not None:
        raise PlanError(
            "a cost graph is planned with one kind of link: leave out link.between and caller"
        )
    kinds = _kinds(costs, cluster)
    dag = _dag(costs, cluster, kinds, serial, num_stages, max_tensors)
    try:
        solution = solve_downsets(dag)
    except OverBudget as reason:
        raise PlanError(f"too many unequal devices for a cost graph: {reason}") from reason
    if solution is None:
        raise _explain(costs, dag, kinds, num_stages)
    return _plan(costs, cluster, dag, kinds, solution)


def _kinds(costs: CostGraph, cluster: Cluster) -> list[list[Device]]:
    """Groups devices with the same seconds and memory."""
    named = {name for node in costs.nodes for name in node.seconds}
    kinds: dict[tuple[str, float, int | None], list[Device]] = {}
    for device in cluster.devices:
        own = device.name if device.name in named else ""
        key = own, 1.0 if own else device.speed, device.memory_bytes
        kinds.setdefault(key, []).append(device)
    return list(kinds.values())


def _dag(
    costs: CostGraph,
    cluster: Cluster,
    kinds: list[list[Device]],
    serial: bool,
    num_stages: int | None,
    max_tensors: int | None,
) -> DagProblem:
    place = {node.name: k for k, node in enumerate(costs.nodes)}
    groups = {name: k for k, name in enumerate(sorted({node.group for node in costs.nodes} - {""}))}
    single = len(groups)
    seconds = np.full((len(kinds), len(costs.nodes)), math.inf)
    for row, kind in enumerate(kinds):
        for column, node in enumerate(costs.nodes):
            if kind[0].name in node.seconds:
                seconds[row, column] = node.seconds[kind[0].name]
            elif "" in node.seconds:
                seconds[row, column] = node.seconds[""] / kind[0].speed
    link, host = cluster.link, costs.transfers == "host"
    return DagProblem(
        seconds=seconds,
        weight_bytes=np.array([node.weight_bytes for node in costs.nodes], dtype=np.float64),
        tensors=tuple(
            Tensor(
                source=place[tensor.source],
                targets=tuple(place[name] for name in tensor.targets),
                transfer_s=tensor.num_bytes / link.bandwidth_bytes_per_s
                + (link.latency_s if host else 0.0),
            )
            for tensor in costs.tensors
        ),
        groups=np.array([groups.get(node.group, single + k) for k, node in enumerate(costs.nodes)]),
        counts=tuple(len(kind) for kind in kinds),
        limit_bytes=np.array(
            [math.inf if k[0].memory_bytes is None else k[0].memory_bytes for k in kinds]
        ),
        through_host=host,
        pays=(True,) * len(kinds),
        link_latency_s=link.latency_s,
        serial=serial,
        num_stages=num_stages,
        max_tensors=max_tensors,
    )


def _explain(
    costs: CostGraph, dag: DagProblem, kinds: list[list[Device]], num_stages: int | None
) -> PlanError:
    """Why a cost graph has no plan."""
    unlimited = np.full(len(kinds), math.inf)
    if solve_downsets(dataclasses.replace(dag, limit_bytes=unlimited)) is None:
        return PlanError(
            f"no plan has {num_stages or 'any number of'} stages over {len(costs.nodes)} nodes and "
            f"{sum(dag.counts)} devices"
        )
    limits = [kind[0].memory_bytes for kind in kinds]
    row = max(
        (k for k, limit in enumerate(limits) if limit is not None), key=lambda k: limits[k] or 0
    )
    device, have = kinds[row][0], limits[row] or 0
    low, high = have, max(have, int(dag.weight_bytes.sum()))
    while low < high:  # more memory never makes a plan impossible
        middle = (low + high) // 2
        if solve_downsets(_with_one_raised(dag, row, middle)) is None:
            low = middle + 1
        else:
            high = middle
    if solve_downsets(_with_one_raised(dag, row, low)) is None:
        return PlanError(
            "no placement fits the devices' memory, and more on one device alone would not do"
        )
    return InfeasiblePlan(
        f"no placement fits the devices' memory: {device.name!r}, the largest device, has {have:,} "
        f"bytes and lacks {low - have:,}; with {low:,} bytes there a plan exists",
        needed_bytes=low,
        available_bytes=have,
        device=device.name,
    )


def _with_one_raised(dag: DagProblem, row: int, size: int) -> DagProblem:
    """The problem with one device of a class made a class of its own, with that much memory."""
    counts = [count - (k == row) for k, count in enumerate(dag.counts)]
    return dataclasses.replace(
        dag,
        seconds=np.vstack([dag.seconds, dag.seconds[row]]),
        counts=(*counts, 1),
        limit_bytes=np.append(dag.limit_bytes, float(size)),
        pays=(*dag.pays, dag.pays[row]),
    )


def _plan(
    costs: CostGraph,
    cluster: Cluster,
    dag: DagProblem,
    kinds: list[list[Device]],
    solution: DagSolution,
) -> Plan:
    free = [list(kind) for kind in kinds]
    stages, position = [], 0
    cuts_s = (0.0, *solution.cuts_s, 0.0)
    placed = zip(solution.stages, solution.classes, solution.loads_s, strict=True)
    for index, (nodes, kind, load_s) in enumerate(placed):
        compute_s = float(dag.seconds[kind, list(nodes)].sum())
        device = free[kind].pop(0)
        names = tuple(costs.nodes[k].name for k in nodes)
        size = sum(costs.nodes[k].weight_bytes for k in nodes)
        inside = set(names)
        leaving = sum(
            t.num_bytes for t in costs.tensors if t.source in inside and set(t.targets) - inside
        )
        stages.append(
            StagePlan(
                index=index,
                first=names[0],
                last=names[-1],
                start=position,
                stop=position + len(nodes),
                units=names,
                device=device.name,
                compute_s=compute_s,
                send_s=cuts_s[index + 1],
                weight_bytes=size,
                memory_bytes=size,
                output_bytes_per_sample=leaving,
                receive_s=cuts_s[index] if not dag.through_host else load_s - compute_s,
                memory_limit_bytes=device.memory_bytes,
            )
        )
        position += len(nodes)
    used = {stage.device for stage in stages}
    latency_s = sum(solution.loads_s)  # through the host the loads hold every transfer
    if not dag.through_host:  # serial loads hold each cut on both of its sides
        latency_s += sum(solution.cuts_s) * (-1 if dag.serial else 1)
    detail = f"every plan over {solution.num_downsets:,} {solution.family} cuts was ruled out"
    return Plan(
        format=PLAN_FORMAT,
        objective="throughput",
        micro_batch=1,
        stages=tuple(stages),
        period_s=solution.period_s,
        latency_s=latency_s,
        bound_s=solution.period_s,
        bound_by="exhaustion",
        gap=0.0,
        serial=dag.serial or dag.through_host,
        family=solution.family,
        certificates=(Certificate(name="exhaustion", bound_s=solution.period_s, detail=detail),),
        unused_devices=tuple(d.name for d in cluster.devices if d.name not in used),
    )
