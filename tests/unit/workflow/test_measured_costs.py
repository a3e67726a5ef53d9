from __future__ import annotations

import msgspec
import pytest

from cutset.backends.selection import get_backend
from cutset.cluster.devices import Cluster, Device, equal_cluster
from cutset.costs.profile import PieceProfile, Profile, Timing
from cutset.workflow import measured_costs


def _profile(*backends: str) -> Profile:
    timing = Timing(median_s=1.0, p10_s=1.0, p90_s=1.0, num_runs=5)
    return Profile(
        format="cutset-profile/1",
        model="m",
        device="d",
        micro_batch=1,
        num_threads=1,
        pieces=(PieceProfile(last="output", flops=1, timings=dict.fromkeys(backends, timing)),),
        software={},
    )


def _with_memory(cluster: Cluster) -> Cluster:
    devices: tuple[Device, ...] = tuple(
        msgspec.structs.replace(device, memory_bytes=2**30) for device in cluster.devices
    )
    return msgspec.structs.replace(cluster, devices=devices)


def _silent() -> Device:
    return Device(name="silent", memory_bytes=2**30)


def test_an_idle_worker_is_reckoned_with_the_largest_backend_that_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    idle = {"torch": 1, "onnxruntime": 2, "openvino": 3}
    monkeypatch.setattr(measured_costs, "measure_worker_base", idle.__getitem__)
    here = tuple(map(get_backend, ("torch", "onnxruntime")))
    monkeypatch.setattr(measured_costs, "usable_backends", lambda: here)
    limited = _with_memory(equal_cluster(1))
    both = _profile("torch", "onnxruntime", "openvino")
    assert measured_costs.worker_base_bytes(equal_cluster(1), both) == 0
    assert measured_costs.worker_base_bytes(limited, None) == 1
    assert measured_costs.worker_base_bytes(limited, _profile("torch")) == 1
    assert measured_costs.worker_base_bytes(limited, {"a": _profile("torch"), "b": both}) == 2
    told = tuple(
        msgspec.structs.replace(device, backends=names)
        for device, names in zip(
            _with_memory(equal_cluster(2)).devices, (("torch",), ("torch", "other")), strict=True
        )
    )
    assert measured_costs.worker_base_bytes(Cluster(devices=told), both) == 1
    unknown = msgspec.structs.replace(told[0], backends=None)
    assert measured_costs.worker_base_bytes(Cluster(devices=(unknown, told[1])), both) == 2
    free = msgspec.structs.replace(unknown, memory_bytes=None)
    assert measured_costs.worker_base_bytes(Cluster(devices=(free, told[1])), both) == 1
    # Who says it itself counts with that, and nothing has to be measured.
    probed = msgspec.structs.replace(unknown, worker_bytes=7)
    assert measured_costs.worker_base_bytes(Cluster(devices=(probed,)), both) == 0
    assert measured_costs.worker_base_bytes(Cluster(devices=(probed, told[1])), both) == 1
    assert measured_costs.worker_base_bytes(Cluster(devices=(probed, _silent())), both) == 2
