"""Runs on a node: streams the rows of a file through a bundle and says how each was answered.

So many rounds of them, or until its input is closed.

Prints ``up``, then ``at N`` whenever N rows were read, and at the end a
``result``. It goes on reading at once; whoever listens may break something meanwhile.
"""

from __future__ import annotations

import json
import select
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file

from cutset.cluster.cluster_file import load_cluster
from cutset.engines.registry import EngineSettings
from cutset.errors import CutsetError
from cutset.runtime.session import open_session
from cutset.runtime.status import Limits

_SAY_EVERY = 100


def _engine(where: str, replan_after_s: float) -> EngineSettings:
    """Ray, or by ssh the hosts of a cluster file."""
    if where == "ray":
        from cutset.engines.ray.engine import RayCluster

        return RayCluster(replan_after_s=replan_after_s)
    from cutset.engines.ssh.ssh_engine import SshHosts

    return SshHosts(cluster=load_cluster(where), replan_after_s=replan_after_s)


def main() -> None:
    where, bundle, file, replan_after_s, heartbeat_s, rounds = sys.argv[1:]
    torch.set_num_threads(1)
    data = load_file(file)
    rows, expected = data["rows"], data["expected"]
    limits = Limits(
        heartbeat_s=float(heartbeat_s),
        link_timeout_s=2 * float(heartbeat_s),
        start_timeout_s=120.0,
    )
    engine = _engine(where, float(replan_after_s))

    num_asked = 0

    def one_by_one() -> Iterator[torch.Tensor]:
        nonlocal num_asked
        for number in range(int(rounds) * len(rows)):
            if number % _SAY_EVERY == 0:
                print(f"at {number}", flush=True)
                if number and select.select([sys.stdin], [], [], 0)[0]:
                    return
            num_asked += 1
            index = number % len(rows)
            yield rows[index : index + 1]

    result: dict[str, object] = {"answered": 0, "wrong": []}
    try:
        with open_session(Path(bundle), engine=engine, backend="torch", limits=limits) as session:
            print("up", json.dumps(session.worker_pids), flush=True)
            wrong = []
            num_answers = 0
            for number, answer in enumerate(session.stream(one_by_one())):
                num_answers += 1
                index = number % len(rows)
                if not torch.equal(answer, expected[index : index + 1]):
                    wrong.append(number)
            stages = session.stats().stages
            result = {
                "asked": num_asked,
                "answered": num_answers,
                "wrong": wrong,
                "epoch": session.epoch,
                "devices": [stage.device for stage in stages],
                "restarts": [stage.num_restarts for stage in stages],
                "received_bytes": [stage.stats.received_bytes for stage in stages],
            }
    except CutsetError as error:
        result["error"] = f"{type(error).__name__}: {error}"
    print("result", json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
