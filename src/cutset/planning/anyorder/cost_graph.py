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
not named; ``null`` says that the node may not run there. Nodes of the same non-empty ``group``
share a stage. ``weight_bytes``, ``group`` and ``transfers`` may be left out. With ``"neighbour"`` a
cut sends every tensor alive there to the next stage; with ``"host"`` each stage takes from and
gives to host memory, over the cluster's default link, every tensor that crosses its border, one
after the other with computing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from cutset.cluster.devices import Cluster, Device
from cutset.errors import PlanError
from cutset.planning.anyorder.cost_graph_checks import first_problem, first_repeated_key
from cutset.planning.anyorder.cost_graph_reasons import limit_not_kept, no_plan
from cutset.planning.anyorder.downsets import DagProblem, DagSolution, Tensor, contract
from cutset.planning.anyorder.fewer_downsets import certificates_for_all
from cutset.planning.anyorder.goals import MAX_FRONT, Goals, OutOfReach
from cutset.planning.anyorder.graph_wires import (
    check_wires,
    half_duplex_costs,
    link_of,
    medium_of,
)
from cutset.planning.deadline import OutOfTime, OverBudget, within
from cutset.planning.plan import PLAN_FORMAT, Certificate, Plan, StagePlan, gap_of, proven_among
from cutset.planning.plan_messages import planned_messages
from cutset.planning.request import Objective, PlanRequest
from cutset.planning.watch import unheard

_MAX_FILE_BYTES = 64 << 20
_T = TypeVar("_T")


class CostNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the work: seconds by device name, ``""`` for the reference device.

    None or infinity: it may not run there.
    """

    name: str
    seconds: dict[str, float | None]
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
    transfers: str = "neighbour"  # `first_problem` names the choices, which msgspec would not


def load_cost_graph(path: str | Path) -> CostGraph:
    """Reads and checks a cost graph.

    Raises:
        PlanError: the file cannot be read or breaks a rule; the message gives the path within it.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise PlanError(f"{path}: longer than {_MAX_FILE_BYTES:,} bytes, so no cost graph")
        graph = msgspec.json.decode(data, type=CostGraph)
        repeated = first_repeated_key(data)
    except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else error
        raise PlanError(f"{path}: the cost graph cannot be read: {reason}") from error
    problem = first_problem(graph)
    if repeated is not None:
        problem = f"an object has the key {repeated!r} twice; only one of the values could be used"
    if problem:
        raise PlanError(f"{path}: {problem}")
    return graph


def plan_cost_graph(
    graph: CostGraph | str | Path, request: PlanRequest, *, max_tensors: int | None = None
) -> Plan:
    """The best plan for a cost graph.

    Exact over all downsets where there are at most 10^5, with nodes that cost nothing joined with
    what they read if that is needed. Where there are more, the cuts of several topological orders
    are searched, and bounds that hold for any cut judge the plan; `Plan.family` says which. A
    stage's `units` are its nodes; `start` and `stop` count nodes in the order of the stages.
    Through the host a stage's `receive_s` holds all its transfers. A row is a micro-batch: what the
    graph's seconds are for.

    Args:
        graph: the costs, or the file that holds them.
        request: what is request. All links of its cluster must cost the same. Overheads and the
            costs of bytes count in the period, as for a model.
        max_tensors: the most tensors that may cross a cut, or None.

    Raises:
        PlanError: the graph, the cluster or the number of stages allows no plan, none keeps the
            limits, or the request names cuts.
        InfeasiblePlan: no placement fits the devices' memory.
        ValueError: `max_tensors` is below 1.
    """
    task = _Task(graph, request, max_tensors)
    by_latency = request.objective == "latency"
    reached = task.answer(lambda goals: goals.best(by_latency=by_latency, **task.limits))
    return task.plan(
        reached.solution, request.objective, reached.bound_s, is_searched=reached.is_complete
    )


def pareto_cost_graph(
    graph: CostGraph | str | Path, request: PlanRequest, *, max_tensors: int | None = None
) -> tuple[Plan, ...]:
    """Every plan for a cost graph that no other beats in both period and latency.

    By rising period. Arguments and errors as for `plan_cost_graph`; the objective does not matter.
    Where the time limit ends the search, the plans found are on the front, and each has a note that
    there may be more.
    """
    task = _Task(graph, request, max_tensors)
    if task.dag.medium is not None:
        raise PlanError("the front of a cost graph over a medium is not planned; plan the model")
    with unheard():  # which is of many plans, none of them the best
        found = task.answer(lambda goals: goals.front(**task.limits))
    if found is None:
        raise PlanError(
            f"over {MAX_FRONT} plans are the best in period or latency; narrow them down with "
            "--max-latency, --min-throughput or --stages"
        )
    effect = "plans of a smaller period may be missing"
    notes = () if found.is_complete else (_time_is_over(request, effect),)
    return tuple(
        task.plan(each, "throughput", each.period_s, notes=notes) for each in reversed(found.plans)
    )


