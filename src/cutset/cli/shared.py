"""What the options mean that several commands share; they are read where the commands got them.

An option has one name in all commands, so a command declares it and hands its context on, instead
of each value to each function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from cutset.cli import options
from cutset.cli.screen import planning_teller, show_progress, usage_error
from cutset.progress import Progress

if TYPE_CHECKING:
    from cutset.planning import Objective, Plan, PlanRequest
    from cutset.workflow import AnswerLimits, PreparedModel


def prepared_model(
    context: typer.Context, progress: Progress, *, any_weights: bool = True
) -> PreparedModel:
    """The model that a command names, captured and judged as its options say.

    Args:
        context: of the command.
        progress: told of every step.
        any_weights: whether random weights serve where none are named.
    """
    from cutset.workflow import prepare_model

    given = context.params
    weights = given["weights"]
    return prepare_model(
        given["model"],
        weights=options.any_weights(given["model"], weights) if any_weights else weights,
        keep=given["keep"] or (),
        divide=given["divide"] or (),
        max_tensors=given["max_tensors"],
        part=given["part"],
        micro_batch_only=given["micro_batch_only"],
        progress=progress,
    )


def described_images(context: typer.Context) -> Callable[[PreparedModel], PreparedModel]:
    """What tells a model of --preprocess and --labels, which are read at once.

    Raises:
        ModelError: one of them cannot be read; what it returns raises it for images that become
            other rows than the model takes.
    """
    from cutset.bundles.write.description import check_images
    from cutset.models.images_and_labels import described, read_labels, read_preprocessing

    preprocess, names = context.params["preprocess"], context.params["labels"]
    if names is not None and context.params.get("part") is not None:
        usage_error("--labels name what a whole model answers, and --part leaves some of it out")
    preprocessing = None if preprocess is None else read_preprocessing(preprocess)
    labels = None if names is None else read_labels(names)

    def describe(prepared: PreparedModel) -> PreparedModel:
        if preprocessing is not None:
            check_images(preprocessing, prepared.captured.graph.inputs)
        found = described(prepared.found, preprocessing=preprocessing, labels=labels)
        return dataclasses.replace(prepared, found=found)

    return describe


def plan_request(context: typer.Context) -> PlanRequest:
    """What a plan is wanted for, after a check that the options say something and one thing only.

    ``--objective pareto``, which `plan` has besides, is taken for a wish without one.

    Raises:
        PlanError: the cluster file cannot be read, or cuts and stages contradict each other.
    """
    given = context.params
    objective = _objective(given["objective"], is_front=context.command.name == "plan")
    if given["cluster"] is None and given["stages"] is None and not given["cut"]:
        usage_error(
            "say on what to place the graph: --stages N or --cluster FILE.toml"
            if given.get("cost_graph")
            else "say how to divide the model: --stages N, --cluster FILE.toml or --cut AFTER"
        )
    for name in ("max_latency", "min_throughput", "time_limit"):
        if given[name] is not None and given[name] <= 0:
            usage_error(f"{options.written(name)} must be above 0, got {given[name]}")
    from cutset.cluster.cluster_file import load_cluster
    from cutset.planning import PlanRequest

    return PlanRequest(
        num_stages=given["stages"],
        cut_names=tuple(given["cut"] or ()),
        cluster=load_cluster(given["cluster"]) if given["cluster"] is not None else None,
        objective=objective,
        serial=given["serial"],
        fixed_order=given["fixed_order"],
        max_latency_s=given["max_latency"],
        min_rows_per_s=given["min_throughput"],
        time_limit_s=given["time_limit"],
        allow=_allowed(given["allow"] or ()),
        replicas=_replicas(context),
    )


def _replicas(context: typer.Context) -> int:
    """The most devices of a stage."""
    from cutset.planning.request import MAX_REPLICAS

    count: int = context.params["replicas"]
    if context.params["no_replicas"]:
        if options.is_given(context, "replicas") and count != 1:
            usage_error(f"--no-replicas is --replicas 1, and --replicas {count} was given too")
        return 1
    if not 1 <= count <= MAX_REPLICAS:
        usage_error(f"--replicas is 1 to {MAX_REPLICAS} devices, got {count}")
    return count


def _allowed(names: Sequence[str]) -> tuple[str, ...]:
    from cutset.codecs.known_codecs import ALLOWABLE

    for name in names:
        if name not in ALLOWABLE:
            usage_error(f"--allow {name!r} is no codec; there are {', '.join(ALLOWABLE)}")
    return tuple(dict.fromkeys(names))


def answer_limits(context: typer.Context) -> AnswerLimits:
    """How far the codecs that `split` may use may change answers."""
    from cutset.workflow import AnswerLimits

    given = context.params
    for name in ("calibration", "min_agreement", "max_error"):
        if not given["allow"] and options.is_given(context, name):
            usage_error(f"{options.written(name)} is for codecs that --allow names")
    return AnswerLimits(
        calibration=tuple(map(Path, given["calibration"] or ())),  # as typed: not converted yet
        min_agreement=given["min_agreement"],
        max_error=given["max_error"],
    )


def _objective(name: str, *, is_front: bool) -> Objective:
    from cutset.planning import Objective

    known: dict[str, Objective] = {each: each for each in get_args(Objective)}
    if is_front:
        known["pareto"] = "throughput"
    if name not in known:
        usage_error(f"--objective {name!r} is unknown here")
    return known[name]


def planned_costs(context: typer.Context, request: PlanRequest) -> dict[str, Any]:
    """What `plan_model` takes besides the model and the request: what the options about costs say.

    Raises:
        PlanError: a profile cannot be read.
        EngineError: there is no such backend.
    """
    from cutset.backends.selection import AUTO, check_backend_name
    from cutset.costs.profile import load_profile
    from cutset.workflow import Costs, load_profiles

    given = context.params
    cost, backend, file = given["cost"], given["backend"], given["profile_file"]
    if cost not in ("measured", "flops"):
        usage_error(f"--cost is 'measured' or 'flops', got {cost!r}")
    if cost == "flops" and file is not None:
        usage_error(
            "--cost flops counts multiply-adds, a --profile holds seconds: give one of them"
        )
    backend = check_backend_name(backend)
    if cost == "flops" and backend != AUTO:
        usage_error("--backend is for measured costs; multiply-adds are the same for all")
    costs: Costs = "flops"
    threads = None
    if cost == "measured":
        threads = given["threads"]
        folder = Path(given["cluster"] or "").parent
        reference = load_profile(file) if file is not None else None
        costs = load_profiles(request.cluster, folder, reference) or "measured"
    return {
        "costs": costs,
        "backend": backend,
        "batch_size": given["batch_size"],
        "num_threads": threads,
    }


_NOT_FOR_COST_GRAPHS = {
    "replicas": "its stages are planned with one device each",
    "allow": "it knows bytes, and no tensors that could be written otherwise",
    "cut": "its stages are sets of nodes, not parts of one order: hold nodes together by 'group'",
    "granularity": "it has no units: its nodes are what is placed",
    "cost": "it holds its own seconds",
    "backend": "it holds its own seconds, of whatever computes",
    "profile_file": "it holds its own seconds",
    "weights": "it has no model",
    "part": "it has no model",
    "micro_batch_only": "it has no model",
    "batch_size": "its seconds are for one micro-batch, whatever its rows",
    "threads": "it holds its own seconds, and nothing is measured",
    "keep": "it has no modules: hold nodes together by 'group'",
    "divide": "it has no modules: its nodes are what is placed",
}
"""Options of `plan` that a cost graph has no use for, and why."""


_NOT_FOR_BUNDLES = (
    "stages", "cut", "granularity", "cost", "backend", "profile_file", "weights", "batch_size",
    "micro_batch_only", "threads", "keep", "divide", "max_tensors", "part", "allow",
)  # fmt: skip


def bundle_plan(context: typer.Context) -> Plan:
    """The plan for the shards of the bundle that `plan` names."""
    from cutset.planning.watch import watching
    from cutset.workflow import plan_shards

    given = context.params
    if given["objective"] == "pareto":
        usage_error("--objective pareto is for a model: the stages of a --bundle are given")
    for name in _NOT_FOR_BUNDLES:
        if options.is_given(context, name):
            option = "--profile" if name == "profile_file" else options.written(name)
            usage_error(f"{option} is not for a --bundle: its shards are as they were split")
    if given["cluster"] is None:
        usage_error("--bundle needs the devices to plan for: --cluster FILE.toml")
    request = plan_request(context)
    with show_progress() as progress, watching(planning_teller(progress, given["objective"])):
        return plan_shards(given["bundle"], request, is_written=given["write"])


def cost_graph_plans(context: typer.Context) -> tuple[Plan, ...]:
    """The plan, or the plans of the front, for the cost graph that `plan` names."""
    from cutset.planning import pareto_cost_graph, plan_cost_graph
    from cutset.planning.watch import watching

    given = context.params
    is_front = given["objective"] == "pareto"
    _objective(given["objective"], is_front=True)
    for name, reason in _NOT_FOR_COST_GRAPHS.items():
        if options.is_given(context, name):
            option = "--profile" if name == "profile_file" else options.written(name)
            usage_error(f"{option} is not for a --cost-graph: {reason}")
    max_tensors = given["max_tensors"] if options.is_given(context, "max_tensors") else None
    graph, request = Path(given["cost_graph"]), plan_request(context)
    with show_progress() as progress, watching(planning_teller(progress, given["objective"])):
        if is_front:
            return pareto_cost_graph(graph, request, max_tensors=max_tensors)
        return (plan_cost_graph(graph, request, max_tensors=max_tensors),)
