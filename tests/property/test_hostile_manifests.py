"""Whatever a manifest says, reading it and what reads from it gives a `CutsetError` or an answer.

Mutations follow the types: each key, wherever it stands, gets another type, an extreme number,
another enumerated word, is missing, doubled, or swapped with what stands elsewhere.
"""

from __future__ import annotations

import contextlib
import copy
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cutset.cli.reporting import _of_bundle
from cutset.costs.model import costs_from_flops
from cutset.devices import equal_cluster
from cutset.errors import BundleError, CutsetError
from cutset.graph.capture import capture_model
from cutset.graph.cuts import find_cut_points
from cutset.planning import make_plan
from cutset.report.build import build_report
from cutset.report.html import render
from cutset.runtime.contract import links_of
from cutset.shards.allowance import allowance_of
from cutset.shards.export import export_bundle
from cutset.shards.load import Bundle, open_bundle
from cutset.shards.static_checks import completeness_faults, unit_faults
from hostile import edit_manifest
from models_of_trouble import residual_net

Path_ = tuple[Any, ...]

EXTREMES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1, 2**31, 2**53, 2**60, 2**63, 2**64, 10**30, 1.5, -1.0, 1e300, 1e308),
    *("", "x", "\0", "\x1b[2J\u202e", "x" * 100_000, "batch", "batch*0", "batch*" + "9" * 30),
    *("../x", "float32", "latency", "cutset-bundle/1", [], {}, [[]], [None], {"a": 1}, ["batch"]),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that has every optional key."""
    model, example = residual_net(), torch.randn(3, 3, 8, 8)
    captured = capture_model(model, example)
    cuts = find_cut_points(captured.graph)
    costs = costs_from_flops(captured.graph, cuts, micro_batch=1)
    plan = make_plan(captured.graph, cuts, costs, equal_cluster(2))
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

    edit_manifest(folder, complete)
    open_bundle(folder)
    return folder


def _places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    if path:
        yield path
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, item in items:
        yield from _places(item, (*path, key))


def _at(document: Any, path: Path_) -> Any:
    for key in path:
        document = document[key]
    return document


class _Mutator:
    """Chooses among kinds of keys first, so that what is there once is changed as often."""

    def __init__(self, document: dict[str, Any], seed: int) -> None:
        self._document = document
        self._random = random.Random(seed)
        self._kinds: dict[Path_, list[Path_]] = {}
        for path in _places(document):
            kind = tuple(key for key in path if isinstance(key, str))
            self._kinds.setdefault(kind, []).append(path)

    def _place(self) -> Path_:
        return self._random.choice(self._kinds[self._random.choice(list(self._kinds))])

    def text(self) -> str:
        document = copy.deepcopy(self._document)
        doubled = None
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            path = self._place()
            with contextlib.suppress(KeyError, IndexError, TypeError):  # gone by an earlier one
                doubled = self._change(_at(document, path[:-1]), path[-1]) or doubled
        data = json.dumps(document)
        return data.replace(f'"{doubled}":', f'"{doubled}": 1, "{doubled}":', 1)

    def _change(self, parent: Any, key: Any) -> str | None:
        action = self._random.randrange(7)
        value = parent[key]
        if action < 3:
            parent[key] = copy.deepcopy(self._random.choice(EXTREMES))
        elif action == 3:
            del parent[key]
        elif action == 4 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(value))
        elif action == 4:
            return str(key)
        elif action == 5 and isinstance(value, list):
            self._random.shuffle(value)
        elif action == 5 and type(value) in (int, float):
            parent[key] = value * self._random.choice((0, -1, 2, 10, 10**6))
        else:
            parent[key] = copy.deepcopy(_at(self._document, self._place()))
        return None


def _uses(folder: Path, bundle: Bundle) -> tuple[Callable[[], object], ...]:
    manifest = bundle.manifest
    return (
        lambda: render(build_report(_of_bundle(folder))),
        bundle._repr_html_,
        lambda: (unit_faults(manifest), completeness_faults(manifest, {})),
        lambda: allowance_of(manifest, (1, 2, 5), range(len(manifest.stages))),
        lambda: links_of(manifest, manifest.plan.micro_batch),
    )


@pytest.mark.parametrize(
    "count", [100, pytest.param(2000, marks=pytest.mark.soak)], ids=["short", "long"]
)
def test_only_our_errors(source: Path, count: int) -> None:
    mutator = _Mutator(json.loads((source / "manifest.json").read_text()), seed=count)
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
