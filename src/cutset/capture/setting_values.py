"""Which settings of torch are recorded with a captured model, as plain data.

They hold for a whole process and change what a model computes on a CPU; see
`cutset.capture.torch_settings`, which reads and sets them.
"""

from __future__ import annotations

from collections.abc import Mapping

_ON_OFF = ("off", "on")
_PRECISIONS = ("none", "ieee", "tf32", "bf16")

TORCH_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "default_dtype": ("float32", "float64", "float16", "bfloat16"),
    "deterministic_algorithms": ("off", "on", "warn"),
    "fill_uninitialized_memory": _ON_OFF,
    "flush_denormal": _ON_OFF,
    "float32_matmul_precision": ("highest", "high", "medium"),
    "onednn_matmul_precision": _PRECISIONS,
    "onednn_conv_precision": _PRECISIONS,
    "onednn_rnn_precision": _PRECISIONS,
    "onednn": _ON_OFF,
    "nnpack": _ON_OFF,
    "flash_sdp": _ON_OFF,
    "math_sdp": _ON_OFF,
    "mha_fastpath": _ON_OFF,
}
"""Every setting that is recorded, with the values that it may have."""
