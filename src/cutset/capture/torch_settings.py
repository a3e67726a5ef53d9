"""Settings of torch that hold for a whole process and change what a model computes on a CPU.

Where a model is captured they are the caller's. A bundle records them, and whoever runs its
programs, a worker or the process that verifies, sets them first. What else a process can set is
not recorded: it is put aside while a model is captured and run (`plain_modes`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class _Setting:
    """One setting: how it is read and set; reading gives None where it cannot."""

    read: Callable[[], str | None]
    write: Callable[[str], object]


def _switch(read: Callable[[], bool], write: Callable[[bool], object]) -> _Setting:
    return _Setting(lambda: "on" if read() else "off", lambda value: write(value == "on"))


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # some of it was set by the newer calls, which are read one by one
        return None


def _onednn_precision(operator: str) -> _Setting:
    where = getattr(torch.backends.mkldnn, operator)
    return _Setting(
        lambda: str(where.fp32_precision),
        lambda value: setattr(where, "fp32_precision", value),
    )


def _determinism() -> str:
    if not torch.are_deterministic_algorithms_enabled():
        return "off"
    return "warn" if torch.is_deterministic_algorithms_warn_only_enabled() else "on"


def _set_determinism(value: str) -> None:
    torch.use_deterministic_algorithms(value != "off", warn_only=value == "warn")


def _flushes_denormals() -> bool:
    """There is no call that says it; a number that only a denormal can hold does."""
    return float(torch.tensor([1e-310], dtype=torch.float64, device="cpu") * 1.0) == 0.0


# In the order of `cutset.capture.setting_values.TORCH_SETTINGS`, which has their values.
_SETTINGS: dict[str, _Setting] = {
    "default_dtype": _Setting(
        lambda: str(torch.get_default_dtype()).removeprefix("torch."),
        lambda value: torch.set_default_dtype(getattr(torch, value)),
    ),
    "deterministic_algorithms": _Setting(_determinism, _set_determinism),
    "fill_uninitialized_memory": _switch(
        torch._C._get_deterministic_fill_uninitialized_memory,
        torch._C._set_deterministic_fill_uninitialized_memory,
    ),
    "flush_denormal": _switch(_flushes_denormals, torch.set_flush_denormal),
    # Sets the precisions of oneDNN with it, so it comes before them.
    "float32_matmul_precision": _Setting(_matmul_precision, torch.set_float32_matmul_precision),
    "onednn_matmul_precision": _onednn_precision("matmul"),
    "onednn_conv_precision": _onednn_precision("conv"),
    "onednn_rnn_precision": _onednn_precision("rnn"),
    "onednn": _switch(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    "nnpack": _switch(torch._C._get_nnpack_enabled, torch._C._set_nnpack_enabled),
    "flash_sdp": _switch(
        torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp
    ),
    "math_sdp": _switch(torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    "mha_fastpath": _switch(
        torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled
    ),
}


def current_settings() -> dict[str, str]:
    """The settings of this process; without those that cannot be read."""
    found = {name: setting.read() for name, setting in _SETTINGS.items()}
    return {name: value for name, value in found.items() if value is not None}


def apply_settings(settings: Mapping[str, str] | None) -> None:
    """Sets what differs.

    Args:
        settings: as `current_settings` gives them, with names and values of
            `cutset.capture.setting_values.TORCH_SETTINGS`.
    """
    for name, setting in _SETTINGS.items():
        wanted = (settings or {}).get(name)
        if wanted is not None and setting.read() != wanted:
            setting.write(wanted)


@contextlib.contextmanager
def using_settings(settings: Mapping[str, str] | None) -> Iterator[None]:
    """Within the block this process computes with `settings`, and in `plain_modes`."""
    before = current_settings()
    try:
        apply_settings(settings)
        with plain_modes():
            yield
    finally:
        apply_settings(before)


@contextlib.contextmanager
def plain_modes() -> Iterator[None]:
    """Puts aside what a caller's code may be in: autocast, inference mode, another default device.

    A model is captured, and run for the reference, as it is called outside of them.
    """
    with contextlib.ExitStack() as stack:
        if torch.is_autocast_enabled("cpu"):
            stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextlib.contextmanager
def computing_as(settings: Mapping[str, str] | None, num_threads: int) -> Iterator[None]:
    """The same with `num_threads` threads; afterwards torch computes with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        with using_settings(settings):
            yield
    finally:
        torch.set_num_threads(before)
