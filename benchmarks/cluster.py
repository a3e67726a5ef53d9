"""What was predicted for a cluster, and what happens on it: the six models on a testbed.

Needs root on Linux, iproute2 and Ray. Steps that can be repeated alone; results lie in
``build/cluster``, and whatever the steps, the tables in ``docs/cluster.md`` are written anew::

    python benchmarks/cluster.py profile   # links and hops measured, every model profiled on a node
    python benchmarks/cluster.py split     # bundles, and what the whole model answers
    python benchmarks/cluster.py measure   # through the Ray engine: equality, period, latency
    python benchmarks/cluster.py cuts      # every single cut on two nodes, and the planner's choice
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

import cluster_cuts
from cluster_bed import (
    PROFILED_ON,
    finish,
    hop_s,
    measure_link,
    measure_loopback,
    measure_on,
    profile_name,
    progress,
    start_on,
    testbed,
    time_on,
    with_profiles,
    write_measured,
)
from cutset.bundles.open import open_bundle
from cutset.cluster.cluster_file import cluster_from_toml, load_cluster
from cutset.cluster.devices import Cluster
from cutset.workflow import (
    PlanRequest,
    load_profiles,
    plan_stages,
    prepare_model,
    split_model,
)

SIX = ("mobilenet_v2", "resnet18", "resnet50", "vgg16", "alexnet", "inception_v3")
FOLDER = Path("build/cluster")

_CLUSTER = """
caller = "server"
[[device]]
name = "server"
[[device]]
name = "pi-1"
speed = 0.5
[[device]]
name = "pi-2"
speed = 0.5
[link]
bandwidth = "100 Mbit/s"
[[link.between]]
devices = ["pi-1", "pi-2"]
bandwidth = "20 Mbit/s"
"""
_NUM_ROWS = 6
_NUM_ROUNDS = 3
_BEGIN = "<!-- measured: begin -->"
_END = "<!-- measured: end -->"


# --- profile


def profile(models: Sequence[str]) -> None:
    """Measures hops, links, and every model's pieces on one node of each kind."""
    plain = cluster_from_toml(_CLUSTER)
    free = Cluster(devices=tuple(msgspec.structs.replace(d, speed=1.0) for d in plain.devices[:2]))
    hops = FOLDER / "hops.json"
    if not hops.exists():
        with testbed(free, ray=False, ssh=False) as state:
            between = [hop_s(measure_link(state, "server", "pi-1")[0]) for _ in range(3)]
            within = [hop_s(measure_loopback()[0]) for _ in range(3)]
        hops.write_text(json.dumps({"between_s": between, "within_s": within}))
    with testbed(plain, ray=True, ssh=False) as state:
        if not (FOLDER / "cluster.toml").exists():
            write_measured(state, plain, FOLDER / "cluster.toml")
        for model, node in itertools.product(models, dict.fromkeys(PROFILED_ON.values())):
            file = FOLDER / profile_name(model, node)
            if file.exists():
                continue
            progress(f"profiling {model} on {node}")
            command = ["-m", "cutset.cli", "profile", model, "-o", str(file.resolve())]
            finish(start_on(state, node, [*command, "--device", node]))


# --- split


