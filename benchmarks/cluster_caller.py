"""Runs on a node of the testbed for `benchmarks/cluster.py`: one bundle through the Ray engine.

First some rows with the torch backend, to be compared bit for bit; then period and latency with
the backend that the plan chose. Prints one JSON document.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from cutset.devices import load_cluster
from cutset.engines.ray import RayCluster
from cutset.runtime.bench import measure_latency, measure_throughput
from cutset.runtime.session import open_session

_WARM_UP = 12


def _hosts_cpu_s() -> float:
    """Processor seconds of all actors of the engine on this machine, thus of all its nodes."""
    return sum(
        sum(process.cpu_times()[:2])
        for process in psutil.process_iter(["cmdline"])
        if process.info["cmdline"] and "ray::StageHost" in process.info["cmdline"][0]
    )


def main() -> None:
    """Runs the bundle and prints what was measured."""
    bundle, cluster, rows_file, seconds = sys.argv[1:]
    torch.set_num_threads(1)
    engine = RayCluster(cluster=load_cluster(cluster))
    data = load_file(rows_file)
    with open_session(Path(bundle), engine=engine, backend="torch", micro_batch=1) as session:
        answers = session.run(data["rows"])
        equal = bool(torch.equal(answers, data["expected"]))
    row = (data["rows"][:1],)
    with open_session(Path(bundle), engine=engine, backend="auto", micro_batch=1) as session:
        for _ in session.stream(row for _ in range(_WARM_UP)):
            pass
        before_s, started_s = _hosts_cpu_s(), time.perf_counter()
        num_done, elapsed_s = measure_throughput(session, row, float(seconds))
        hosts_share = (_hosts_cpu_s() - before_s) / (time.perf_counter() - started_s)
        latencies = measure_latency(session, row, float(seconds) / 2)
        stages = session.stats().stages
    document = {
        "equal": equal,
        "num_rows": len(data["rows"]),
        "period_s": elapsed_s / num_done,
        "latency_s": statistics.median(latencies),
        "hosts_share": hosts_share / len(stages),
        "backends": [stage.backend for stage in stages],
        "devices": [stage.device for stage in stages],
    }
    print("result", json.dumps(document), flush=True)


if __name__ == "__main__":
    main()
