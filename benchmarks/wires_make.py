"""Plans a model for some clusters and writes the bundles; runs with the code of any commit.

    python benchmarks/wires_make.py JOBS

``wires.py`` starts it, with the code of this commit or of another on the import path. JOBS is a
JSON file: the model, the folder of its profiles, and for each bundle the cluster file, the codecs
that are allowed, and where it goes. Jobs with one plan and one cluster get one bundle. Prints a
line of JSON for each job.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from cutset.cluster.cluster_file import load_cluster
from cutset.workflow import PlanRequest, load_profiles, plan_stages, prepare_model, split_model


def _plan_of(prepared: Any, folder: Path, job: dict[str, Any]) -> Any:
    cluster = load_cluster(Path(job["cluster"]))
    allowed = {"allow": tuple(job["allow"])} if job["allow"] else {}
    request = PlanRequest(cluster=cluster, **allowed)
    return plan_stages(prepared, request, profile=load_profiles(cluster, folder, None))


def _told(plan: Any) -> dict[str, Any]:
    """What a plan says, as far as the code that made it knows such things."""
    return {
        "micro_batch": plan.micro_batch,
        "predicted_row_s": plan.period_s / plan.micro_batch,
        "input_codec": getattr(plan, "input_codec", "none"),
        "stages": [
            {
                "device": stage.device,
                "last": stage.last,
                "backend": stage.backend,
                "codec": getattr(stage, "codec", "none"),
                "compute_s": stage.compute_s,
                "overhead_s": stage.overhead_s,
                "send_s": stage.send_s,
            }
            for stage in plan.stages
        ],
    }


def main() -> None:
    """Plans, writes, prints."""
    wanted = json.loads(Path(sys.argv[1]).read_text())
    prepared = prepare_model(wanted["model"], weights="random:0")
    made: dict[str, str] = {}
    for job in wanted["jobs"]:
        plan = _plan_of(prepared, Path(wanted["profiles"]), job)
        told = _told(plan)
        key = job["cluster"] + json.dumps(told)
        if key not in made:
            made[key] = job["bundle"]
            split_model(prepared, plan, job["bundle"])
        print("result", json.dumps({**told, "bundle": made[key]}), flush=True)


if __name__ == "__main__":
    main()
