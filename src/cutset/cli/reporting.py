"""The command that draws: plan, bundle and measurements as a page, or as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutset.cli import options
from cutset.cli.screen import print_json, show_progress, tell, usage_error, write_text


def report(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="DIR|PLAN", help="a bundle, or a plan's JSON")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.html", help="the page to write")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="DIR", help="write each drawing as a PNG")
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="DIR", help="write each drawing as an SVG")
    ] = None,
    profile_file: Annotated[
        Path | None, typer.Option("--profile", help="the profile that was planned with")
    ] = None,
    cluster: options.Cluster = None,
    verification: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what verify --json printed")
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what bench --json printed")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="what bench --trace wrote")
    ] = None,
    model: Annotated[str | None, typer.Option(help="for a plan: its model, as for inspect")] = None,
    keep: options.Keep = None,
    divide: options.Divide = None,
    max_tensors: options.MaxTensors = 1,
    micro_batch_only: options.MicroBatchOnly = None,
    as_json: options.Json = False,
) -> None:
    """Draw where it is cut and why, load, other plans, timeline and proof: one page, no network."""
    if output is None and png is None and svg is None:
        usage_error("say what to write: -o FILE.html, --png DIR or --svg DIR")
    of_models = ("keep", "divide", "max_tensors", "micro_batch_only")
    given = [name for name in ("model", *of_models) if options.is_given(context, name)]
    if given and source.is_dir():
        usage_error(
            f"{options.written(given[0])} is for a plan's model; a bundle knows how it was split"
        )
    if given and model is None:
        usage_error(f"{options.written(given[0])} is for the plan's --model, which is not named")
    from cutset.report.compose import build_report
    from cutset.report.drawings import save_drawings
    from cutset.report.html import render, require_extra
    from cutset.report.read_sources import read_sources

    require_extra()
    with show_progress() as progress:
        progress("reading")
        sources = read_sources(
            source,
            profile=profile_file,
            cluster=cluster,
            verification=verification,
            bench=bench,
            trace=trace,
        )
        if model is not None:
            from cutset.workflow import prepare_model

            prepared = prepare_model(
                model,
                weights=options.any_weights(model),
                keep=keep or (),
                divide=divide or (),
                max_tensors=max_tensors,
                part=sources.part.path if sources.part else None,
                micro_batch_only=micro_batch_only,
            )
            sources = sources.of_model(prepared.found.name, prepared.captured.graph, prepared.cuts)
        progress("planning what else could be")
        built = build_report(sources)
        written = []
        if output is not None:
            progress("writing the page")
            write_text(output, render(built))
            written.append(output)
        for kind, folder in (("png", png), ("svg", svg)):
            if folder is not None:
                progress(f"drawing {kind}")
                written += save_drawings(built, folder, kind)
    if as_json:
        print_json({"written": [str(path) for path in written]})
    else:
        for path in written:
            tell(f"wrote {path}")