def _time_is_over(request: PlanRequest, effect: str) -> str:
    return f"the time limit of {request.time_limit_s:g} s was reached: {effect}"


class _Task:
    """A graph and what is wanted, as numbers.

    Raises:
        PlanError: the graph or the cluster cannot be planned with.
        ValueError: `max_tensors` is below 1.
    """

    def __init__(
        self, graph: CostGraph | str | Path, request: PlanRequest, max_tensors: int | None
    ) -> None:
        if max_tensors is not None and max_tensors < 1:
            raise ValueError(f"max_tensors must be at least 1, got {max_tensors}")
        if request.cut_names:
            raise PlanError(
                "a cost graph takes no cuts: its stages are sets of nodes, not parts of one order; "
                "hold nodes together by 'group'"
            )
        if request.replicas > 1:
            raise PlanError(
                "the stages of a cost graph are planned with one device each: leave replicas out"
            )
        if request.allow:
            raise PlanError(
                "a cost graph takes no codecs: it knows bytes, and no tensors that could be written"
                " otherwise"
            )
        self.costs = graph if isinstance(graph, CostGraph) else load_cost_graph(graph)
        self.request = request.resolved()
        self.cluster = request.devices_and_links
        problem = first_problem(self.costs)
        if problem:
            raise PlanError(problem)
        check_wires(self.cluster, request, through_host=self.costs.transfers == "host")
        self.kinds = _kinds(self.costs, self.cluster, fixed_order=request.fixed_order)
        self.dag = _dag(self.costs, self.request, self.kinds, max_tensors)

    @property
    def limits(self) -> dict[str, float]:
        """As `Goals` takes them, infinity for none."""
        latency_s, period_s = self.request.max_latency_s, self.request.max_period_s(1)
        return {
            "max_latency_s": math.inf if latency_s is None else latency_s,
            "max_period_s": math.inf if period_s is None else period_s,
        }

    def answer(self, ask: Callable[[Goals], _T]) -> _T:
        """What the search answers, its refusals in words.

        Raises:
            PlanError: as `plan_cost_graph`.
        """
        try:
            goals = Goals(self.dag)
            try:
                return ask(goals)
            except LookupError as reason:
                raise no_plan(
                    self.costs, self.dag, self.kinds, self.request, goals.family
                ) from reason
        except OutOfTime as reason:
            raise PlanError(f"no plan was found: {reason}; give it more, or join nodes") from reason
        except OverBudget as reason:
            raise PlanError(f"too many unequal devices for a cost graph: {reason}") from reason
        except OutOfReach as reason:
            raise limit_not_kept(reason, self.request) from reason

    def plan(
        self,
        solution: DagSolution,
        objective: Objective,
        bound_s: float,
        *,
        is_searched: bool = True,
        notes: tuple[str, ...] = (),
    ) -> Plan:
        """A solution with names, predictions and its proof, and what else is to be said of it."""
        costs, cluster, dag, request = self.costs, self.cluster, self.dag, self.request
        stages = _stages(costs, dag, self.kinds, solution)
        used = {stage.device for stage in stages}
        value_s = solution.latency_s if objective == "latency" else solution.busiest_s
        sizes = [0, *solution.cut_bytes, 0]
        devices = [stage.device for stage in stages]
        certificates = self._certificates(
            solution, value_s, bound_s, by_latency=objective == "latency", is_searched=is_searched
        )
        if not is_searched and certificates[0].bound_s < value_s * (1 - 1e-9):
            effect = "more time may give a better plan or bound"
            notes = (*notes, _time_is_over(request, effect))
        bound_s = certificates[0].bound_s
        costs_time = dag.link_latency_s or any(tensor.transfer_s for tensor in dag.tensors)
        is_apart = bool(costs_time) and not cluster.has_shared_wires
        return Plan(
            format=PLAN_FORMAT,
            objective=objective,
            micro_batch=1,
            stages=stages,
            period_s=solution.busiest_s,
            latency_s=solution.latency_s,
            bound_s=bound_s,
            bound_by=certificates[0].name,
            gap=gap_of(value_s, bound_s),
            serial=dag.serial or dag.through_host,
            fixed_order=request.fixed_order,
            max_latency_s=request.max_latency_s,
            min_rows_per_s=request.min_rows_per_s,
            family=solution.family,
            proven_among=proven_among(solution.family, is_apart=is_apart),
            certificates=certificates,
            unused_devices=tuple(d.name for d in cluster.devices if d.name not in used),
            notes=(*notes, *_notes(costs, cluster)),
            messages=() if dag.through_host else planned_messages(cluster, devices, sizes),
        )

    def _certificates(
        self,
        solution: DagSolution,
        value_s: float,
        bound_s: float,
        *,
        by_latency: bool,
        is_searched: bool,
    ) -> tuple[Certificate, ...]:
        """What bounds the objective of plans with any cut, the tightest first."""
        searched = f"{solution.num_downsets:,} cuts"
        if solution.family == "downset" and is_searched and bound_s >= value_s * (1 - 1e-9):
            detail = f"every plan over {searched}, which are all, was ruled out"
            return (Certificate(name="exhaustion", bound_s=bound_s, detail=detail),)
        parts, _ = contract(self.dag)
        found = list(certificates_for_all(self.dag, parts, value_s, by_latency=by_latency))
        if solution.family == "downset":
            detail = f"the search over {searched}, which are all, was ended by the time limit"
            found.append(Certificate(name="search", bound_s=bound_s, detail=detail))
        return tuple(sorted(found, key=lambda certificate: -certificate.bound_s))


