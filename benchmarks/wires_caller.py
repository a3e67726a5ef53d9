"""Runs on the caller's node of a testbed: bundles by ssh, side by side, round by round.

    python benchmarks/wires_caller.py CLUSTER SECONDS ROUNDS BUNDLE...

The sessions of all bundles are open at once; only one computes at a time. A bundle whose images
travel as pixels gets pixels. Prints a line of JSON for each bundle: rows per second in each round.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from cutset.backends.selection import random_inputs
from cutset.bundles.open import open_bundle
from cutset.cluster.cluster_file import load_cluster
from cutset.engines.ssh.ssh_engine import SshHosts
from cutset.measure.bench import measure_throughput
from cutset.runtime.session import open_session
from cutset.runtime.status import Limits

_WARM_UP = 4


def main() -> None:
    """Measures."""
    cluster, seconds, rounds, *folders = sys.argv[1:]
    engine = SshHosts(cluster=load_cluster(Path(cluster)))
    limits = Limits(heartbeat_s=30.0, link_timeout_s=60.0, start_timeout_s=300.0)
    with contextlib.ExitStack() as opened:
        runs = []
        for folder in folders:
            bundle = open_bundle(Path(folder))
            manifest = bundle.manifest
            rows = manifest.plan.micro_batch
            inputs = random_inputs(manifest.stages[0], rows)
            if manifest.takes_pixels and manifest.preprocessing is not None:
                shape = (rows, *manifest.preprocessing.crop, 3)
                inputs = (np.random.default_rng(0).integers(0, 256, shape, np.uint8),)
            session = opened.enter_context(open_session(bundle, engine=engine, limits=limits))
            for _ in session.stream(itertools.repeat(inputs, _WARM_UP)):
                pass
            runs.append((session, inputs, rows, []))
        for number in range(int(rounds)):
            # There and back, so that none is always the first.
            for session, inputs, rows, found in runs if number % 2 == 0 else reversed(runs):
                done, elapsed_s = measure_throughput(session, inputs, float(seconds))
                found.append(rows * done / elapsed_s)
        for *_, found in runs:
            print("result", json.dumps({"rows_per_s": found}), flush=True)


if __name__ == "__main__":
    main()
