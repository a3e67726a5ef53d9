from __future__ import annotations

import math
from pathlib import Path

import pytest

from cutset.engines.node_service import NodeService
from cutset.engines.ray.stage_host import StageHost
from cutset.errors import EngineError
from cutset.host import memory_bytes, num_usable_cores
from cutset.programs import PROGRAMS


def test_a_program_says_what_it_printed_or_why_it_failed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUTSET_CACHE_DIR", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "says.py").write_text("def main(): print('done')")
    (tmp_path / "fails.py").write_text("def main(): raise SystemExit('no such model')")
    monkeypatch.setitem(PROGRAMS, "say", "says")
    monkeypatch.setitem(PROGRAMS, "fail", "fails")
    host = NodeService(linger_s=30.0)
    with pytest.raises(EngineError, match="no program was started"):
        host.program_result()
    host.start_program("say", [], 1)
    assert host.program_result() == "done\n"
    host.start_program("fail", [], 1)
    with pytest.raises(EngineError, match="the measurement failed: no such model"):
        host.program_result()
    assert host.facts()["num_cores"] == num_usable_cores()
    assert 0 < host.facts()["memory_bytes"] <= memory_bytes()
    with pytest.raises(EngineError, match="is no model's file"):
        host.keep_model("0" * 64, ".sh")
    host.close()


def test_a_host_receives_a_shard_and_passes_events_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import hashlib

    monkeypatch.setenv("CUTSET_CACHE_DIR", str(tmp_path))
    host = StageHost(lease_s=math.inf, linger_s=0.0)
    data = b"a shard"
    entry = ("model.py", len(data), hashlib.sha256(data).hexdigest())
    assert host.missing_manifest(entry)
    with pytest.raises(EngineError, match="no file was begun"):
        host.append(data)
    host.begin_file(entry)
    host.append(data)
    host.finish_file()
    assert not host.missing_manifest(entry)
    kept = host.keep_model(entry[2], ".py")
    assert Path(kept).read_bytes() == data
    assert host.next_events() == []
    assert set(host.hello()) == {"cutset", "python", "pid"}
    host.close()