def _kinds(costs: CostGraph, cluster: Cluster, *, fixed_order: bool) -> list[list[Device]]:
    """Groups devices that are alike in everything but their name; each alone where order counts."""
    named = {name for node in costs.nodes for name in node.seconds}
    kinds: dict[object, list[Device]] = {}
    for device in cluster.devices:
        own = device.name if device.name in named or fixed_order else ""
        key = own, device.speed, device.memory_bytes, device.overhead_s, device.port
        kinds.setdefault(key, []).append(device)
    return list(kinds.values())


def _dag(
    costs: CostGraph,
    request: PlanRequest,
    kinds: list[list[Device]],
    max_tensors: int | None,
) -> DagProblem:
    place = {node.name: k for k, node in enumerate(costs.nodes)}
    groups = {name: k for k, name in enumerate(sorted({node.group for node in costs.nodes} - {""}))}
    single = len(groups)
    seconds = np.full((len(kinds), len(costs.nodes)), math.inf)
    for row, kind in enumerate(kinds):
        for column, node in enumerate(costs.nodes):
            name = kind[0].name
            found = node.seconds.get(name, node.seconds.get(""))
            if found is not None:
                seconds[row, column] = found / (1.0 if name in node.seconds else kind[0].speed)
    cluster, host = request.devices_and_links, costs.transfers == "host"
    link = link_of(cluster)
    return DagProblem(
        seconds=seconds,
        weight_bytes=np.array([node.weight_bytes for node in costs.nodes], dtype=np.float64),
        tensors=tuple(
            Tensor(
                source=place[tensor.source],
                targets=tuple(place[name] for name in tensor.targets),
                transfer_s=tensor.num_bytes / link.bandwidth_bytes_per_s
                + (link.latency_s if host else 0.0),
                num_bytes=tensor.num_bytes,
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
        serial=request.serial,
        num_stages=request.num_stages,
        max_tensors=max_tensors,
        overhead_s=tuple(kind[0].overhead_s for kind in kinds),
        send_s_per_byte=link.send_s_per_byte,
        receive_s_per_byte=link.receive_s_per_byte,
        fixed_order=request.fixed_order,
        half_duplex=half_duplex_costs([kind[0] for kind in kinds]),
        medium=medium_of(cluster),
        deadline=within(request.time_limit_s),
    )


def _stages(
    costs: CostGraph, dag: DagProblem, kinds: list[list[Device]], solution: DagSolution
) -> tuple[StagePlan, ...]:
    free = [list(kind) for kind in kinds]
    stages, position = [], 0
    cuts_s = (0.0, *solution.cuts_s, 0.0)
    placed = zip(solution.stages, solution.classes, solution.loads_s, strict=True)
    for index, (nodes, kind, load_s) in enumerate(placed):
        compute_s = math.fsum(dag.seconds[kind, list(nodes)])
        device = free[kind].pop(0)
        names = tuple(costs.nodes[k].name for k in nodes)
        size = sum(costs.nodes[k].weight_bytes for k in nodes)
        inside = set(names)
        leaving = sum(
            t.num_bytes for t in costs.tensors if t.source in inside and set(t.targets) - inside
        )
        moves_s = cuts_s[index] + cuts_s[index + 1]
        if dag.through_host:
            receive_s, overhead_s = load_s - compute_s - device.overhead_s, device.overhead_s
        else:
            receive_s = cuts_s[index]
            overhead_s = load_s - compute_s - (moves_s if dag.serial else 0.0)
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
                receive_s=receive_s,
                memory_limit_bytes=device.memory_bytes,
                overhead_s=max(0.0, overhead_s) if overhead_s > 1e-12 * load_s else 0.0,
            )
        )
        position += len(nodes)
    return tuple(stages)


def _notes(costs: CostGraph, cluster: Cluster) -> tuple[str, ...]:
    """What of the graph and of the cluster file is not used, a sentence each."""
    names = [device.name for device in cluster.devices]
    others = {name for node in costs.nodes for name in node.seconds} - {*names, ""}
    notes = []
    for name in sorted(others):
        near = get_close_matches(name, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        notes.append(
            f"the graph has seconds for {name!r}, which is no device of the cluster and not "
            f"used{hint}"
        )
    notes += [
        f"the profile of device {device.name!r} is not used: a cost graph holds its own seconds"
        for device in cluster.devices
        if device.profile is not None
    ]
    return tuple(notes)
