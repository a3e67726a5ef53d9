"""Commands about machines: doctor, probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutset.cli import options
from cutset.cli.engine_choice import chosen_engine
from cutset.cli.screen import (
    native_output_to_stderr,
    print_json,
    show_progress,
    tell,
    usage_error,
    write_text,
)


def doctor(
    trial: Annotated[
        bool, typer.Option("--try", help="also split, prove and run a small model")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Tell what this machine is and what Cutset can do on it, to paste into a bug report."""
    import msgspec

    from cutset.doctor import describe, examine_machine

    with native_output_to_stderr(), show_progress() as progress:
        progress("looking")
        examination = examine_machine(trial=trial)
    if as_json:
        print_json(msgspec.to_builtins(examination))
    else:
        typer.echo(describe(examination))  # its lines are printable
    if not examination.ok:
        raise typer.Exit(1)


def probe(
    model: options.Model,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.toml", help="the cluster file to write")
    ],
    engine: options.Engine = None,
    address: options.Address = None,
    cluster: options.RunningCluster = None,
    batch_size: options.BatchSize = None,
    micro_batch_only: options.MicroBatchOnly = None,
    threads: options.Threads = 1,
    runs: options.Runs = 20,
    keep: options.Keep = None,
    divide: options.Divide = None,
    max_tensors: options.MaxTensors = 1,
    part: options.Part = None,
    without_keys: Annotated[
        bool,
        typer.Option(
            "--without-keys",
            help='links go without keys and encryption: security = "none" in the file',
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure the hosts of a Ray cluster or a cluster file; write a cluster file and profiles."""
    import msgspec

    from cutset.cluster.file_writer import cluster_to_toml
    from cutset.costs.profile import profile_to_json
    from cutset.measure.probe import ProbeRequest, describe_probe, probe_cluster

    if output.suffix != ".toml":
        usage_error(f"{output}: a cluster file ends in .toml")
    named = engine or (None if cluster is not None else "ray")
    where = chosen_engine(named, address, None, cluster)
    if micro_batch_only is not None and batch_size not in (None, micro_batch_only):
        usage_error(
            f"--micro-batch-only {micro_batch_only} allows no --batch-size of {batch_size}; "
            "leave one of the two out"
        )
    chosen = [("--keep", name) for name in keep or ()]
    chosen += [("--divide", name) for name in divide or ()]
    chosen += [("--max-tensors", str(max_tensors))]
    chosen += [("--part", part)] if part is not None else []
    if micro_batch_only is not None:
        chosen += [("--micro-batch-only", str(micro_batch_only))]
    request = ProbeRequest(
        model=model,
        engine=where,
        options=tuple(word for pair in chosen for word in pair),
        batch_size=batch_size or micro_batch_only,
        num_threads=threads,
        num_runs=runs,
        secured=not without_keys,
    )
    with native_output_to_stderr(), show_progress() as progress:
        found = probe_cluster(request, progress=progress)
    for name, profile in found.profiles.items():
        write_text(output.parent / name, profile_to_json(profile) + "\n")
    write_text(output, cluster_to_toml(found.cluster))
    if as_json:
        print_json(msgspec.to_builtins(found.cluster))
    else:
        for line in describe_probe(found):
            tell(line)
        tell(f"wrote {output} and {len(found.profiles)} profiles beside it")
