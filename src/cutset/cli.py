"""The command line: parse, call one library function, print, exit code.

Answers go to stdout, all else to stderr. Heavy libraries are imported inside the commands, so
that ``cutset --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from cutset import __version__
from cutset.errors import CutsetError, ModelError

if TYPE_CHECKING:
    from rich.console import Console

    from cutset.costs.model import Profile
    from cutset.devices import Cluster

app = typer.Typer(
    name="cutset",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Split a trained PyTorch model where its architecture allows, prove the pieces equal "
    "to the whole, and run them as a pipeline.",
)

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="torchvision:NAME (or just NAME), timm:NAME, FILE.py:FACTORY or FILE.pt2",
    ),
]
BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="a bundle")]
WeightsOption = Annotated[
    str | None,
    typer.Option(help="DEFAULT, a .pth or .safetensors file, or random:SEED"),
]
KeepOption = Annotated[
    list[str] | None, typer.Option(metavar="CLASS", help="never divide modules of this class")
]
DivideOption = Annotated[
    list[str] | None, typer.Option(metavar="CLASS", help="allow cuts between its children")
]
MaxTensorsOption = Annotated[int, typer.Option(min=1, help="most tensors that may cross a cut")]
JsonOption = Annotated[bool, typer.Option("--json", help="print one JSON document")]
BatchOption = Annotated[int, typer.Option(min=1, help="rows of a micro-batch")]
ThreadsOption = Annotated[int, typer.Option(min=1, help="threads of each stage")]
CostOption = Annotated[
    str, typer.Option(metavar="measured|flops", help="what a piece costs: seconds or multiply-adds")
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cutset {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option(help="show the traceback of an error")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="log to stderr")] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print and leave")
    ] = False,
) -> None:
    # `main` looks at --debug itself: an error must be shown whatever state the parser is in.
    del debug
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


@app.command()
def inspect(
    model: ModelArgument,
    weights: WeightsOption = "random:0",
    refused: Annotated[bool, typer.Option(help="show every refused position too")] = False,
    keep: KeepOption = None,
    divide: DivideOption = None,
    max_tensors: MaxTensorsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Show where a model may be cut: units, cut points, bytes, work; and why not elsewhere."""
    from cutset.report.documents import inspection_document
    from cutset.report.text import print_inspection
    from cutset.workflow import prepare_model

    with _status() as say:
        prepared = prepare_model(
            model,
            weights=weights,
            keep=keep or (),
            divide=divide or (),
            max_tensors=max_tensors,
            say=say,
        )
    name, graph = prepared.found.name, prepared.captured.graph
    if as_json:
        _print_json(inspection_document(name, graph, prepared.cuts))
    else:
        print_inspection(_stdout(), name, graph, prepared.cuts, refused=refused)


@app.command()
def profile(
    model: ModelArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="the file to write")] = None,
    weights: WeightsOption = "random:0",
    batch_size: BatchOption = 1,
    threads: ThreadsOption = 1,
    runs: Annotated[int, typer.Option(min=5, help="measured runs")] = 20,
    device: Annotated[str, typer.Option(help="this device's name; the host's by default")] = "",
    keep: KeepOption = None,
    divide: DivideOption = None,
    max_tensors: MaxTensorsOption = 1,
) -> None:
    """Measure on this device what every piece of a model costs; print or write it as JSON."""
    import msgspec

    from cutset.workflow import prepare_model, profile_model

    with _status() as say:
        prepared = prepare_model(
            model,
            weights=weights,
            keep=keep or (),
            divide=divide or (),
            max_tensors=max_tensors,
            say=say,
        )
        measured = profile_model(
            prepared,
            batch_size=batch_size,
            num_threads=threads,
            num_runs=runs,
            device=device,
            progress=lambda name, done, all_: say(f"profiling {name}: run {done} of {all_}"),
        )
    text = msgspec.json.format(msgspec.json.encode(measured)).decode()
    if output is None:
        typer.echo(text)
    else:
        _write_text(output, text + "\n")


