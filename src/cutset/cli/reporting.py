"""The command that draws: plan, bundle and measurements as a page, or as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutset.cli import options
from cutset.cli.screen import print_json, progress, tell, usage_error, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cutset.cluster.devices import Cluster
    from cutset.costs.model import Profile
    from cutset.report.sources import ReportSources


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

    require_extra()
    with progress() as say:
        say("reading")
        sources = _sources(
            source, profile_file, cluster, verification, bench, trace, model,
            tuple(keep or ()), tuple(divide or ()), max_tensors, micro_batch_only,
        )  # fmt: skip
        say("planning what else could be")
        built = build_report(sources)
        written = []
        if output is not None:
            say("writing the page")
            write_text(output, render(built))
            written.append(output)
        for kind, folder in (("png", png), ("svg", svg)):
            if folder is not None:
                say(f"drawing {kind}")
                written += save_drawings(built, folder, kind)
    if as_json:
        print_json({"written": [str(path) for path in written]})
    else:
        for path in written:
            tell(f"wrote {path}")


def _sources(
    source: Path,
    profile_file: Path | None,
    cluster_file: Path | None,
    verification: Path | None,
    bench: Path | None,
    trace: Path | None,
    model: str | None,
    keep: tuple[str, ...],
    divide: tuple[str, ...],
    max_tensors: int,
    micro_batch_only: int | None,
) -> ReportSources:
    """Reads everything that was named."""
    import dataclasses

    from cutset.cluster.cluster_file import load_cluster
    from cutset.report.sources import (
        load_bench,
        load_plan_document,
        load_trace,
        load_verification,
    )

    if source.is_dir():
        sources = _of_bundle(source)
    else:
        sources = load_plan_document(source)
        if model is not None:
            from cutset.workflow import prepare_model

            prepared = prepare_model(
                model,
                weights=options.any_weights(model),
                keep=keep,
                divide=divide,
                max_tensors=max_tensors,
                part=sources.part.path if sources.part else None,
                micro_batch_only=micro_batch_only,
            )
            sources = dataclasses.replace(
                sources,
                model=prepared.found.name,
                graph=prepared.captured.graph,
                cuts=prepared.cuts,
            )
    cluster = load_cluster(cluster_file) if cluster_file is not None else None
    folder = cluster_file.parent if cluster_file is not None else Path()
    return dataclasses.replace(
        sources,
        cluster=cluster,
        profiles=_profiles(cluster, folder, profile_file),
        verification=load_verification(verification) if verification is not None else None,
        bench=load_bench(bench) if bench is not None else None,
        trace=load_trace(trace) if trace is not None else None,
    )


def _profiles(
    cluster: Cluster | None, folder: Path, profile_file: Path | None
) -> Profile | Mapping[str, Profile] | None:
    from cutset.costs.model import load_profile

    reference = load_profile(profile_file) if profile_file is not None else None
    if cluster is None or all(device.profile is None for device in cluster.devices):
        return reference
    from cutset.workflow import load_profiles

    return load_profiles(cluster, folder, reference)


def _of_bundle(folder: Path) -> ReportSources:
    """What a bundle's manifest holds; its other files are not opened."""
    from cutset.bundles.manifest import MAX_MANIFEST_BYTES, decode_manifest
    from cutset.bundles.strict_json import MANIFEST_NAME
    from cutset.errors import ManifestError
    from cutset.graph.cuts import find_cut_points
    from cutset.report.sources import ReportSources

    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            data = file.read(MAX_MANIFEST_BYTES + 1)
    except OSError as error:
        raise ManifestError(
            f"{folder}: {MANIFEST_NAME} cannot be read: {error.strerror}; expected a bundle",
            path=MANIFEST_NAME,
        ) from error
    manifest = decode_manifest(data)
    cuts = find_cut_points(
        manifest.graph,
        keep=manifest.keep,
        divide=manifest.divide,
        max_tensors=manifest.max_tensors,
    )
    return ReportSources(
        plan=manifest.plan,
        model=manifest.model,
        graph=manifest.graph,
        cuts=cuts,
        contracts=manifest.stages,
        files=manifest.files,
        versions=manifest.created_by,
        weights=manifest.weights,
        part=manifest.part,
    )
