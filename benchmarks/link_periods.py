"""What keys on links cost a pipeline: six models on a bed of three nodes, with keys and without.

Root on Linux, iproute2 and OpenSSH. The nodes have one core, a half and a half; every link is of
100 Mbit/s, and by ssh a model's three stages stand on them twice, once with keys and once with
``security = "none"``. Rows go through the one and the other in turn, some seconds each; a ratio is
the median of the rounds' own. Writes its part of docs/links.md. What is split is kept in
``build/link-periods``, and a model that was measured is not measured again::

    python benchmarks/link_periods.py split      # some minutes, once; needs no root
    python benchmarks/link_periods.py measure    # six minutes; --only mobilenet_v2,resnet18
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster_bed import finish, progress, start_on, testbed
from cutset.bundles.open import open_bundle
from cutset.cluster.cluster_file import cluster_from_toml, load_cluster
from cutset.engines.ssh.ssh_engine import SshHosts
from cutset.measure.bench import measure_throughput
from cutset.runtime.session import open_session
from cutset.workflow import PlanRequest, plan_stages, prepare_model, split_model
from testbed.state import cluster_file

SIX = ("mobilenet_v2", "resnet18", "resnet50", "vgg16", "alexnet", "inception_v3")
FOLDER = Path("build/link-periods")
NUM_ROUNDS = 7
SECONDS = 2.5
GOAL = 1.03
WAYS = ("keys", "open")

_CLUSTER = """
caller = "n0"
[[device]]
name = "n0"
[[device]]
name = "n1"
speed = 0.5
[[device]]
name = "n2"
speed = 0.5
[link]
bandwidth = "100 Mbit/s"
"""
_WARM_UP = 8
_PAGE = Path(__file__).parents[1] / "docs" / "links.md"
BEGIN, END = "<!-- periods: begin -->", "<!-- periods: end -->"


def split(models: Sequence[str]) -> None:
    """Writes a bundle of three stages for each model, planned by its multiply-adds."""
    for model in models:
        folder = FOLDER / f"{model}.cutset"
        if not folder.exists():
            progress(f"splitting {model}")
            prepared = prepare_model(model, weights="random:0")
            request = PlanRequest(cluster=cluster_from_toml(_CLUSTER), num_stages=3)
            split_model(prepared, plan_stages(prepared, request), folder)


def measure(models: Sequence[str]) -> None:
    """Has a program on the first node, within its core, measure each model."""
    script = str(Path(__file__).resolve())
    cluster = cluster_from_toml(_CLUSTER)
    with testbed(cluster, ray=False, ssh=True, name="periods") as state:
        text = cluster_file(state.layout.name).read_text(encoding="utf-8")
        files = {way: (FOLDER / f"{way}.toml").resolve() for way in WAYS}
        files["keys"].write_text(text, encoding="utf-8")
        assert text.count("[link]\n") == 1
        files["open"].write_text(text.replace("[link]\n", '[link]\nsecurity = "none"\n'))
        for model in models:
            if _result(model).exists():
                continue
            progress(f"{model}: {NUM_ROUNDS} rounds of {SECONDS:g} s each way")
            bundle = (FOLDER / f"{model}.cutset").resolve()
            arguments = [script, "--caller", str(bundle), *(str(files[way]) for way in WAYS)]
            said = finish(start_on(state, "n0", arguments)).splitlines()
            (line,) = (each for each in said if each.startswith("result "))
            about = {"date": dt.datetime.now(tz=dt.timezone.utc).date().isoformat()}
            found = json.loads(line.removeprefix("result "))
            found |= about | {"load": os.getloadavg()[0]}
            _result(model).write_text(json.dumps(found), encoding="utf-8")


def _result(model: str) -> Path:
    return FOLDER / f"{model}.json"


def _call(bundle: Path, clusters: Sequence[str]) -> None:
    """The program on the first node: both pipelines stand, and rows go through one at a time."""
    opened = open_bundle(bundle)
    (spec,) = opened.manifest.stages[0].inputs
    shape = (1, *(int(length) for length in spec.shape[1:]))
    row = (np.random.default_rng(0).standard_normal(shape, np.float32),)
    engines = [SshHosts(cluster=load_cluster(file)) for file in clusters]
    options: dict[str, Any] = {"backend": "onnxruntime", "micro_batch": 1}
    periods_s: dict[str, list[float]] = {way: [] for way in WAYS}
    with (
        open_session(opened, engine=engines[0], **options) as keys,
        open_session(opened, engine=engines[1], **options) as bare,
    ):
        sessions = dict(zip(WAYS, (keys, bare), strict=True))
        for session in sessions.values():
            for _ in session.stream(row for _ in range(_WARM_UP)):
                pass
        for number in range(NUM_ROUNDS):
            for way in WAYS if number % 2 else WAYS[::-1]:
                num_done, elapsed_s = measure_throughput(sessions[way], row, SECONDS)
                periods_s[way].append(elapsed_s / num_done)
        devices = [stage.device for stage in keys.stats().stages]
    print("result", json.dumps({"periods_s": periods_s, "devices": devices}), flush=True)


def report() -> str:
    """The table of what was measured."""
    found = {m: json.loads(_result(m).read_text()) for m in SIX if _result(m).exists()}
    if not found:
        return "No model's period was measured yet."
    lines = [
        "| model | period with keys | without | ratio |",
        "| --- | ---: | ---: | --- |",
    ]
    ratios = []
    for model, each in found.items():
        keys_s, open_s = (each["periods_s"][way] for way in WAYS)
        own = sorted(a / b for a, b in zip(keys_s, open_s, strict=True))
        ratios.append(statistics.median(own))
        lines.append(
            f"| {model} | {statistics.median(keys_s) * 1e3:.1f} ms |"
            f" {statistics.median(open_s) * 1e3:.1f} ms |"
            f" {ratios[-1]:.3f} ({own[0]:.3f} to {own[-1]:.3f}) |"
        )
    dates = ", ".join(sorted({each["date"] for each in found.values()}))
    load = max(each["load"] for each in found.values())
    how = (
        f"`python benchmarks/link_periods.py`, {dates}, {platform.machine()} with {os.cpu_count()}"
        f" cores, load {load:.1f} at most; {NUM_ROUNDS} rounds of {SECONDS:g} s each way; ONNX"
        " Runtime, one row a micro-batch."
    )
    mean = f"The geometric mean is {statistics.geometric_mean(ratios):.3f} (goal: at most {GOAL})."
    return "\n".join([how, "", *lines, "", mean])


def write_page() -> None:
    """Prints the table and puts it into the page."""
    text = report()
    print(text)
    before, _, rest = _PAGE.read_text(encoding="utf-8").partition(BEGIN)
    if not rest:
        raise SystemExit(f"{_PAGE} has no {BEGIN!r}")
    after = rest.partition(END)[2]
    _PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Runs the steps that are named, or both; or is the program on the first node."""
    if sys.argv[1:2] == ["--caller"]:
        _call(Path(sys.argv[2]), sys.argv[3:])
        return
    steps = {"split": split, "measure": measure}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", metavar="STEP", help="split, measure; both by default")
    parser.add_argument("--only", help="names of models, separated by commas")
    arguments = parser.parse_args()
    chosen = arguments.steps or list(steps)
    if unknown := set(chosen) - set(steps):
        parser.error(f"there is no step {', '.join(sorted(unknown))}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for step in chosen:
        steps[step](arguments.only.split(",") if arguments.only else SIX)
    write_page()


if __name__ == "__main__":
    main()
