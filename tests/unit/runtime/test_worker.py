from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from cutset.engines.control import ControlSocket
from cutset.engines.protocol import Connect, Load
from cutset.errors import EngineError
from cutset.runtime import worker


def test_the_circuit_is_known_before_its_first_micro_batch_can_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = socket.socketpair()
    control = ControlSocket.for_worker(theirs)
    stage_worker = worker.StageWorker(control, "127.0.0.1", ())
    known_at_start = []

    class QuickCircuit:
        """One whose neighbours are ready at once: what arrives then must not be taken for late."""

        def __init__(self, **_: Any) -> None:
            known_at_start.append(False)

        def start(self) -> None:
            known_at_start.append(stage_worker._circuit is self)

    monkeypatch.setattr(worker, "Circuit", QuickCircuit)
    stage_worker._links = ()
    stage_worker._load = Load(
        bundle=b"unused",
        stage=0,
        member=0,
        backend="torch",
        micro_batch=1,
        num_threads=1,
        cpus=(),
        heartbeat_s=5.0,
        num_spans=0,
        num_slots=0,
        num_in_flight=1,
    )
    stage_worker._connect(
        Connect(
            epoch=1,
            weights=((1,),),
            connect_timeout_s=1.0,
            link_timeout_s=1.0,
        )
    )
    assert known_at_start == [False, True]
    ours.close()
    control.close()


def test_libraries_are_imported_before_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    stage_worker = worker.StageWorker(ControlSocket.for_worker(theirs), "127.0.0.1", ())
    called: list[str] = []

    def refuse(*_: object, **__: object) -> None:
        called.append("load_stage")
        raise EngineError("enough")

    monkeypatch.setattr(worker, "open_bundle", lambda *_, **__: SimpleNamespace(manifest=None))
    monkeypatch.setattr(worker, "allowance_of", lambda *_, **__: SimpleNamespace(memory_bytes=1))
    for name in ("import_libraries", "limit_memory"):
        monkeypatch.setattr(worker, name, lambda *_, name=name, **__: called.append(name))
    monkeypatch.setattr(worker, "load_stage", refuse)
    monkeypatch.setattr(worker, "links_of", lambda *_: ())
    stage_worker._load_stage(
        Load(
            bundle=b"unused",
            stage=0,
            member=0,
            backend="torch",
            micro_batch=1,
            num_threads=1,
            cpus=(),
            heartbeat_s=5.0,
            num_spans=0,
            num_slots=1,
            num_in_flight=1,
        )
    )
    assert called == ["import_libraries", "limit_memory", "load_stage"]
    ours.close()
    theirs.close()
