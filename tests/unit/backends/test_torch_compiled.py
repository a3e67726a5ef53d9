from __future__ import annotations

import pytest
import torch

from cutset.backends.torch_compiled import CompiledBackend
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.errors import EngineError

_COMPILED = CompiledBackend()


@pytest.fixture(autouse=True)
def _fresh(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))


def _layer(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (torch.relu(rows * 2 - 1), rows.sum(1))


@pytest.mark.soak  # the compiler's first run on a machine takes half a minute
@pytest.mark.skipif(bool(_COMPILED.missing()), reason=_COMPILED.missing())
def test_a_compiled_stage_is_close_and_other_sizes_are_eager() -> None:
    program = _COMPILED.load_module(_layer, (torch.zeros(4, 6),))
    with torch.inference_mode():
        inference = torch.randn(4, 6)
    for rows in (torch.randn(4, 6), torch.randn(6, 4).T, inference):
        for actual, expected in zip(program((as_array(rows),)), _layer(rows), strict=True):
            torch.testing.assert_close(as_tensor(actual), expected)
    assert torch.compiler.is_compiling() is False
    few = torch.randn(3, 6)
    given = zip(program((as_array(few),)), _layer(few), strict=True)
    assert all(torch.equal(as_tensor(array), expected) for array, expected in given)


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match="needs a C\\+\\+ compiler"):
        _COMPILED.load_module(_layer, (torch.zeros(4, 6),))


def test_what_cannot_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("unsupported\nmany lines")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(CompiledBackend, "missing", lambda _: "")
    with pytest.raises(EngineError, match=r"cannot be compiled \(unsupported\)"):
        _COMPILED.load_module(_layer, (torch.zeros(4, 6),))
