"""Commands about models: inspect, profile, plan, split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutset.cli import options
from cutset.cli.engine_choice import chosen_engine
from cutset.cli.screen import (
    native_output_to_stderr,
    planning_teller,
    print_json,
    print_json_text,
    show_progress,
    stdout,
    tell,
    usage_error,
    write_text,
)
from cutset.cli.shared import (
    answer_limits,
    bundle_plan,
    cost_graph_plans,
    described_images,
    plan_request,
    planned_costs,
    prepared_model,
)
from cutset.errors import CutsetError
from cutset.progress import Progress

if TYPE_CHECKING:
    from cutset.bundles.manifest import PartEntry
    from cutset.bundles.open import Bundle
    from cutset.engines.registry import EngineSettings
    from cutset.planning import Plan


def inspect(
    context: typer.Context,
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

    with show_progress() as progress:
        prepared = prepared_model(context, progress)
    graph, entry = prepared.captured.graph, prepared.part_entry
    if as_json:
        print_json(inspection_document(prepared.found.name, graph, prepared.cuts, part=entry))
    else:
        print_inspection(stdout(), prepared.name, graph, prepared.cuts, refused=refused)
        print_part(stdout(), entry)


def profile(
    context: typer.Context,
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
    from cutset.costs.profile import profile_to_json
    from cutset.report.text import print_part, print_profile
    from cutset.workflow import measure_costs

    if device == "":
        usage_error("--device is empty; leave it out for the host's name")
    with show_progress() as progress:
        prepared = prepared_model(context, progress)
        measured = measure_costs(
            prepared,
            compiled=compiled,
            batch_size=batch_size,
            num_threads=threads,
            num_runs=runs,
            device=device or "",
            progress=progress,
        ).profile
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
    replicas: options.Replicas = 1,
    no_replicas: options.NoReplicas = False,
    granularity: Annotated[
        str, typer.Option(metavar="unit|op", help="op: what cuts inside units would gain")
    ] = "unit",
    cost_graph: Annotated[
        Path | None, typer.Option(help="plan a cost graph (JSON) instead of a model")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="plan a bundle's shards anew for --cluster"),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="with --bundle: the new plan takes the old one's place")
    ] = False,
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
    allow: options.Allow = None,
    as_json: options.Json = False,
) -> None:
    """Find the best stages for equal devices or for a cluster, with the bound that judges them."""
    if granularity not in ("unit", "op"):
        usage_error(f"--granularity is 'unit' or 'op', got {granularity!r}")
    if [model, cost_graph, bundle].count(None) != 2:
        usage_error("name either a MODEL, or a --cost-graph, or a --bundle")
    if write and bundle is None:
        usage_error("--write is for the plan of a --bundle")
    is_front = objective == "pareto"
    if is_front and granularity == "op":
        usage_error("--granularity op is for one plan, --objective pareto is for all: give one")
    if model is not None and cost == "flops" and threads is not None:
        usage_error("--threads is for measured costs; multiply-adds are the same for any number")
    if bundle is not None:
        _show((bundle_plan(context),), is_front=False, as_json=as_json)
        return
    if cost_graph is not None:
        _show(cost_graph_plans(context), is_front=is_front, as_json=as_json)
        return
    from cutset.workflow import plan_front, plan_model, plan_with_gain

    request = plan_request(context)
    costs = planned_costs(context, request)
    gain = None
    with show_progress() as progress:
        prepared = prepared_model(context, progress)
        told = {**costs, "progress": progress, "standing": planning_teller(progress, objective)}
        if is_front:
            plans = plan_front(prepared, request, **told)
        elif granularity == "op":
            best, gain = plan_with_gain(prepared, request, **told)
            plans = (best,)
        else:
            plans = (plan_model(prepared, request, **told),)
    _show(plans, prepared.part_entry, gain, is_front=is_front, as_json=as_json)


def _show(
    plans: tuple[Plan, ...],
    part: PartEntry | None = None,
    gain: float | None = None,
    *,
    is_front: bool,
    as_json: bool,
) -> None:
    """Prints a plan, or the plans of a front."""
    from cutset.report.documents import front_document, plan_document
    from cutset.report.text import print_front, print_part, print_plan

    if as_json and is_front:
        print_json(front_document(plans, part=part))
    elif as_json:
        print_json(plan_document(plans[0], part=part, gain_inside_units=gain))
    else:
        print_front(stdout(), plans) if is_front else print_plan(stdout(), plans[0])
        if gain is not None:
            stdout().print(f"cuts inside units would gain {gain:.1%}")
        print_part(stdout(), part)


def split(
    context: typer.Context,
    model: options.Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="the bundle")],
    stages: options.Stages = None,
    cluster: options.Cluster = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="ssh|ray|NAME",
            help="with --cluster: have the devices time their stages as wholes, by this engine",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT|auto", help="as --engine ray, on this Ray cluster"),
    ] = None,
    cut: options.Cut = None,
    objective: Annotated[str, typer.Option(metavar="throughput|latency")] = "throughput",
    max_latency: options.MaxLatency = None,
    min_throughput: options.MinThroughput = None,
    time_limit: options.TimeLimit = "60 s",  # type: ignore[assignment]  # as if typed
    serial: options.Serial = False,
    fixed_order: options.FixedOrder = False,
    replicas: options.Replicas = 1,
    no_replicas: options.NoReplicas = False,
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
    preprocess: options.Preprocess = None,
    labels: options.Labels = None,
    allow: options.Allow = None,
    calibration: options.Calibration = None,
    min_agreement: options.MinAgreement = None,
    max_error: options.MaxError = None,
    force: Annotated[bool, typer.Option(help="replace a bundle that is there")] = False,
    as_json: options.Json = False,
) -> None:
    """Capture, profile, plan, export and verify: from a model to a proven bundle."""
    from cutset.bundles.write.export import check_target
    from cutset.report.documents import plan_document
    from cutset.report.text import print_checks, print_part, print_plan
    from cutset.workflow import plan_within, split_model

    times = address is not None or engine is not None
    if times and cluster is None:
        usage_error(f"--{'engine' if engine else 'address'} is for a plan with --cluster")
    request, limits = plan_request(context), answer_limits(context)
    if times and request.replicas > 1:
        usage_error("--engine times each stage on one device: with --replicas leave it out")
    settings = chosen_engine(engine or "ray", address, None, cluster) if times else None
    check_target(output.absolute(), replace=force)
    described = described_images(context)
    costs = planned_costs(context, request)
    with show_progress() as progress:
        prepared = described(prepared_model(context, progress, any_weights=False))
        standing = planning_teller(progress, objective)
        result, agreement = plan_within(
            prepared, request, limits, **costs, progress=progress, standing=standing
        )
        bundle = split_model(
            prepared,
            result,
            output,
            num_threads=threads or 1,
            agreement=agreement,
            replace=force,
            progress=progress,
        )
        if settings is not None:
            result = _time_on_cluster(bundle, settings, threads or 1, progress)
    if as_json:
        print_json(
            plan_document(
                result,
                part=prepared.part_entry,
                bundle=str(bundle.directory),
                agreement=agreement,
            )
        )
    else:
        checks = bundle.verification.checks
        print_plan(stdout(), result)
        print_checks(stdout(), [(check.name, check.ok, check.detail) for check in checks])
        if agreement is not None:
            stdout().print(f"codecs: {agreement}")
        tell(f"wrote {bundle.directory}")
        print_part(stdout(), prepared.part_entry)


def _time_on_cluster(
    bundle: Bundle, settings: EngineSettings, threads: int, progress: Progress
) -> Plan:
    """The plan with what the engine's devices measured."""
    from cutset.workflow import time_on_cluster

    try:
        with native_output_to_stderr():
            return time_on_cluster(bundle, settings, num_threads=threads, progress=progress)
    except CutsetError as error:
        error.args = (f"{bundle.directory} is written, but its stages were not timed: {error}",)
        raise
