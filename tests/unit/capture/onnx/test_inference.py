from __future__ import annotations

import logging

import numpy as np
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