def split(models: Sequence[str]) -> None:
    """Plans with what was measured, writes the bundles and the whole models' answers."""
    for model in models:
        bundle = FOLDER / f"{model}.cutset"
        if bundle.exists():
            continue
        prepared = prepare_model(model, weights="random:0", progress=progress)
        cluster = with_profiles(load_cluster(FOLDER / "cluster.toml"), model)
        profiles = load_profiles(cluster, FOLDER, None)
        plan = plan_stages(prepared, PlanRequest(cluster=cluster), profile=profiles)
        split_model(prepared, plan, bundle, progress=progress)
        torch.set_num_threads(1)
        shape = prepared.captured.example_inputs[0].shape[1:]
        rows = torch.randn(_NUM_ROWS, *shape, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            answers = [prepared.captured.call(prepared.module, (row,)) for row in rows.split(1)]
        expected = torch.cat([a if isinstance(a, torch.Tensor) else a[0] for a in answers])
        save_file({"rows": rows, "expected": expected}, FOLDER / f"{model}.rows.safetensors")


# --- measure


def measure(models: Sequence[str], seconds: float) -> None:
    """Times the stages of every bundle on their nodes and runs it through the Ray engine, in turn.

    A prediction is held against the session right after it: a shared machine is not the same fast
    a minute later.
    """
    with testbed(cluster_from_toml(_CLUSTER), ray=True, ssh=False) as state:
        for model in models:
            file = FOLDER / f"{model}.rounds.json"
            if file.exists():
                continue
            bundle = FOLDER / f"{model}.cutset"
            rounds = []
            for number in range(1, _NUM_ROUNDS + 1):
                progress(
                    f"{model}, round {number} of {_NUM_ROUNDS}: timing its stages, then running it"
                )
                time_on(state, "server", bundle, cluster=FOLDER / "cluster.toml")
                plan = open_bundle(bundle).manifest.plan
                (found,) = measure_on(
                    state,
                    "server",
                    [bundle],
                    cluster=FOLDER / "cluster.toml",
                    rows=FOLDER / f"{model}.rows.safetensors",
                    seconds=seconds,
                )
                expected = {
                    "expected_period_s": plan.expected_period_s,
                    "expected_latency_s": plan.expected_latency_s,
                }
                rounds.append({**found, **expected})
            file.write_text(json.dumps(rounds, indent=1))


class Off:
    """How far measured values lie from what was predicted for them, round by round."""

    def __init__(self, rounds: Sequence[dict[str, Any]], what: str) -> None:
        self.predicted_s = statistics.median(each[f"expected_{what}"] for each in rounds)
        self.measured_s = statistics.median(each[what] for each in rounds)
        self._ratios = [each[what] / each[f"expected_{what}"] - 1 for each in rounds]
        self.median = statistics.median(self._ratios)

    def cells(self) -> str:
        """Three cells of a table."""
        return (
            f" {self.predicted_s * 1e3:.1f} ms | {self.measured_s * 1e3:.1f} ms |"
            f" {self.median:+.1%} ({min(self._ratios):+.0%} to {max(self._ratios):+.0%}) |"
        )


def _summary(offs: Sequence[Off]) -> str:
    sizes = [abs(off.median) for off in offs]
    return f"at most {max(sizes):.1%}, median {statistics.median(sizes):.1%}"


def report() -> None:
    """Prints the table and puts it into the documentation."""
    lines = [
        (
            "| model | stages on | bit for bit | period, predicted | measured | |"
            " latency, predicted | measured | |"
        ),
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    periods: list[Off] = []
    latencies: list[Off] = []
    shares: list[float] = []
    for model in SIX:
        file = FOLDER / f"{model}.rounds.json"
        if not file.exists():
            continue
        rounds: list[dict[str, Any]] = json.loads(file.read_text())
        periods.append(Off(rounds, "period_s"))
        latencies.append(Off(rounds, "latency_s"))
        shares += [each["hosts_share"] for each in rounds]
        equal = "yes" if all(each["equal"] for each in rounds) else "NO"
        lines.append(
            f"| {model} | {', '.join(rounds[0]['devices'])} | {equal} |"
            f"{periods[-1].cells()}{latencies[-1].cells()}"
        )
    if not periods:
        lines = ["No model was measured yet."]
    else:
        lines += [
            "",
            (
                f"In each of {len(rounds)} rounds the nodes timed their stages, and the pipeline"
                f" ran right after; medians, and in brackets the least and the most of the rounds."
                f" Off in period: {_summary(periods)}; in latency: {_summary(latencies)}. The"
                f" engine's own process on each node used {max(shares):.2%} of a core at most while"
                f" the pipeline ran."
            ),
        ]
    if (FOLDER / "hops.json").exists():
        hops = json.loads((FOLDER / "hops.json").read_text())
        between, within = (statistics.median(hops[k]) for k in ("between_s", "within_s"))
        lines += [
            "",
            (
                f"A hop of 1.6 MB between two nodes without a rate limit takes"
                f" {between * 1e3:.2f} ms, over loopback {within * 1e3:.2f} ms:"
                f" {between / within:.2f} times that."
            ),
        ]
    lines += cluster_cuts.report(FOLDER)
    text = "\n".join(lines)
    print(text)
    page = Path("docs/cluster.md")
    before, _, rest = page.read_text().partition(_BEGIN)
    if not rest:
        raise SystemExit(f"{page} has no {_BEGIN!r}")
    page.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{rest.partition(_END)[2]}")


def main() -> None:
    """Parses and runs the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    steps = ("profile", "split", "measure", "cuts", "report")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=", ".join(steps))
    parser.add_argument("--only", help="names of models, separated by commas")
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    models = arguments.only.split(",") if arguments.only else SIX
    FOLDER.mkdir(parents=True, exist_ok=True)
    progress(f"{platform.machine()}, Python {platform.python_version()}")
    chosen = arguments.steps or steps
    if "profile" in chosen:
        profile(models)
    if "split" in chosen:
        split(models)
    if "measure" in chosen:
        measure(models, arguments.seconds)
    if "cuts" in chosen:
        cluster_cuts.measure(FOLDER, [m for m in cluster_cuts.MODELS if m in models])
    report()


if __name__ == "__main__":
    main()
