from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

from cutset.bundles.manifest import Manifest
from cutset.bundles.open import open_bundle
from cutset.cluster.devices import Cluster, Device, Link
from cutset.engines.placement import (
    cluster_of_plan,
    links_of,
    place_stages,
    require_backends,
    with_speeds,
)
from cutset.errors import EngineError
from distributed.bundles import write_bundle

_MIB = 1 << 20


class Chain(nn.Module):
    """Four equal layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(layer for _ in range(4) for layer in (nn.Linear(32, 32), nn.ReLU()))
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Four stages on a, b, c, d; 40, 10, 10 and 20 ms, 100 MiB each."""
    folder = tmp_path_factory.mktemp("bundles") / "chain.cutset"
    write_bundle(Chain().eval(), (torch.randn(2, 32),), (2, 4, 6), folder)
    manifest = open_bundle(folder).manifest
    stages = tuple(
        msgspec.structs.replace(
            stage,
            device=name,
            compute_s=compute_s,
            memory_bytes=100 * _MIB,
            flops=1000,
            send_s=0.001,
        )
        for stage, name, compute_s in zip(
            manifest.plan.stages, "abcd", (0.04, 0.01, 0.01, 0.02), strict=True
        )
    )
    plan = msgspec.structs.replace(manifest.plan, stages=stages, unused_devices=("e",))
    return msgspec.structs.replace(manifest, plan=plan)


def _cluster(**memory_mib: int) -> Cluster:
    devices = tuple(
        Device(name=name, memory_bytes=mib * _MIB if (mib := memory_mib.get(name)) else None)
        for name in "abcd"
    )
    return Cluster(devices=devices, link=Link(bandwidth_bytes_per_s=1e9, latency_s=1e-4))


def test_as_long_as_all_are_there_the_plan_holds(manifest: Manifest) -> None:
    assert place_stages(manifest, _cluster(), ()) == ("a", "b", "c", "d")
    assert place_stages(manifest, _cluster(), {"e"}) == ("a", "b", "c", "d")


def test_the_rest_is_planned_again_as_a_whole(manifest: Manifest) -> None:
    placed = place_stages(manifest, _cluster(), {"b"})
    # The longest stage keeps a device of its own, the two short ones share one: 40 ms at most.
    assert placed[0] not in placed[1:]
    assert set(placed) <= {"a", "c", "d"}


def test_one_device_takes_everything(manifest: Manifest) -> None:
    assert place_stages(manifest, _cluster(), {"a", "b", "c"}) == ("d", "d", "d", "d")


def test_memory_adds_up_and_what_is_missing_is_said(manifest: Manifest) -> None:
    roomy = _cluster(a=100, b=100, c=100, d=200)
    placed = place_stages(manifest, roomy, {"b"})
    assert placed.count("d") == 2
    tight = _cluster(a=100, b=100, c=100, d=150)
    with pytest.raises(EngineError) as caught:
        place_stages(manifest, tight, {"b"})
    message = str(caught.value)
    assert message.startswith("without b the stages find no place on a, c, d: no placement fits")
    assert "device 'd' has 150 MiB and lacks 50 MiB" in message


def test_nobody_is_left(manifest: Manifest) -> None:
    with pytest.raises(EngineError, match="no device remains without a, b, c, d"):
        place_stages(manifest, _cluster(), set("abcd"))


def _neighbours(placed: tuple[str, ...]) -> set[frozenset[str]]:
    return set(links_of(placed, None))


def test_devices_between_which_nothing_passes_are_no_neighbours(manifest: Manifest) -> None:
    cut = {frozenset("bc")}
    placed = place_stages(manifest, _cluster(), (), cut)
    assert not _neighbours(placed) & cut
    # Three ways of four devices are left: one cannot be left out.
    ends = {frozenset(pair) for pair in ("ab", "ac", "ad")}
    placed = place_stages(manifest, _cluster(), (), ends)
    assert not _neighbours(placed) & ends
    # A wire that the plan does not use changes nothing.
    assert place_stages(manifest, _cluster(), (), {frozenset("ac")}) == ("a", "b", "c", "d")
    assert place_stages(manifest, _cluster(), (), {frozenset("xy")}) == ("a", "b", "c", "d")


def test_a_caller_that_reaches_no_device_but_its_own(manifest: Manifest) -> None:
    cluster = msgspec.structs.replace(_cluster(), caller="a")
    placed = place_stages(manifest, cluster, (), {frozenset("ad")})
    assert "d" not in (placed[0], placed[-1])
    ways = {frozenset(("a", other)) for other in "bcd"}
    assert place_stages(manifest, cluster, (), ways) == ("a",) * 4
    tight = msgspec.structs.replace(_cluster(a=100, b=100, c=100, d=100), caller="a")
    with pytest.raises(EngineError) as caught:
        place_stages(manifest, tight, (), ways)
    assert str(caught.value) == (
        "without a way between a and b, a way between a and c, a way between a and d the stages"
        " find no place on a, b, c, d"
    )


