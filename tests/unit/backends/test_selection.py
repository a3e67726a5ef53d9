from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cutset.backends import onnxruntime as onnxruntime_backend
from cutset.backends import openvino, selection
from cutset.backends.base import ModelBackend, rows_of
from cutset.backends.onnxruntime import OnnxruntimeBackend
from cutset.backends.selection import (
    GROUP,
    backend_names,
    broken_backends,
    check_backend_name,
    get_backend,
    load_stage,
    random_inputs,
)
from cutset.backends.torch_eager import EagerBackend
from cutset.bundles.open import Bundle, open_bundle
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.errors import EngineError
from cutset.tensors import TensorSpec
from distributed.bundles import SmallNet, small_net, write_bundle
from installed import install


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


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
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


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
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
    monkeypatch.setattr(selection, "_fastest", lambda *_: pytest.fail("nothing was to be tried"))
    planned = _naming(bundle, "onnxruntime")
    program = load_stage(planned, 0, backend="auto", num_threads=1, micro_batch=4)
    assert program.backend == "onnxruntime"


@pytest.mark.parametrize("fastest", ["torch", "onnxruntime"])
def test_auto_tries_them_where_the_plan_names_none(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, fastest: str
) -> None:
    monkeypatch.setattr(
        selection, "_median_time", lambda program, _: 0.1 if program.backend == fastest else 0.2
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
    monkeypatch.setattr(selection, "_median_time", lambda *_: 0.1)
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
        selection, "_median_time", lambda program, _: 0.1 if program.backend == "torch" else 0.2
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
    with pytest.raises(EngineError, match=r"stage 0: ONNX Runtime cannot load the model \(.*Relu6"):
        load_stage(changed, 0, backend="onnxruntime", num_threads=1, micro_batch=4)


def test_what_onnx_runtime_cannot_compute_is_one_of_our_errors(bundle: Bundle) -> None:
    program = load_stage(bundle, 0, backend="onnxruntime", num_threads=1, micro_batch=4)
    with pytest.raises(EngineError, match=r"ONNX Runtime cannot compute the stage: .*invalid dim"):
        program((np.zeros((2, 5, 16, 16), np.float32),))


_UNLOADABLE = "'odd' (entry points 'cutset.backends') of the package theirs cannot be loaded from"


class _Odd(ModelBackend):
    name = "odd"


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        (
            "torch",
            "onnx_reference_backend:ReferenceBackend",
            "Cutset brings a backend of that name",
        ),
        ("auto", "onnx_reference_backend:ReferenceBackend", "no such name can be: "),
        ("a,b", "onnx_reference_backend:ReferenceBackend", "no such name can be: "),
        (
            "other",
            "onnx_reference_backend:ReferenceBackend",
            "ReferenceBackend calls itself 'onnx-reference'",
        ),
        ("odd", "unit.backends.test_selection:_Odd", "_Odd does not implement load_model"),
        (
            "odd",
            "onnx_reference_backend:Arrays",
            "tuple[numpy.ndarray, ...] is no subclass of cutset.Mo",
        ),
        (
            "odd",
            "no_such_module_at_all:Backend",
            _UNLOADABLE,
        ),
        (
            "odd",
            "onnx_reference_backend:Nothing",
            _UNLOADABLE,
        ),
        (
            "odd",
            "unit.backends.leaves:Backend",
            _UNLOADABLE,
        ),
    ],
)
def test_a_broken_offer_is_told_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str, reason: str
) -> None:
    before = backend_names()
    monkeypatch.syspath_prepend(str(install(tmp_path, "theirs", GROUP, f"{name} = {target}")))
    (broken,) = broken_backends()
    assert broken.name == name
    assert broken.reason.startswith(reason)
    assert backend_names() == before
    assert type(get_backend("torch")) is EagerBackend
    if name not in (*before, "auto"):
        with pytest.raises(EngineError) as caught:
            get_backend(name)
        said = f"there is no backend {name!r} here (a package offers one: {reason}"
        assert str(caught.value).startswith(said)


def test_two_offers_of_one_name_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer = "onnx-reference = onnx_reference_backend:ReferenceBackend"
    monkeypatch.syspath_prepend(str(install(tmp_path / "a", "one", GROUP, offer)))
    assert backend_names()[-1] == "onnx-reference"
    monkeypatch.syspath_prepend(str(install(tmp_path / "b", "two", GROUP, offer)))
    (broken,) = broken_backends()
    assert "is of several packages: one and two; uninstall all of them but one" in broken.reason
    assert "onnx-reference" not in backend_names()


