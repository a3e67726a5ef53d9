"""Runs on a node of the testbed for `cluster_bed.measure_on`: bundles through the Ray engine.

    python benchmarks/cluster_caller.py CLUSTER ROWS SECONDS BUNDLE...

For each bundle, first some rows with the torch backend, to be compared bit for bit; then period and
latency with the backends that the plan chose. Prints a line of JSON for each.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from cutset.cluster.cluster_file import load_cluster
from cutset.engines.ray.engine import RayCluster
from cutset.measure.bench import measure_latency, measure_throughput
from cutset.runtime.session import open_session

_WARM_UP = 12


def _hosts_cpu_s() -> float:
    """Processor seconds of all actors of the engine on this machine, thus of all its nodes."""
    return sum(
        sum(process.cpu_times()[:2])
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and "ray::StageHost" in process.info["cmdline"][0]
    )


def measure(
    bundle: Path, engine: RayCluster, data: dict[str, torch.Tensor], seconds: float
) -> dict[str, Any]:
    """All that is measured of one bundle."""
    with open_session(bundle, engine=engine, backend="torch", micro_batch=1) as session:
        answers = session.run(data["rows"])
        equal = bool(torch.equal(answers, data["expected"]))
    row = (data["rows"][:1],)
    with open_session(bundle, engine=engine, backend="auto", micro_batch=1) as session:
        for _ in session.stream(row for _ in range(_WARM_UP)):
            pass
        before_s, started_s = _hosts_cpu_s(), time.perf_counter()
        num_done, elapsed_s = measure_throughput(session, row, seconds)
        hosts_share = (_hosts_cpu_s() - before_s) / (time.perf_counter() - started_s)
        latencies = measure_latency(session, row, seconds / 2)
        stages = session.stats().stages
    return {
        "equal": equal,
        "num_rows": len(data["rows"]),
        "period_s": elapsed_s / num_done,
        "latency_s": statistics.median(latencies),
        "hosts_share": hosts_share / len(stages),
        "backends": [stage.backend for stage in stages],
        "devices": [stage.device for stage in stages],
    }


def main() -> None:
    """Runs the bundles and prints what was measured."""
    cluster, rows_file, seconds, *bundles = sys.argv[1:]
    torch.set_num_threads(1)
    engine = RayCluster(cluster=load_cluster(cluster))
    data = load_file(rows_file)
    for bundle in bundles:
        found = measure(Path(bundle), engine, data, float(seconds))
        print("result", json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
