from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import msgspec
import pytest
import torch

from cutset.bundles.open import open_bundle
from cutset.cluster.devices import Cluster, Device
from cutset.engines import remote_engine
from cutset.engines.placement import links_of
from cutset.engines.remote_host import HostAwayError
from cutset.engines.ssh import ssh_engine
from cutset.engines.ssh.ssh_engine import SshEngine, SshHosts
from cutset.errors import EngineError
from distributed.bundles import small_net, write_bundle


@pytest.fixture(scope="module")
def good_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages, each on a device of its own."""
    folder = tmp_path_factory.mktemp("bundles") / "three.cutset"
    return write_bundle(small_net(), (torch.randn(2, 3, 16, 16),), (3, 6), folder)


class _Host:
    """A device that answers at once, without ssh."""

    def __init__(self, target: object, ended: threading.Event, *, timeout_s: float) -> None:
        del ended, timeout_s
        self.device = target.device.name  # type: ignore[attr-defined]
        self.address = "127.0.0.1"

    def kill(self) -> threading.Thread:
        thread = threading.Thread(target=str)
        thread.start()
        return thread


def _cluster(*names: str) -> Cluster:
    return Cluster(devices=tuple(Device(name=name, address="host") for name in names))


def test_without_a_cluster_file_or_with_another_the_error_says_so(good_bundle: Path) -> None:
    bundle = open_bundle(good_bundle)
    with pytest.raises(EngineError, match="needs a cluster file with the devices' addresses"):
        SshHosts().engine_for(bundle, num_threads=1)
    settings = SshHosts(cluster=_cluster("somewhere"))
    with pytest.raises(EngineError, match=r"which is no device of the cluster file; it has somewh"):
        settings.engine_for(bundle, num_threads=1)
    with pytest.raises(ValueError, match="replan_after_s must be above 0"):
        SshHosts(cluster=_cluster("a"), replan_after_s=0).engine_for(bundle, num_threads=1)


def test_a_device_that_was_given_up_gets_its_stages_again_when_it_answers(
    good_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_engine, "SshHost", _Host)
    monkeypatch.setattr(ssh_engine, "_LONGEST_PAUSE_S", 0.01)
    bundle = open_bundle(good_bundle)
    planned = tuple(stage.device for stage in bundle.manifest.plan.stages)
    lost = planned[-1]
    engine = SshEngine(bundle, SshHosts(cluster=_cluster(*planned)), num_threads=1)
    given_up = threading.Event()
    placed: list[tuple[str, ...]] = []
    place = engine._place

    def noted(*arguments: object) -> None:
        place(*arguments)  # type: ignore[arg-type]
        placed.append(tuple(engine.device_of(k) for k in range(len(planned))))
        if len(placed) == 2:
            given_up.set()

    monkeypatch.setattr(engine, "_place", noted)
    engine._give_up(lost, len(planned) - 1, HostAwayError("it is away"))
    assert given_up.wait(10)
    assert lost not in placed[0]
    assert placed[1] == planned
    engine.close()


def test_a_wire_that_stood_is_waited_for_and_then_done_without(
    good_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_engine, "SshHost", _Host)
    now_s = [100.0]
    monkeypatch.setattr(remote_engine.time, "monotonic", lambda: now_s[0])
    bundle = open_bundle(good_bundle)
    first, second, third = (stage.device for stage in bundle.manifest.plan.stages)
    cluster = _cluster(first, second, third)
    engine = SshEngine(bundle, SshHosts(cluster=cluster, replan_after_s=5.0), num_threads=1)

    def placed() -> list[str]:
        return [engine.device_of(stage) for stage in range(3)]

    assert not engine.link_lost(2)  # it never stood: a port that is closed, perhaps
    engine.standing()
    assert not engine.link_lost(0)  # nobody says where the caller is
    for at_s in (100.0, 104.9):
        now_s[0] = at_s
        assert engine.link_lost(2)
        assert placed() == [first, second, third]
    engine.standing()  # it is back
    for at_s in (105.0, 109.0):
        now_s[0] = at_s
        assert engine.link_lost(2)
        assert placed() == [first, second, third]
    now_s[0] = 110.0
    assert engine.link_lost(2)
    again = placed()
    assert frozenset((second, third)) not in links_of(again, None)
    # Another wire, while that is gone.
    engine.standing()
    number = next(k for k in (1, 2) if again[k - 1] != again[k])
    for at_s in (111.0, 116.0):
        now_s[0] = at_s
        assert engine.link_lost(number)
    assert not set(links_of(placed(), None)) & {
        frozenset((second, third)),
        frozenset(again[number - 1 : number + 1]),
    }
    # A device that went and came back is believed to have its wires again.
    engine._give_up(third, 2, HostAwayError("it is away"))
    engine._back = {third}
    engine._welcome_back()
    assert engine._cut == {each for each in engine._cut if third not in each}
    engine.close()


class _OnnxOnly(_Host):
    """A device without torch, which notes what is sent to it."""

    sent: list[int] = []  # noqa: RUF012  # one for all of a test

    def ask(self, method: str, *arguments: object, **options: object) -> object:
        assert method == "backends"
        return ["onnxruntime"]

    def deliver(self, folder: Path, manifest: object, files: object, stage: int) -> str:
        self.sent.append(stage)
        return str(folder)


def test_a_stage_without_an_onnx_form_is_not_sent_to_where_torch_is_missing(
    good_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_engine, "SshHost", _OnnxOnly)
    monkeypatch.setattr(_OnnxOnly, "sent", [])
    bundle = open_bundle(good_bundle)
    stages = list(bundle.manifest.stages)
    stages[1] = msgspec.structs.replace(stages[1], model=None, model_missing="no op")
    manifest = msgspec.structs.replace(bundle.manifest, stages=tuple(stages))
    bundle = dataclasses.replace(bundle, manifest=manifest)
    names = tuple(stage.device for stage in manifest.plan.stages)
    engine = SshHosts(cluster=_cluster(*names)).engine_for(bundle, num_threads=1)
    try:
        hosts = [engine._hosts[stage] for stage in range(3)]
        engine.deliver(hosts[0], 0)
        with pytest.raises(
            EngineError, match=f"stage 1 cannot run on {names[1]}: the stage has no"
        ):
            engine.deliver(hosts[1], 1)
        assert _OnnxOnly.sent == [0]
    finally:
        engine.close()
    # A file that says so spares even the login.
    monkeypatch.setattr(ssh_engine, "SshHost", None)
    told = tuple(
        msgspec.structs.replace(device, backends=("onnxruntime",))
        for device in _cluster(*names).devices
    )
    with pytest.raises(EngineError, match=r"no ONNX form \(no op\)"):
        SshHosts(cluster=Cluster(devices=told)).engine_for(bundle, num_threads=1)
