"""Reads all that a report is made from: a bundle or a plan, and the files beside it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from cutset.bundles.manifest import MAX_MANIFEST_BYTES, decode_manifest
from cutset.bundles.strict_json import MANIFEST_NAME
from cutset.cluster.cluster_file import load_cluster
from cutset.costs.device_profiles import load_profiles
from cutset.costs.profile import load_profile
from cutset.errors import ManifestError
from cutset.graph.cuts import find_cut_points
from cutset.report.sources import (
    ReportSources,
    load_bench,
    load_plan_document,
    load_trace,
    load_verification,
)


def read_sources(
    source: Path,
    *,
    profile: Path | None = None,
    cluster: Path | None = None,
    verification: Path | None = None,
    bench: Path | None = None,
    trace: Path | None = None,
) -> ReportSources:
    """What a report is made from.

    Args:
        source: a bundle's folder, or a plan as ``plan --json`` printed it.
        profile: the profile that was planned with.
        cluster: the cluster file; the profiles that it names are looked for beside it.
        verification: what ``verify --json`` printed.
        bench: what ``bench --json`` printed.
        trace: what ``bench --trace`` wrote.

    Raises:
        CutsetError: a file cannot be read, or is no such document.
    """
    sources = bundle_sources(source) if source.is_dir() else load_plan_document(source)
    devices = load_cluster(cluster) if cluster is not None else None
    reference = load_profile(profile) if profile is not None else None
    folder = cluster.parent if cluster is not None else Path()
    return dataclasses.replace(
        sources,
        cluster=devices,
        profiles=load_profiles(devices, folder, reference),
        verification=load_verification(verification) if verification is not None else None,
        bench=load_bench(bench) if bench is not None else None,
        trace=load_trace(trace) if trace is not None else None,
    )


def bundle_sources(folder: Path) -> ReportSources:
    """What a bundle's manifest holds; its other files are not opened.

    Raises:
        ManifestError: the manifest cannot be read, or breaks a rule.
    """
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