@app.command()
def plan(
    model: ModelArgument,
    stages: Annotated[int | None, typer.Option(min=1, help="that many equal devices")] = None,
    cluster: Annotated[Path | None, typer.Option(help="a cluster file (TOML)")] = None,
    cut: Annotated[
        list[str] | None, typer.Option(metavar="AFTER", help="cut here (repeatable)")
    ] = None,
    objective: Annotated[str, typer.Option(metavar="throughput|latency")] = "throughput",
    cost: CostOption = "measured",
    profile_file: Annotated[
        Path | None, typer.Option("--profile", help="a profile instead of measuring now")
    ] = None,
    weights: WeightsOption = "random:0",
    batch_size: BatchOption = 1,
    threads: ThreadsOption = 1,
    keep: KeepOption = None,
    divide: DivideOption = None,
    max_tensors: MaxTensorsOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Find the best stages for equal devices or for a cluster, with the bound that judges them."""
    from cutset.report.documents import plan_document
    from cutset.report.text import print_plan
    from cutset.workflow import plan_stages, prepare_model

    found_cluster = _read_cluster(cluster, stages, cut)
    with _status() as say:
        prepared = prepare_model(
            model,
            weights=weights,
            keep=keep or (),
            divide=divide or (),
            max_tensors=max_tensors,
            say=say,
        )
        costs = _costs(prepared, cost, profile_file, batch_size, threads, say)
        say("planning")
        result = plan_stages(
            prepared,
            num_stages=stages,
            cut_names=cut or (),
            cluster=found_cluster,
            profile=costs,
            batch_size=batch_size,
            objective=objective,
        )
    if as_json:
        _print_json(plan_document(result))
    else:
        print_plan(_stdout(), result)


@app.command()
def split(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="the bundle")],
    stages: Annotated[int | None, typer.Option(min=1, help="that many equal devices")] = None,
    cluster: Annotated[Path | None, typer.Option(help="a cluster file (TOML)")] = None,
    cut: Annotated[
        list[str] | None, typer.Option(metavar="AFTER", help="cut here (repeatable)")
    ] = None,
    objective: Annotated[str, typer.Option(metavar="throughput|latency")] = "throughput",
    cost: CostOption = "measured",
    profile_file: Annotated[
        Path | None, typer.Option("--profile", help="a profile instead of measuring now")
    ] = None,
    weights: WeightsOption = None,
    batch_size: BatchOption = 1,
    threads: ThreadsOption = 1,
    keep: KeepOption = None,
    divide: DivideOption = None,
    max_tensors: MaxTensorsOption = 1,
    force: Annotated[bool, typer.Option(help="replace a bundle that is there")] = False,
    as_json: JsonOption = False,
) -> None:
    """Capture, profile, plan, export and verify: from a model to a proven bundle."""
    from cutset.report.documents import plan_document
    from cutset.report.text import print_checks, print_plan
    from cutset.shards.export import check_target
    from cutset.workflow import plan_stages, prepare_model, split_model

    found_cluster = _read_cluster(cluster, stages, cut)
    check_target(output.absolute(), replace=force)
    with _status() as say:
        prepared = prepare_model(
            model,
            weights=weights,
            keep=keep or (),
            divide=divide or (),
            max_tensors=max_tensors,
            say=say,
        )
        costs = _costs(prepared, cost, profile_file, batch_size, threads, say)
        say("planning")
        result = plan_stages(
            prepared,
            num_stages=stages,
            cut_names=cut or (),
            cluster=found_cluster,
            profile=costs,
            batch_size=batch_size,
            objective=objective,
        )
        path, report = split_model(
            prepared, result, output, num_threads=threads, replace=force, say=say
        )
    if as_json:
        _print_json(plan_document(result, bundle=str(path)))
    else:
        print_plan(_stdout(), result)
        print_checks(_stdout(), [(check.name, check.ok, check.detail) for check in report.checks])
        _stdout().print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def verify(
    bundle: BundleArgument,
    model: Annotated[
        str | None, typer.Option(help="the whole model, to compare with as well")
    ] = None,
    weights: WeightsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: contracts, completeness, units, numbers, hashes."""
    from cutset.report.documents import verification_document
    from cutset.report.text import print_checks
    from cutset.shards.verify import verify_bundle
    from cutset.workflow import raise_if_failed

    with _status() as say:
        whole = None
        if model is not None:
            from cutset.models import find_model

            say(f"building {model}")
            whole = find_model(model, weights=weights).model
        say("verifying")
        report = verify_bundle(bundle, model=whole, progress=say)
    checks = [(check.name, check.ok, check.detail) for check in report.checks]
    if as_json:
        _print_json(verification_document(checks, report.max_abs_error, bit_exact=report.bit_exact))
    else:
        print_checks(_stdout(), checks)
    raise_if_failed(report)


@app.command()
def run(
    bundle: BundleArgument,
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="images, folders, .npy or .safetensors files"),
    ],
    engine: Annotated[str, typer.Option(metavar="local", help="where workers run")] = "local",
    backend: Annotated[
        str, typer.Option(metavar="auto|torch|onnxruntime", help="what computes a stage")
    ] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="rows of a micro-batch; the plan's by default")
    ] = None,
    threads: ThreadsOption = 1,
    top: Annotated[int, typer.Option(min=1, help="labels a row")] = 5,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="FILE.jsonl: a row each; FILE.safetensors: raw"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run images or arrays through the stages of a bundle, a process each."""
    from cutset.inputs import write_outputs
    from cutset.predict import predict_files
    from cutset.report.documents import run_document
    from cutset.report.text import print_answers
    from cutset.runtime.session import open_session

    suffix = output.suffix if output is not None else ""
    if suffix not in ("", ".jsonl", ".safetensors"):
        _usage_error(f"{output}: the output is a .jsonl or a .safetensors file")
    with _status() as say:
        say("starting workers")
        with open_session(
            bundle, engine=engine, backend=backend, micro_batch=batch_size, num_threads=threads
        ) as session:
            result = predict_files(
                session,
                inputs,
                num_labels=top,
                keep_outputs=suffix == ".safetensors",
                progress=lambda num_rows: say(f"{num_rows} rows answered"),
            )
    document = run_document(result.names, result.tops, result.seconds, result.failed)
    if output is not None and suffix == ".jsonl":
        rows = (json.dumps(row, ensure_ascii=False) + "\n" for row in document["rows"])
        _write_text(output, "".join(rows))
    elif output is not None:
        write_outputs(output, result.outputs or {})
    if as_json:
        _print_json(document)
    else:
        print_answers(_stdout(), result.names, result.tops)
        _stdout().print(
            f"{len(result.names)} rows in {result.seconds:.2f} s, "
            f"{document['rows_per_s']:.1f} rows/s"
        )
    if result.failed:
        name, reason = result.failed[0]
        others = f" (and {len(result.failed) - 1} more)" if len(result.failed) > 1 else ""
        raise ModelError(f"{name}{others} could not be read, the others were run: {reason}")


def _read_cluster(path: Path | None, stages: int | None, cut: list[str] | None) -> Cluster | None:
    """The cluster file, after a check that the options say one thing only."""
    if path is not None and stages is not None:
        _usage_error("--stages and --cluster exclude each other")
    if path is None and stages is None and not cut:
        _usage_error("say how to divide the model: --stages N, --cluster FILE.toml or --cut AFTER")
    if path is None:
        return None
    from cutset.devices import load_cluster

    return load_cluster(path)


def _costs(
    prepared: Any,
    cost: str,
    profile_file: Path | None,
    batch_size: int,
    threads: int,
    say: Callable[[str], None],
) -> Profile | None:
    """The profile to plan with: read, measured now, or None for multiply-adds."""
    if cost not in ("measured", "flops"):
        _usage_error(f"--cost is 'measured' or 'flops', got {cost!r}")
    if profile_file is not None:
        from cutset.costs.model import load_profile

        return load_profile(profile_file)
    if cost == "flops":
        return None
    from cutset.workflow import profile_model

    return profile_model(
        prepared,
        batch_size=batch_size,
        num_threads=threads,
        progress=lambda name, done, all_: say(f"profiling {name}: run {done} of {all_}"),
    )


def _usage_error(text: str) -> NoReturn:
    raise typer.BadParameter(text)


def _stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False)


@contextlib.contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    """Shows on a terminal what is being done; says nothing in a pipe."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status("starting") as status:
        yield lambda text: status.update(escape(text))


def _print_json(document: dict[str, Any]) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CutsetError(f"{path} cannot be written: {error.strerror}") from error


class _Interrupted(BaseException):
    """Ctrl-C or SIGTERM: every `finally` runs, so that no process and no half-written file stay."""


def _interrupt(number: int, _frame: types.FrameType | None) -> NoReturn:
    # A second signal must not interrupt the clean-up that the first one began.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise _Interrupted(number)


def main() -> None:
    """Runs the command line and leaves with its exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except CutsetError as error:
        if "--debug" in sys.argv:
            raise
        # One line: a message from below may have several.
        sys.stderr.write(f"cutset: {' '.join(str(error).split())}\n")
        raise SystemExit(error.exit_code) from None
    except _Interrupted as interrupted:
        sys.stderr.write("cutset: interrupted\n")
        raise SystemExit(128 + interrupted.args[0]) from None


if __name__ == "__main__":
    main()
