"""What the caller has set in torch goes with a bundle: a fresh process gives the same bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from checked_here import check_here
from cutset.bundles.open import open_bundle
from cutset.bundles.proof.verify import verify_bundle
from cutset.bundles.reading.torch.loading import load_program
from cutset.capture.setting_values import TORCH_SETTINGS
from cutset.capture.torch_export import capture_model
from cutset.capture.torch_settings import apply_settings, current_settings, using_settings
from cutset.runtime.session import open_session
from distributed.bundles import write_bundle


class Sensitive(nn.Module):
    """Its numbers hang on the default dtype, on the kernels of attention, on denormals."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16, dtype=torch.float32)
        self.conv = nn.Conv1d(4, 4, 3, padding=1, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(16, device=x.device) / 7
        x = functional.gelu(self.first(x) * places.sin().to(x.dtype))
        x = functional.scaled_dot_product_attention(x, x, x)
        return self.conv(x) + (places * 1e-3).sum().to(x.dtype) * 1e-38 / 7


def made(tmp_path: Path) -> tuple[Sensitive, Tensor, Path]:
    torch.manual_seed(0)
    model, rows = Sensitive().eval(), torch.randn(2, 4, 16, dtype=torch.float32)
    operations = capture_model(model, (rows,)).graph.operations
    place = next(i for i, op in enumerate(operations) if op.base_name == "gelu")
    bundle = write_bundle(model, (rows,), (place + 1,), tmp_path / "b.cutset", micro_batch=2)
    return model, rows, bundle


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = current_settings()
    yield
    apply_settings(before)


@pytest.mark.parametrize(
    "settings",
    [
        {"default_dtype": "float64", "flush_denormal": "on"},
        {"float32_matmul_precision": "medium", "onednn": "off", "deterministic_algorithms": "warn"},
        {"flash_sdp": "off", "onednn_conv_precision": "bf16", "fill_uninitialized_memory": "off"},
    ],
)
def test_a_fresh_process_agrees(tmp_path: Path, settings: dict[str, str]) -> None:
    apply_settings(settings)
    model, _rows, bundle = made(tmp_path)
    recorded = open_bundle(bundle).manifest.torch_settings
    assert recorded is not None
    assert settings.items() <= recorded.items()
    report = verify_bundle(bundle, model=model, backends=())
    assert report.ok, report.checks
    assert report.bit_exact
    # The proof is not the caller's: it holds when the caller has changed its mind.
    apply_settings({"default_dtype": "float32", "flash_sdp": "on", "onednn": "on"})
    assert verify_bundle(bundle, model=model, backends=()).ok


def test_workers_take_the_settings(tmp_path: Path) -> None:
    apply_settings({"default_dtype": "float64"})
    model, rows, bundle = made(tmp_path)
    with torch.inference_mode():
        expected = model(rows)
    apply_settings({"default_dtype": "float32"})
    with open_session(bundle, backend="torch") as session:
        assert torch.equal(torch.as_tensor(session.run(rows)), expected)


@pytest.mark.parametrize(
    "mode",
    [
        torch.autocast("cpu", dtype=torch.bfloat16),
        torch.inference_mode(),
        torch.no_grad(),
        torch.enable_grad(),
    ],
    ids=["autocast", "inference_mode", "no_grad", "enable_grad"],
)
def test_modes_of_the_caller_are_put_aside(
    tmp_path: Path, mode: contextlib.AbstractContextManager[None]
) -> None:
    torch.manual_seed(0)
    model, rows = Sensitive().eval(), torch.randn(2, 4, 16, dtype=torch.float32)
    with torch.no_grad():
        expected = model(rows)
    with mode:
        bundle = write_bundle(model, (rows,), (), tmp_path / "b.cutset")

    assert check_here(bundle, backends=()).ok
    assert torch.equal(load_program(open_bundle(bundle), 0)((rows,))[0], expected)


def test_another_default_device_is_put_aside(tmp_path: Path) -> None:
    torch.set_default_device("meta")
    try:
        with torch.device("cpu"):
            model, rows = Sensitive().eval(), torch.randn(2, 4, 16, dtype=torch.float32)
        bundle = write_bundle(model, (rows,), (), tmp_path / "b.cutset")
    finally:
        torch.set_default_device(None)

    assert check_here(bundle, model=model, backends=()).ok


@pytest.mark.parametrize("name", sorted(TORCH_SETTINGS))
def test_every_setting_is_set_and_restored(name: str) -> None:
    before = current_settings()
    for value in TORCH_SETTINGS[name]:
        with using_settings({name: value}):
            if current_settings().get(name) != value:
                pytest.skip(f"{value} cannot be had on this processor")
        assert current_settings() == before
