from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from cutset.backends.base import one_convolution
from cutset.capture.onnx import inference
from cutset.capture.onnx.inference import make_session, run_session


def test_an_arena_that_someone_else_registered_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("An allocator for this device has already been registered")

    monkeypatch.setattr(onnxruntime, "create_and_register_allocator", refuse)
    inference._grow_as_requested.cache_clear()
    with caplog.at_level(logging.INFO, logger=inference.__name__):
        session = make_session(one_convolution(), 1)
    inference._grow_as_requested.cache_clear()
    assert "already been registered" in caplog.text
    (result,) = run_session(session, {"x": np.ones((1, 3, 8, 8), np.float32)})
    assert np.array_equal(result, np.zeros((1, 8, 6, 6)))


def test_sessions_of_one_process_ask_for_its_arena_and_do_not_disturb_each_other() -> None:
    first, second = (make_session(one_convolution(), 1) for _ in range(2))
    for session in (first, second):
        entry = session.get_session_options().get_session_config_entry("session.use_env_allocators")
        assert entry == "1"
    for session in (first, second, first):
        (result,) = run_session(session, {"x": np.ones((1, 3, 8, 8), np.float32)})
        assert np.array_equal(result, np.zeros((1, 8, 6, 6)))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems name files in Unicode only")
@pytest.mark.parametrize("stored", ["inside", "beside", "beside a model in memory"])
def test_the_name_of_a_folder_need_not_be_text(tmp_path: Path, stored: str) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    weights = onnx.numpy_helper.from_array(np.arange(500, dtype=np.float32), "w")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [500]) for name in ("x", "y")]
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([add], "sum", ends[:1], ends[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    model.ir_version = 10
    made = tmp_path / "made"
    made.mkdir()
    onnx.save(model, made / "model.onnx", save_as_external_data=stored != "inside", location="w")
    assert (made / "w").exists() == (stored != "inside")
    made.rename(folder)
    if stored == "beside a model in memory":
        session = make_session((folder / "model.onnx").read_bytes(), 1, folder=folder)
    else:
        session = make_session(str(folder / "model.onnx"), 1)
    (result,) = run_session(session, {"x": np.ones(500, np.float32)})
    assert np.array_equal(result, np.arange(1, 501))
