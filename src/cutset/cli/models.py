"""Commands about models: inspect, profile, plan, split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from cutset.cli import options
from cutset.cli.screen import (
    Say,
    native_output_to_stderr,
    planning,
    print_json,
    print_json_text,
    progress,
    stdout,
    tell,
    usage_error,
    write_text,
)
from cutset.errors import CutsetError

if TYPE_CHECKING:
    from cutset.costs.model import Profile
    from cutset.measure.profiling import PieceBackend
    from cutset.planning import Plan
    from cutset.planning.request import Objective, PlanRequest
    from cutset.workflow import PreparedModel


def inspect(
    model: options.Model,
    weights: options.Weights = None,
    refused: Annotated[bool, typer.Option(help="show every refused position too")] = False,
    keep: options.Keep = None,
    divide: options.Divide = None,
    max_tensors: options.MaxTensors = 1,
    part: options.Part = None,
    micro_batch_only: options.MicroBatchOnly = None,
    as_json: options.Json = False,
) -> None:
    """Show where a model may be cut: units, cut points, bytes, work; and why not elsewhere."""
    from cutset.report.documents import inspection_document
    from cutset.report.text import print_inspection, print_part

    with progress() as say:
        prepared = _prepare(
            model,
            options.any_weights(model, weights),
            keep,
            divide,
            max_tensors,
            part,
            micro_batch_only,
            say,
        )
    graph, entry = prepared.captured.graph, prepared.part_entry
    if as_json:
        print_json(inspection_document(prepared.found.name, graph, prepared.cuts, part=entry))
    else:
        print_inspection(stdout(), prepared.name, graph, prepared.cuts, refused=refused)
        print_part(stdout(), entry)


def profile(
    model: options.Model,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="the file to write")] = None,
    weights: options.Weights = None,
    batch_size: options.BatchSize = None,
    micro_batch_only: options.MicroBatchOnly = None,
    threads: options.Threads = 1,
    runs: options.Runs = 20,
    device: Annotated[
        str | None, typer.Option(help="this device's name; the host's by default")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="torch-compiled too; takes a minute, needs g++")
    ] = False,
    keep: options.Keep = None,
    divide: options.Divide = None,
    max_tensors: options.MaxTensors = 1,
    part: options.Part = None,
    as_json: options.Json = False,
) -> None:
    """Measure on this device what every piece of a model costs."""
    from cutset.costs.model import profile_to_json
    from cutset.report.text import print_part, print_profile
    from cutset.workflow import stage_backends

    if device == "":
        usage_error("--device is empty; leave it out for the host's name")
    with progress() as say:
        prepared = _prepare(
            model,
            options.any_weights(model, weights),
            keep,
            divide,
            max_tensors,
            part,
            micro_batch_only,
            say,
        )
        backends = stage_backends(prepared, num_threads=threads, compiled=compiled)
        measured = _measure(prepared, backends, batch_size, threads, runs, device or "", say)
    text = profile_to_json(measured)
    if output is not None:
        write_text(output, text + "\n")
    if as_json:
        print_json_text(text)
    else:
        print_profile(stdout(), measured)
        print_part(stdout(), prepared.part_entry)


def plan(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="as for inspect")] = None,
    stages: options.Stages = None,
    cluster: options.Cluster = None,
    cut: options.Cut = None,
    objective: Annotated[str, typer.Option(metavar="throughput|latency|pareto")] = "throughput",
    max_latency: options.MaxLatency = None,
    min_throughput: options.MinThroughput = None,
    time_limit: options.TimeLimit = "60 s",  # type: ignore[assignment]  # as if typed
    serial: options.Serial = False,
    fixed_order: options.FixedOrder = False,
    granularity: Annotated[
        str, typer.Option(metavar="unit|op", help="op: what cuts inside units would gain")
    ] = "unit",
    cost_graph: Annotated[
        Path | None, typer.Option(help="plan a cost graph (JSON) instead of a model")
    ] = None,
    cost: options.Cost = "measured",
    backend: options.PlannedBackend = "auto",
    profile_file: options.ProfileFile = None,
    weights: options.Weights = None,
    batch_size: options.BatchSize = None,
    micro_batch_only: options.MicroBatchOnly = None,
    threads: options.PlannedThreads = None,
    keep: options.Keep = None,
    divide: options.Divide = None,
    max_tensors: options.MaxTensors = 1,
    part: options.Part = None,
    as_json: options.Json = False,
) -> None:
    """Find the best stages for equal devices or for a cluster, with the bound that judges them."""
    from cutset.report.documents import front_document, plan_document
    from cutset.report.text import print_front, print_part, print_plan

    if granularity not in ("unit", "op"):
        usage_error(f"--granularity is 'unit' or 'op', got {granularity!r}")
    if (model is None) == (cost_graph is None):
        usage_error("name either a MODEL or a --cost-graph")
    is_front = objective == "pareto"
    if is_front and granularity == "op":
        usage_error("--granularity op is for one plan, --objective pareto is for all: give one")
    if model is not None and cost == "flops" and threads is not None:
        usage_error("--threads is for measured costs; multiply-adds are the same for any number")
    if cost_graph is not None:
        plans = _plan_cost_graph(
            context, cost_graph, stages, cluster, objective, serial, fixed_order,
            max_latency, min_throughput, time_limit,
            max_tensors if options.is_given(context, "max_tensors") else None,
        )  # fmt: skip
        if is_front:
            print_json(front_document(plans)) if as_json else print_front(stdout(), plans)
        else:
            print_json(plan_document(plans[0])) if as_json else print_plan(stdout(), plans[0])
        return
    from cutset.workflow import plan_front, plan_stages

    assert model is not None
    request = _request(
        stages, cluster, cut, "throughput" if is_front else objective, serial, fixed_order,
        max_latency, min_throughput, time_limit,
    )  # fmt: skip
    gain = None
    with progress() as say:
        prepared = _prepare(
            model,
            options.any_weights(model, weights),
            keep,
            divide,
            max_tensors,
            part,
            micro_batch_only,
            say,
        )
        costs, backends = _costs(
            prepared, request, cluster, cost, backend, profile_file, batch_size, threads, say
        )
        say(f"planning, at most {request.time_limit_s:g} s")
        if is_front:
            with planning(say, objective):
                front = plan_front(prepared, request, profile=costs, batch_size=batch_size)
        else:
            result = _best_plan(prepared, request, costs, backends, batch_size, threads or 1, say)
            if granularity == "op":
                from cutset.planning import gain_inside_units

                with planning(say, objective):
                    coarse, finer = (
                        plan_stages(
                            prepared,
                            request,
                            profile=costs,
                            batch_size=batch_size,
                            granularity=each,
                        )
                        for each in ("unit", "op")
                    )
                gain = gain_inside_units(coarse, finer)
    entry = prepared.part_entry
    if as_json and is_front:
        print_json(front_document(front, part=entry))
    elif as_json:
        print_json(plan_document(result, part=entry, gain_inside_units=gain))
    else:
        print_front(stdout(), front) if is_front else print_plan(stdout(), result)
        if gain is not None:
            stdout().print(f"cuts inside units would gain {gain:.1%}")
        print_part(stdout(), entry)


def split(
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="the bundle")],
    stages: options.Stages = None,
    cluster: options.Cluster = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT|auto",
            help="with --cluster: have this Ray cluster's nodes time their stages as wholes",
        ),
    ] = None,
    cut: options.Cut = None,
    objective: Annotated[str, typer.Option(metavar="throughput|latency")] = "throughput",
    max_latency: options.MaxLatency = None,
    min_throughput: options.MinThroughput = None,
    time_limit: options.TimeLimit = "60 s",  # type: ignore[assignment]  # as if typed
    serial: options.Serial = False,
    fixed_order: options.FixedOrder = False,
    cost: options.Cost = "measured",
    backend: options.PlannedBackend = "auto",
    profile_file: options.ProfileFile = None,
    weights: options.Weights = None,
    batch_size: options.BatchSize = None,
    micro_batch_only: options.MicroBatchOnly = None,
    threads: options.PlannedThreads = None,
    keep: options.Keep = None,
    divide: options.Divide = None,
    max_tensors: options.MaxTensors = 1,
    part: options.Part = None,
    force: Annotated[bool, typer.Option(help="replace a bundle that is there")] = False,
    as_json: options.Json = False,
) -> None:
    """Capture, profile, plan, export and verify: from a model to a proven bundle."""
    from cutset.bundles.write.export import check_target
    from cutset.report.documents import plan_document
    from cutset.report.text import print_checks, print_part, print_plan
    from cutset.workflow import split_model

    if address is not None and cluster is None:
        usage_error("--address is for a plan with --cluster")
    request = _request(
        stages, cluster, cut, objective, serial, fixed_order, max_latency, min_throughput,
        time_limit,
    )  # fmt: skip
    check_target(output.absolute(), replace=force)
    with progress() as say:
        prepared = _prepare(model, weights, keep, divide, max_tensors, part, micro_batch_only, say)
        costs, backends = _costs(
            prepared, request, cluster, cost, backend, profile_file, batch_size, threads, say
        )
        say(f"planning, at most {request.time_limit_s:g} s")
        result = _best_plan(prepared, request, costs, backends, batch_size, threads or 1, say)
        path, report = split_model(
            prepared, result, output, num_threads=threads or 1, replace=force, say=say
        )
        if address is not None:
            result = _time_on_cluster(path, address, request, threads or 1, say)
    if as_json:
        print_json(plan_document(result, part=prepared.part_entry, bundle=str(path)))
    else:
        print_plan(stdout(), result)
        print_checks(stdout(), [(check.name, check.ok, check.detail) for check in report.checks])
        tell(f"wrote {path}")
        print_part(stdout(), prepared.part_entry)


def _time_on_cluster(
    bundle: Path, address: str, request: PlanRequest, threads: int, say: Say
) -> Plan:
    """The plan with what the nodes of the Ray cluster at `address` measured."""
    from cutset.engines.ray.engine import RayCluster
    from cutset.workflow import time_on_cluster

    settings = RayCluster(address=address, cluster=request.cluster)
    try:
        with native_output_to_stderr():
            return time_on_cluster(bundle, settings, num_threads=threads, say=say)
    except CutsetError as error:
        error.args = (f"{bundle} is written, but its stages were not timed: {error}",)
        raise


def _prepare(
    model: str,
    weights: str | None,
    keep: list[str] | None,
    divide: list[str] | None,
    max_tensors: int,
    part: str | None,
    micro_batch_only: int | None,
    say: Say,
) -> PreparedModel:
    from cutset.workflow import prepare_model

    return prepare_model(
        model,
        weights=weights,
        keep=keep or (),
        divide=divide or (),
        max_tensors=max_tensors,
        part=part,
        micro_batch_only=micro_batch_only,
        say=say,
    )


def _request(
    stages: int | None,
    cluster: Path | None,
    cut: list[str] | None,
    objective: str,
    serial: bool,
    fixed_order: bool,
    max_latency: float | None,
    min_throughput: float | None,
    time_limit: float,
) -> PlanRequest:
    """What is wanted, after a check that the options say something and one thing only."""
    chosen = _objective(objective)
    if cluster is None and stages is None and not cut:
        usage_error("say how to divide the model: --stages N, --cluster FILE.toml or --cut AFTER")
    _check_limits(max_latency, min_throughput, time_limit)
    from cutset.cluster.cluster_file import load_cluster
    from cutset.planning.request import PlanRequest

    return PlanRequest(
        num_stages=stages,
        cut_names=tuple(cut or ()),
        cluster=load_cluster(cluster) if cluster is not None else None,
        objective=chosen,
        serial=serial,
        fixed_order=fixed_order,
        max_latency_s=max_latency,
        min_rows_per_s=min_throughput,
        time_limit_s=time_limit,
    )


def _objective(name: str) -> Objective:
    from cutset.planning.request import Objective

    known: dict[str, Objective] = {each: each for each in get_args(Objective)}
    if name not in known:
        usage_error(f"--objective {name!r} is unknown here")
    return known[name]


def _check_limits(
    max_latency: float | None, min_throughput: float | None, time_limit: float
) -> None:
    limits = {
        "--max-latency": max_latency,
        "--min-throughput": min_throughput,
        "--time-limit": time_limit,
    }
    for name, value in limits.items():
        if value is not None and value <= 0:
            usage_error(f"{name} must be above 0, got {value}")


_NOT_FOR_COST_GRAPHS = {
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


def _plan_cost_graph(
    context: typer.Context,
    cost_graph: Path,
    stages: int | None,
    cluster: Path | None,
    objective: str,
    serial: bool,
    fixed_order: bool,
    max_latency: float | None,
    min_throughput: float | None,
    time_limit: float,
    max_tensors: int | None,
) -> Sequence[Plan]:
    """The plan, or the plans of the front, for a cost graph."""
    from cutset.planning import pareto_cost_graph, plan_cost_graph

    is_front = objective == "pareto"
    if not is_front:
        _objective(objective)
    for name, reason in _NOT_FOR_COST_GRAPHS.items():
        if options.is_given(context, name):
            option = "--profile" if name == "profile_file" else options.written(name)
            usage_error(f"{option} is not for a --cost-graph: {reason}")
    _check_limits(max_latency, min_throughput, time_limit)
    if cluster is None and stages is None:
        usage_error("say on what to place the graph: --stages N or --cluster FILE.toml")
    request = _request(
        stages, cluster, None, "throughput" if is_front else objective, serial, fixed_order,
        max_latency, min_throughput, time_limit,
    )  # fmt: skip
    with progress() as say, planning(say, objective):
        if is_front:
            return pareto_cost_graph(cost_graph, request, max_tensors=max_tensors)
        return [plan_cost_graph(cost_graph, request, max_tensors=max_tensors)]


def _costs(
    prepared: PreparedModel,
    request: PlanRequest,
    cluster: Path | None,
    cost: str,
    backend: str,
    profile_file: Path | None,
    batch_size: int | None,
    threads: int | None,
    say: Say,
) -> tuple[Profile | Mapping[str, Profile] | None, Mapping[str, PieceBackend]]:
    """The profiles to plan with: read, measured now, or None for multiply-adds.

    Where they are measured now, for processes of this machine, also what they were measured with.
    """
    from cutset.backends.base import AUTO, check_backend_name
    from cutset.costs.model import load_profile, with_backend
    from cutset.workflow import load_profiles

    if cost not in ("measured", "flops"):
        usage_error(f"--cost is 'measured' or 'flops', got {cost!r}")
    if cost == "flops" and profile_file is not None:
        usage_error(
            "--cost flops counts multiply-adds, a --profile holds seconds: give one of them"
        )
    check_backend_name(backend)
    if cost == "flops":
        if backend != AUTO:
            usage_error("--backend is for measured costs; multiply-adds are the same for all")
        return None, {}
    measured: Profile | None = None
    backends: Mapping[str, PieceBackend] = {}
    devices = request.cluster.devices if request.cluster else ()
    if profile_file is not None:
        measured = load_profile(profile_file)
    elif not devices or any(device.profile is None for device in devices):
        backends = _backends(prepared, backend, threads or 1)
        measured = _measure(prepared, backends, batch_size, threads or 1, 20, "", say)
    folder = cluster.parent if cluster is not None else Path()
    profiles = load_profiles(request.cluster, folder, measured)
    _check_threads(profiles, threads)
    if backend != AUTO and profiles is not None:
        if isinstance(profiles, Mapping):
            profiles = {name: with_backend(each, backend) for name, each in profiles.items()}
        else:
            profiles = with_backend(profiles, backend)
    return profiles, backends if request.cluster is None else {}


def _check_threads(profiles: Profile | Mapping[str, Profile] | None, threads: int | None) -> None:
    """Makes sure that profiles were measured with the threads that are asked for, if any are.

    Raises:
        PlanError: one was not.
    """
    from cutset.errors import PlanError

    found = profiles.values() if isinstance(profiles, Mapping) else [profiles]
    for each in found:
        if threads is not None and each is not None and each.num_threads != threads:
            raise PlanError(
                f"the profile of {each.device!r} was measured with {each.num_threads} "
                f"{'thread' if each.num_threads == 1 else 'threads'}, not the {threads} of "
                "--threads; leave --threads out, or profile it again with that number"
            )


def _backends(prepared: PreparedModel, backend: str, threads: int) -> Mapping[str, PieceBackend]:
    """What can measure pieces here: everything that is installed, or the backend that is named."""
    from cutset.backends.base import AUTO, missing_here
    from cutset.errors import EngineError
    from cutset.workflow import stage_backends

    compiled = backend == "torch-compiled"
    found = stage_backends(prepared, num_threads=threads, compiled=compiled)
    if backend == AUTO:
        return found
    if backend not in found:
        reason = missing_here(backend) or f"it runs on {', '.join(found)}"
        raise EngineError(f"backend {backend!r} cannot run {prepared.name}: {reason}")
    return {backend: found[backend]}


def _best_plan(
    prepared: PreparedModel,
    request: PlanRequest,
    costs: Profile | Mapping[str, Profile] | None,
    backends: Mapping[str, PieceBackend],
    batch_size: int | None,
    threads: int,
    say: Say,
) -> Plan:
    """The best plan; measured as well as planned where it is for processes of this machine."""
    from cutset.costs.model import Profile
    from cutset.workflow import plan_stages

    def make(profile: Profile | Mapping[str, Profile] | None) -> Plan:
        with planning(say, request.objective):
            return plan_stages(prepared, request, profile=profile, batch_size=batch_size)

    if not backends:
        return make(costs)
    from cutset.measure.local_plans import plan_here

    assert isinstance(costs, Profile), "without a cluster there is one profile"
    return plan_here(prepared.captured, make, costs, backends, num_threads=threads, say=say)


def _measure(
    prepared: PreparedModel,
    backends: Mapping[str, PieceBackend],
    batch_size: int | None,
    threads: int,
    runs: int,
    device: str,
    say: Say,
) -> Profile:
    from cutset.workflow import profile_model

    return profile_model(
        prepared,
        batch_size=batch_size,
        num_threads=threads,
        num_runs=runs,
        device=device,
        backends=backends,
        progress=lambda name, done, all_: say(f"profiling {name}: run {done} of {all_}"),
    )
