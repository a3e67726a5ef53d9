"""Commands about bundles: verify, run, bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cutset.cli import options
from cutset.cli.engine_choice import chosen_engine
from cutset.cli.screen import (
    native_output_to_stderr,
    print_json,
    show_progress,
    stdout,
    tell,
    usage_error,
    write_text,
)
from cutset.errors import ModelError
from cutset.printable import printable_json

_MIN_BENCH_S = 0.1

app = typer.Typer(no_args_is_help=True, help="Change what a bundle says of itself.")


@app.command("set")
def set_description(
    bundle: options.Bundle,
    preprocess: options.Preprocess = None,
    labels: options.Labels = None,
) -> None:
    """Tell a bundle how images become its rows and what its classes are called."""
    from cutset.bundles.write.description import describe_bundle
    from cutset.models.images_and_labels import read_labels, read_preprocessing

    if preprocess is None and labels is None:
        usage_error("say what to set: --preprocess SOURCE, --labels SOURCE or both")
    describe_bundle(
        bundle,
        preprocessing=None if preprocess is None else read_preprocessing(preprocess),
        labels=None if labels is None else read_labels(labels),
    )
    tell(f"wrote {bundle / 'manifest.json'}")


def verify(
    bundle: options.Bundle,
    model: Annotated[
        str | None, typer.Option(help="the whole model, to compare with as well")
    ] = None,
    weights: options.Weights = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="with --model: images, a folder of them, .npy, .npz or .safetensors"
            " (repeatable), on which answers with and without the bundle's codecs are compared",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Check a bundle: contracts, completeness, units, numbers, hashes."""
    from cutset.bundles.open import find_manifest, read_manifest
    from cutset.bundles.proof.results import raise_if_failed
    from cutset.bundles.proof.verify import verify_bundle
    from cutset.report.text import print_checks, print_part

    if weights is not None and model is None:
        usage_error("--weights is for the whole --model, which is not named; a bundle has its own")
    find_manifest(bundle)  # where there is no bundle, there are no checks to tell of
    if calibration and model is None:
        usage_error("--calibration is for the answers of the whole --model, which is not named")
    if calibration and not read_manifest(bundle).is_coded:
        usage_error("--calibration is for bundles with codecs: this one's answers are the model's")
    with show_progress() as progress:
        if model is None:
            report = verify_bundle(bundle, progress=progress)
        else:
            from cutset.workflow import verify_against  # which knows how to find models

            report = verify_against(
                bundle,
                model=model,
                weights=weights,
                calibration=calibration or (),
                progress=progress,
            )
    checks = [(check.name, check.ok, check.detail) for check in report.checks]
    if as_json:
        print_json(report.as_json())
    else:
        print_checks(stdout(), checks, report.not_run)
        if report.agreement is not None:
            when = "codecs" if calibration else "codecs, when it was split"
            stdout().print(f"{when}: {report.agreement}")
        print_part(stdout(), report.part)
    raise_if_failed(report)


def run(
    bundle: options.Bundle,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...", help="images, folders, .npy, .npz or .safetensors files"
        ),
    ],
    engine: options.Engine = None,
    address: options.Address = None,
    replan_after: options.ReplanAfter = None,
    cluster: options.RunningCluster = None,
    backend: options.Backend = "auto",
    batch_size: options.MicroBatch = None,
    threads: options.Threads = 1,
    top: Annotated[int, typer.Option(min=1, help="labels a row")] = 5,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="FILE.jsonl: a row each; FILE.safetensors: raw"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Run images or arrays through the stages of a bundle, a process each."""
    from cutset.data.array_files import write_outputs
    from cutset.predict import predict_files
    from cutset.report.text import print_answers, print_part
    from cutset.runtime.session import open_session

    suffix = output.suffix if output is not None else ""
    if output is not None and suffix not in (".jsonl", ".safetensors"):
        usage_error(f"{output}: the output is a .jsonl or a .safetensors file")
    where = chosen_engine(engine, address, replan_after, cluster)
    with native_output_to_stderr(), show_progress() as progress:
        progress("starting workers")
        with open_session(
            bundle, engine=where, backend=backend, micro_batch=batch_size, num_threads=threads
        ) as session:
            part = session.bundle.manifest.part
            result = predict_files(
                session,
                inputs,
                num_labels=top,
                keep_outputs=suffix == ".safetensors",
                progress=lambda num_rows: progress(f"{num_rows} rows answered"),
            )
    document = result.as_json(part)
    if output is not None and suffix == ".jsonl":
        rows = [json.dumps(row, ensure_ascii=False) for row in document["rows"]]
        write_text(output, "".join(f"{printable_json(row)}\n" for row in rows))
    elif output is not None:
        write_outputs(output, result.outputs or {})
    if as_json:
        print_json(document)
    else:
        print_answers(stdout(), result.names, result.tops)
        stdout().print(
            f"{len(result.names)} rows in {result.seconds:.2f} s, "
            f"{document['rows_per_s']:.1f} rows/s"
        )
        print_part(stdout(), part)
    if result.failed:
        name, reason = result.failed[0]
        others = f" (and {len(result.failed) - 1} more)" if len(result.failed) > 1 else ""
        raise ModelError(f"{name}{others} could not be read, the others were run: {reason}")


def bench(
    bundle: options.Bundle,
    engine: options.Engine = None,
    address: options.Address = None,
    replan_after: options.ReplanAfter = None,
    cluster: options.RunningCluster = None,
    backend: options.Backend = "auto",
    batch_size: options.MicroBatch = None,
    threads: options.Threads = 1,
    seconds: Annotated[
        float,
        typer.Option(
            metavar="S",
            parser=options.seconds,
            show_default="5 s",
            help="how long each of the four measurements takes",
        ),
    ] = 5.0,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="write a Chrome trace")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure throughput and latency against the prediction and the whole model."""
    import msgspec

    from cutset.measure.bench import bench_bundle
    from cutset.report.text import print_bench, print_part

    if seconds < _MIN_BENCH_S:
        usage_error(f"--seconds must be at least {_MIN_BENCH_S}, got {seconds:g}")
    where = chosen_engine(engine, address, replan_after, cluster)
    with native_output_to_stderr(), show_progress() as progress:
        progress("starting workers")
        report, timeline = bench_bundle(
            bundle,
            engine=where,
            backend=backend,
            micro_batch=batch_size,
            num_threads=threads,
            duration_s=seconds,
            trace=trace is not None,
            progress=progress,
        )
    if trace is not None:
        write_text(trace, msgspec.json.encode(timeline).decode())
    document = msgspec.to_builtins(report)
    if as_json:
        print_json(document)
    else:
        print_bench(stdout(), document)
        print_part(stdout(), report.part)
