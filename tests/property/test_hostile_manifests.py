"""Whatever a manifest says, reading it and what reads from it gives a `CutsetError` or an answer.

Mutations follow the types: see `hostile_json`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cutset.bundles.allowance import allowance_of
from cutset.bundles.coded_boundaries import codecs_in_words
from cutset.bundles.open import Bundle, open_bundle
from cutset.bundles.proof.structure import completeness_faults, unit_faults
from cutset.bundles.write.export import export_bundle
from cutset.capture.torch_export import capture_model
from cutset.cluster.devices import equal_cluster
from cutset.costs.cost_model import costs_from_flops
from cutset.errors import BundleError, CutsetError
from cutset.graph.cuts import find_cut_points
from cutset.planning import PlanRequest, make_plan
from cutset.report.compose import build_report
from cutset.report.html import render
from cutset.report.read_sources import bundle_sources
from cutset.runtime.contract import links_of
from hostile import edit_manifest
from hostile_json import Mutator
from models_of_trouble import residual_net


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that has every optional key."""
    model, example = residual_net(), torch.randn(3, 3, 8, 8)
    captured = capture_model(model, example)
    cuts = find_cut_points(captured.graph)
    costs = costs_from_flops(captured.graph, cuts, micro_batch=1)
    plan = make_plan(captured.graph, cuts, costs, PlanRequest(cluster=equal_cluster(2)))
    folder = tmp_path_factory.mktemp("hostile") / "b.cutset"
    export_bundle(model, plan, folder, captured=captured, labels=["a", "b", "c", "d", "e"])

    def complete(document: dict[str, Any]) -> None:
        document["part"] = {"path": "body", "work_share": 0.5}
        document["micro_batch_only"] = 1
        document["preprocessing"] = {
            "resize": 8,
            "crop": [8, 8],
            "interpolation": "bilinear",
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
        }
        document["plan"]["expected"] = {
            "where": "this machine",
            "compute_s": [1e-3, 1e-3],
            "message_s": [1e-4, 1e-4, 1e-4],
            "period_s": 1e-3,
            "latency_s": 2e-3,
        }
        document["format"] = "cutset-bundle/3"
        document["plan"] |= {"input_codec": "uint8-image", "input_bytes_per_sample": 192}
        document["plan"]["stages"][0] |= {"codec": "int8", "sent_bytes_per_sample": 100}
        document["stages"][0]["output_codecs"] = ["int8"]
        document["agreement"] = {
            "num_rows": 3,
            "num_same": 2,
            "max_abs_error": 0.5,
            "calibrated": True,
        }

    edit_manifest(folder, complete)
    open_bundle(folder)
    return folder


def _uses(folder: Path, bundle: Bundle) -> tuple[Callable[[], object], ...]:
    manifest = bundle.manifest
    return (
        lambda: render(build_report(bundle_sources(folder))),
        bundle._repr_html_,
        lambda: (unit_faults(manifest), completeness_faults(manifest)),
        lambda: allowance_of(manifest, (1, 2, 5), range(len(manifest.stages))),
        lambda: [
            (link.slot_bytes, link.header_bytes)
            for link in links_of(manifest, manifest.plan.micro_batch)
        ],
        lambda: (str(manifest.agreement), codecs_in_words(manifest)),
    )


@pytest.mark.parametrize(
    "count", [100, pytest.param(2000, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_only_our_errors(source: Path, count: int) -> None:
    mutator = Mutator(json.loads((source / "manifest.json").read_text()), seed=count)
    num_refused = 0
    for _ in range(count):
        text = mutator.text()
        (source / "manifest.json").write_text(text)
        try:
            bundle = open_bundle(source)
        except BundleError:
            num_refused += 1
            continue
        for use in _uses(source, bundle):
            with contextlib.suppress(CutsetError):
                use()
    assert count // 2 < num_refused < count
