"""Every single cut of a model on two unequal nodes, measured beside the planner's choice.

Used by ``cluster.py``. For each cut the planner chooses the order of the two nodes; not splitting,
on the faster node, is measured too. The planner's own choice, made without a word about cuts, is
one of them, so it is held against the best of all. Of some twenty measurements the least is also
the luckiest; so the choice, and all that come close to the best, are measured again, in turn, and
compared round by round.
"""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster_bed import measure_on, progress, testbed, with_profiles, write_measured
from cutset.bundles.open import open_bundle
from cutset.cluster.cluster_file import cluster_from_toml, load_cluster
from cutset.planning import Plan
from cutset.workflow import (
    PlanRequest,
    load_profiles,
    plan_stages,
    prepare_model,
    split_model,
)

MODELS = ("mobilenet_v2", "resnet18")
_CLUSTER = """
caller = "server"
[[device]]
name = "server"
[[device]]
name = "pi-1"
speed = 0.5
[link]
bandwidth = "20 Mbit/s"
"""
_SECONDS = 3.0
_CLOSE = 1.15
"""Times the least period; those within it are measured again."""
_NUM_ROUNDS = 8
_NOT_SPLIT = "do not split"


def measure(folder: Path, models: Sequence[str]) -> None:
    """Splits at every cut and runs each bundle on a testbed.

    Args:
        folder: where profiles and rows lie and results are kept.
        models: names.
    """
    todo = [model for model in models if not (folder / f"{model}.cuts.json").exists()]
    if not todo:
        return
    cluster_file = folder / "two.toml"
    with testbed(cluster_from_toml(_CLUSTER), ray=True, ssh=False) as state:
        if not cluster_file.exists():
            write_measured(state, cluster_from_toml(_CLUSTER), cluster_file)
        for model in todo:
            chosen = _split_everywhere(model, folder)
            bundles = sorted((folder / "cuts").glob(f"{model}-*.cutset"))
            progress(f"running {model} with {len(bundles)} different cuts")
            run = functools.partial(
                measure_on,
                state,
                "server",
                cluster=cluster_file,
                rows=folder / f"{model}.rows.safetensors",
                seconds=_SECONDS,
            )
            names = {_name_of(open_bundle(bundle).manifest.plan): bundle for bundle in bundles}
            periods = {
                name: [found["period_s"]]
                for name, found in zip(names, run(list(names.values())), strict=True)
            }
            least_s = min(found[0] for found in periods.values())
            close = (name for name, found in periods.items() if found[0] <= _CLOSE * least_s)
            finalists = list(dict.fromkeys([chosen, *close]))
            # There and back, so that none is always the first.
            order = [*finalists, *reversed(finalists)] * (_NUM_ROUNDS // 2)
            for name, found in zip(order, run([names[name] for name in order]), strict=True):
                periods[name].append(found["period_s"])
            document = {"chosen": chosen, "finalists": finalists, "periods_s": periods}
            (folder / f"{model}.cuts.json").write_text(json.dumps(document, indent=1))


def _split_everywhere(model: str, folder: Path) -> str:
    """Writes a bundle for every cut that can be placed; says which one the planner chooses."""
    cluster = with_profiles(load_cluster(folder / "two.toml"), model)
    prepared = prepare_model(model, weights="random:0")
    profile = load_profiles(cluster, folder, None)
    wanted = [PlanRequest(cluster=cluster), PlanRequest(cluster=cluster, num_stages=1)]
    wanted += [
        PlanRequest(cluster=cluster, cut_names=(point.after,)) for point in prepared.cuts.points
    ]
    plans = [plan_stages(prepared, request, profile=profile) for request in wanted]
    chosen = _name_of(plans[0])
    (folder / "cuts").mkdir(exist_ok=True)
    for index, plan in enumerate({_name_of(plan): plan for plan in plans}.values()):
        bundle = folder / "cuts" / f"{model}-{index:02}.cutset"
        if not bundle.exists():
            progress(f"splitting {model}: {_name_of(plan)}")
            split_model(prepared, plan, bundle)
    return chosen


def _name_of(plan: Plan) -> str:
    if len(plan.stages) == 1:
        return _NOT_SPLIT
    return f"after {plan.stages[0].last}"


def report(folder: Path) -> list[str]:
    """The measured periods in Markdown."""
    lines: list[str] = []
    for model in MODELS:
        file = folder / f"{model}.cuts.json"
        if not file.exists():
            lines += ["", f"Every single cut of {model}: not measured yet."]
            continue
        document: dict[str, Any] = json.loads(file.read_text())
        periods = {name: statistics.median(found) for name, found in document["periods_s"].items()}
        chosen = document["chosen"]
        best = min(document["finalists"], key=lambda name: periods[name])
        rounds = list(zip(document["periods_s"][chosen], document["periods_s"][best], strict=True))
        over = statistics.median(ours_s / best_s for ours_s, best_s in rounds) - 1
        listed = ", ".join(
            f"{name} {period_s * 1e3:.1f}"
            for name, period_s in sorted(periods.items(), key=lambda item: item[1])
        )
        lines += [
            "",
            (
                f"{model} on two nodes (a whole core, half a core, 20 Mbit/s), each of its"
                f' {len(periods)} ways measured: the planner chooses "{chosen}" with'
                f' {periods[chosen] * 1e3:.1f} ms a row, the best is "{best}" with'
                f" {periods[best] * 1e3:.1f} ms; round by round the choice is"
                f" {over:.1%} over it (medians of {len(rounds)} rounds for"
                f" {', '.join(document['finalists'])}). All, in ms: {listed}."
            ),
        ]
    return lines