def test_a_plan_that_names_a_backend_that_nobody_has_is_run_with_another(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(selection, "_median_time", lambda *_: 0.1)
    planned = _naming(bundle, "tensorrt\x1b[2J")
    assert load_stage(planned, 0, backend="auto", num_threads=1, micro_batch=4).backend == "torch"
    assert r"not run with tensorrt\x1b[2J as planned: there is no backend" in caplog.text


def _pretend_providers(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = [f"{name}ExecutionProvider" for name in names]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: found)


def test_execution_providers_are_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_providers(monkeypatch, "CUDA", "XNNPACK", "Azure", "CPU")
    assert backend_names() == (
        "torch",
        "onnxruntime",
        "onnxruntime:CUDA",
        "onnxruntime:XNNPACK",
        "openvino",
        "torch-compiled",
    )
    assert get_backend("onnxruntime:XNNPACK").full_name == "onnxruntime:XNNPACK"
    assert check_backend_name("onnxruntime:XNNPACKExecutionProvider") == "onnxruntime:XNNPACK"
    for name in ("onnxruntime:ROCM", "onnxruntime:", "torch:CPU", "openvino:GPU", ":CUDA"):
        with pytest.raises(EngineError, match="choose one of auto, torch, onnxruntime, onnxrun"):
            check_backend_name(name)


@pytest.mark.parametrize("name", ["onnxruntime:CPU", "onnxruntime:CPUExecutionProvider"])
def test_the_processor_is_the_usual_provider(bundle: Bundle, name: str) -> None:
    assert check_backend_name(name) == "onnxruntime"
    program = load_stage(bundle, 0, backend=name, num_threads=1, micro_batch=4)
    assert program.backend == "onnxruntime"


def test_a_provider_gets_its_threads_and_computes_beside_the_processor(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretend_providers(monkeypatch, "XNNPACK", "CPU")
    asked: list[object] = []

    def pretended(model: str, options: object, *, providers: list[object]) -> object:
        asked.append(providers)
        session = real(model, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(session, "get_providers", lambda: ["XNNPACKExecutionProvider"])
        taken = SimpleNamespace(ep_name="XNNPACKExecutionProvider")
        monkeypatch.setattr(session, "get_provider_graph_assignment_info", lambda: [taken])
        return session

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", pretended)
    program = load_stage(bundle, 0, backend="onnxruntime:XNNPACK", num_threads=3, micro_batch=4)
    assert asked == [
        [("XNNPACKExecutionProvider", {"intra_op_num_threads": "3"}), "CPUExecutionProvider"]
    ]
    assert program.backend == "onnxruntime:XNNPACK"
    rows = random_inputs(bundle.manifest.stages[0], 2)
    monkeypatch.setattr(onnxruntime, "InferenceSession", real)
    usual = load_stage(bundle, 0, backend="onnxruntime", num_threads=1, micro_batch=4)
    assert np.array_equal(program(rows)[0], usual(rows)[0])


def test_a_provider_that_computes_nothing_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every build has this one, which asks a service elsewhere: it takes no operation of a model.
    monkeypatch.setattr(onnxruntime_backend, "_REMOTE", frozenset())
    if "Azure" not in OnnxruntimeBackend.variants():
        pytest.skip("this build of ONNX Runtime has no provider but the processor")
    with pytest.raises(EngineError, match=r"stage 0: .*provider Azure computes nothing of the mod"):
        load_stage(bundle, 0, backend="onnxruntime:Azure", num_threads=1, micro_batch=4)


def test_listing_backends_loads_none_of_their_libraries() -> None:
    code = (
        "import sys; from cutset.backends.selection import check_backend_name, get_backend;"
        "import cutset.bundles.open, cutset.bundles.allowance;"
        "names = ('torch', 'openvino', 'onnxruntime', 'torch-compiled');"
        "assert not any(get_backend(check_backend_name(n)).missing() for n in names[:3]);"
        "print([n for n in ('torch', 'openvino', 'onnxruntime', 'onnx') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("backend", "imported"), [("torch", ["torch"]), ("onnxruntime", ["onnxruntime"])]
)
def test_libraries_can_be_imported_before_a_stage_is_loaded(
    bundle: Bundle, backend: str, imported: list[str]
) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from cutset.backends.selection import import_libraries\n"
        "from cutset.bundles.open import open_bundle\n"
        "bundle = open_bundle(Path(sys.argv[1]))\n"
        "assert not {'torch', 'onnxruntime'} & sys.modules.keys()\n"
        "import_libraries(bundle, 1, backend=sys.argv[2])\n"
        "print(*({'torch', 'onnxruntime', 'openvino'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(bundle.directory), backend],
        check=True,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == imported
