"""A server of a bundle with replicas says of each what it does."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from distributed.bundles import small_net, write_bundle

from .running import INFER, ask, serving, until


def test_status_and_metrics_tell_of_each_replica(tmp_path: Path) -> None:
    example = (torch.randn(2, 3, 16, 16),)
    bundle = write_bundle(small_net(), example, (3,), tmp_path / "b", sizes=(2, 1))
    tensor = {"name": "x", "shape": [16, 3, 16, 16], "datatype": "FP32"}
    body = json.dumps({"inputs": [{**tensor, "data": [0.5] * (16 * 768)}]}).encode()
    with serving(bundle, backend="onnxruntime") as running:
        assert ask(running, path=INFER, body=body)[0] == 200

        def counted() -> bool:
            text = ask(running, "GET", "/metrics")[2].decode()
            found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#")
            counts = [
                float(found.get(f'cutset_stage_rows_total{{device="{device}",stage="{stage}"}}', 0))
                for device, stage in (("cpu:0", 0), ("cpu:0.1", 0), ("cpu:1", 1))
            ]
            shares = [
                found.get(f'cutset_replica_share{{device="{device}",stage="{stage}"}}')
                for device, stage in (("cpu:0", 0), ("cpu:0.1", 0), ("cpu:1", 1))
            ]
            return counts == [8.0, 8.0, 16.0] and shares == ["0.5", "0.5", "1.0"]

        until(counted)
        document = json.loads(ask(running, "GET", "/status")[2])
        pids = running.session.worker_pids
    first, second = document["stages"]
    assert [each["device"] for each in first["replicas"]] == ["cpu:0", "cpu:0.1"]
    assert [each["pid"] for each in first["replicas"]] == list(pids[:2])
    assert [each["share"] for each in first["replicas"]] == [0.5, 0.5]
    assert (first["state"], second["pid"], second["replicas"]) == ("running", pids[2], [])
    assert 0.0 <= first["busy_share"] <= 1.0
