from __future__ import annotations

import shutil
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch

from cutset.backends import base, openvino
from cutset.backends.base import QUICK_BACKENDS, load_stage, random_inputs
from cutset.backends.onnxruntime import rows_of
from cutset.bundles.open import Bundle, open_bundle
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.errors import EngineError
from cutset.tensors import TensorSpec
from distributed.bundles import SmallNet, small_net, write_bundle


@pytest.fixture(scope="module")
def model() -> SmallNet:
    torch.set_num_threads(1)
    return small_net()


@pytest.fixture(scope="module")
def bundle(model: SmallNet, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "small.cutset"
    return open_bundle(write_bundle(model, (torch.randn(2, 3, 16, 16),), (3,), folder))


def _chain(bundle: Bundle, backend: str, rows: torch.Tensor) -> torch.Tensor:
    arrays = (as_array(rows),)
    for stage in range(2):
        program = load_stage(bundle, stage, backend=backend, num_threads=1, micro_batch=4)
        assert backend in (program.backend, "auto")
        arrays = program(arrays)
    return as_tensor(arrays[0])


def _naming(bundle: Bundle, backend: str) -> Bundle:
    """The bundle with `backend` in its plan, for every stage."""
    plan = bundle.manifest.plan
    stages = tuple(msgspec.structs.replace(stage, backend=backend) for stage in plan.stages)
    manifest = msgspec.structs.replace(
        bundle.manifest, plan=msgspec.structs.replace(plan, stages=stages)
    )
    return Bundle(directory=bundle.directory, manifest=manifest, stages=bundle.stages)


def test_the_torch_backend_is_bit_for_bit_the_model(bundle: Bundle, model: SmallNet) -> None:
    rows = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(_chain(bundle, "torch", rows), model(rows))


@pytest.mark.parametrize("num_rows", [1, 2, 7])
def test_onnxruntime_is_close_for_any_number_of_rows(
    bundle: Bundle, model: SmallNet, num_rows: int
) -> None:
    rows = torch.randn(num_rows, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(
            _chain(bundle, "onnxruntime", rows), model(rows), rtol=1e-5, atol=1e-5
        )


def test_onnxruntime_takes_rows_in_any_memory_format(bundle: Bundle) -> None:
    rows = torch.randn(2, 3, 16, 16)
    permuted = rows.contiguous(memory_format=torch.channels_last)
    assert torch.equal(_chain(bundle, "onnxruntime", permuted), _chain(bundle, "onnxruntime", rows))


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_outputs_are_fresh_memory_at_every_call(bundle: Bundle, backend: str) -> None:
    program = load_stage(bundle, 0, backend=backend, num_threads=1, micro_batch=4)
    rows = np.random.default_rng(1).standard_normal((2, 3, 16, 16), np.float32)
    results = [program((array,))[0] for array in (rows, -rows, rows)]
    first = results[0].copy(order="K")
    assert not np.shares_memory(results[0], results[1])
    assert not np.shares_memory(results[0], results[2])
    assert np.array_equal(results[0], first)
    assert np.array_equal(results[2], first)
    assert not np.array_equal(results[1], first)


@pytest.mark.parametrize("backend", QUICK_BACKENDS)
def test_rows_are_never_changed_and_may_lie_anywhere(bundle: Bundle, backend: str) -> None:
    program = load_stage(bundle, 0, backend=backend, num_threads=1, micro_batch=4)
    rows = np.random.default_rng(1).standard_normal((2, 3, 16, 16), np.float32)
    expected = program((rows,))[0].copy()
    backwards = rows[:, ::-1].copy()[:, ::-1]
    read_only = rows.copy()
    read_only.flags.writeable = False
    odd = np.frombuffer(bytearray(rows.nbytes + 1), np.uint8)[1:].view(np.float32)
    odd = odd.reshape(rows.shape)
    odd[...] = rows
    for array in (backwards, read_only, odd):
        assert np.array_equal(program((array,))[0], expected)
        assert np.array_equal(array, rows)


def test_auto_follows_the_plan(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_fastest", lambda *_: pytest.fail("nothing was to be tried"))
    planned = _naming(bundle, "onnxruntime")
    program = load_stage(planned, 0, backend="auto", num_threads=1, micro_batch=4)
    assert program.backend == "onnxruntime"


@pytest.mark.parametrize("fastest", ["torch", "onnxruntime"])
def test_auto_tries_them_where_the_plan_names_none(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, fastest: str
) -> None:
    monkeypatch.setattr(
        base, "_median_time", lambda program, _: 0.1 if program.backend == fastest else 0.2
    )
    program = load_stage(bundle, 0, backend="auto", num_threads=1, micro_batch=4)
    assert program.backend == fastest


def test_a_stage_without_an_onnx_model_says_so(bundle: Bundle) -> None:
    entries = tuple(
        msgspec.structs.replace(entry, model=None, model_missing="aten.odd has no ONNX form")
        for entry in bundle.manifest.stages
    )
    manifest = msgspec.structs.replace(bundle.manifest, stages=entries)
    without = Bundle(directory=bundle.directory, manifest=manifest, stages=bundle.stages)
    with pytest.raises(EngineError, match=r"aten\.odd has no ONNX form\); use --backend torch"):
        load_stage(without, 0, backend="onnxruntime", num_threads=1, micro_batch=4)
    assert load_stage(without, 0, backend="auto", num_threads=1, micro_batch=4).backend == "torch"


def test_an_unknown_backend_lists_the_known_ones(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="choose one of auto, torch, onnxruntime"):
        load_stage(bundle, 0, backend="tensorrt", num_threads=1, micro_batch=4)


def test_random_inputs_follow_the_contract(bundle: Bundle) -> None:
    (rows,) = random_inputs(bundle.manifest.stages[0], 5)
    assert rows.shape == (5, 3, 16, 16)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, random_inputs(bundle.manifest.stages[0], 5)[0])


def test_rows_are_read_from_the_first_length_that_grows() -> None:
    table = TensorSpec(name="t", shape=(5,), dtype="float32")
    pairs = TensorSpec(name="p", shape=(2, "batch*3"), dtype="float32")
    assert rows_of((np.zeros(5), np.zeros((2, 12))), (table, pairs)) == 4
    assert rows_of((np.zeros(5),), (table,)) == 1


@pytest.mark.parametrize("num_rows", [1, 4, 7])
def test_openvino_is_close_for_any_number_of_rows(
    bundle: Bundle, model: SmallNet, num_rows: int
) -> None:
    rows = torch.randn(num_rows, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(
            _chain(bundle, "openvino", rows), model(rows), rtol=1e-5, atol=1e-5
        )


def test_a_missing_backend_is_told_with_a_hint(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"openvino is not installed; pip install 'cutset\[open"):
        load_stage(bundle, 0, backend="openvino", num_threads=1, micro_batch=4)
    monkeypatch.setattr(base, "_median_time", lambda *_: 0.1)
    program = load_stage(
        _naming(bundle, "openvino"), 0, backend="auto", num_threads=1, micro_batch=4
    )
    assert program.backend == "torch"
    assert "not run with openvino as planned: openvino is not installed" in caplog.text


def test_auto_goes_on_without_a_backend_that_cannot_load(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise EngineError("no such operation")

    monkeypatch.setattr(openvino, "compile_model", refuse)
    monkeypatch.setattr(
        base, "_median_time", lambda program, _: 0.1 if program.backend == "torch" else 0.2
    )
    program = load_stage(bundle, 0, backend="auto", num_threads=1, micro_batch=4)
    assert program.backend == "torch"
    assert "backend openvino not tried: no such operation" in caplog.text


def test_what_onnx_runtime_cannot_load_is_said(bundle: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle.directory, tmp_path / "copy"))
    model = onnx.load(copy / "stage-0/model.onnx")
    model.graph.node[0].op_type = "Relu6"  # ONNX has none
    onnx.save(model, copy / "stage-0/model.onnx")
    changed = Bundle(directory=copy, manifest=bundle.manifest, stages=bundle.stages)
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot load stage 0 \(.*Relu6"):
        load_stage(changed, 0, backend="onnxruntime", num_threads=1, micro_batch=4)


def test_what_onnx_runtime_cannot_compute_is_one_of_our_errors(bundle: Bundle) -> None:
    program = load_stage(bundle, 0, backend="onnxruntime", num_threads=1, micro_batch=4)
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot compute the stage: .*invalid dim"):
        program((np.zeros((2, 5, 16, 16), np.float32),))