def test_a_lost_device_and_a_cut_wire_count_together(manifest: Manifest) -> None:
    placed = place_stages(manifest, _cluster(), {"d"}, {frozenset("ab")})
    assert set(placed) <= set("abc")
    assert frozenset("ab") not in _neighbours(placed)


def test_what_a_plan_alone_tells(manifest: Manifest) -> None:
    cluster = cluster_of_plan(manifest.plan)
    assert {device.name: device.speed for device in cluster.devices} == pytest.approx(
        {"a": 0.25, "b": 1.0, "c": 1.0, "d": 0.5, "e": 0.25}
    )
    stage = manifest.plan.stages[0]
    sent = stage.output_bytes_per_sample * manifest.plan.micro_batch
    assert cluster.link.bandwidth_bytes_per_s == pytest.approx(sent / 0.001)
    assert place_stages(manifest, cluster, {"a"})[0] in ("b", "c", "d", "e")


def test_devices_with_profiles_are_as_fast_as_planned(manifest: Manifest) -> None:
    devices = tuple(Device(name=name, profile=f"{name}.json") for name in "abcdf")
    found = with_speeds(Cluster(devices=devices), manifest.plan)
    # 1000 multiply-adds in 40, 10, 10 and 20 ms; f has no stage.
    assert {device.name: device.speed for device in found.devices} == pytest.approx(
        {"a": 0.25, "b": 1.0, "c": 1.0, "d": 0.5, "f": 0.25}
    )
    assert {device.profile for device in found.devices} == {None}
    placed = place_stages(manifest, Cluster(devices=devices[:4]), {"b"})
    assert set(placed) <= {"a", "c", "d"}


def test_profiles_beside_speeds_are_on_one_scale(manifest: Manifest) -> None:
    devices = (
        Device(name="a", profile="a.json"),
        Device(name="b", speed=2.0),
        Device(name="d", profile="d.json"),
        Device(name="g", speed=0.1),
    )
    found = with_speeds(Cluster(devices=devices), manifest.plan)
    assert {device.name: device.speed for device in found.devices} == pytest.approx(
        {"a": 0.5, "b": 2.0, "d": 1.0, "g": 0.1}
    )


def test_a_cluster_without_profiles_stays_as_it_is(manifest: Manifest) -> None:
    cluster = _cluster()
    assert with_speeds(cluster, manifest.plan) is cluster


def _without_onnx(manifest: Manifest, stage: int) -> Manifest:
    """The manifest as it is where ONNX cannot express a stage."""
    stages = list(manifest.stages)
    stages[stage] = msgspec.structs.replace(stages[stage], model=None, model_missing="no op")
    return msgspec.structs.replace(manifest, stages=tuple(stages))


def test_a_stage_moves_only_to_where_something_can_compute_it(manifest: Manifest) -> None:
    backends = {"a": ("onnxruntime",), "b": ("torch",), "c": ("onnxruntime",), "d": ("torch",)}
    devices = tuple(Device(name=name, backends=each) for name, each in backends.items())
    cluster = Cluster(devices=devices, link=Link(bandwidth_bytes_per_s=1e9))
    changed = _without_onnx(manifest, 1)
    assert place_stages(changed, cluster, ("b",))[1] == "d"
    with pytest.raises(EngineError, match=r"without b, d the stages find no place on a, c: .*"):
        place_stages(changed, cluster, ("b", "d"))


def test_a_device_that_lacks_what_its_stage_needs_is_told(manifest: Manifest) -> None:
    changed = _without_onnx(manifest, 1)
    require_backends(changed, 0, "pi", ["onnxruntime"])
    require_backends(changed, 1, "pi", ["onnxruntime", "torch"])
    require_backends(changed, 1, "pi", ["of-another-package"])
    with pytest.raises(EngineError) as caught:
        require_backends(changed, 1, "pi", ["onnxruntime", "openvino"])
    assert str(caught.value) == (
        "stage 1 cannot run on pi: the stage has no ONNX form (no op). pi computes with"
        " onnxruntime, openvino: install torch there, or say in the cluster file which backends"
        " each device has (backends = [...]) and split again"
    )
    with pytest.raises(EngineError, match=r"no backend is there\. pi computes with nothing"):
        require_backends(manifest, 0, "pi", [])
    stages = tuple(msgspec.structs.replace(each, program=None) for each in manifest.stages)
    of_onnx = msgspec.structs.replace(manifest, stages=stages)
    with pytest.raises(EngineError, match=r"no torch program\. .* install onnxruntime there"):
        require_backends(of_onnx, 0, "pi", ["torch-compiled"])
