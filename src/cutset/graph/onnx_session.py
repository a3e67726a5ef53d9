"""Runs ONNX models in ONNX Runtime on torch tensors; every session of Cutset is made here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

ELEMENT_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "bfloat16": 16,
}
"""Numbers of onnx.TensorProto.DataType by torch's names of the dtypes that ONNX Runtime can take
and give, https://onnx.ai/onnx/api/classes.html#tensorproto"""

TENSOR_TYPES = {
    f"tensor({ {'float32': 'float', 'float64': 'double'}.get(dtype, dtype) })": dtype
    for dtype in ELEMENT_TYPES
}
"""torch's name of a dtype by ONNX Runtime's name for a tensor of it, ``"tensor(float)"``."""


def make_session(
    model: str | bytes, num_threads: int, *, folder: Path | None = None, optimised: bool = True
) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        model: path of a checked file, or the content of a model that this process made.
        num_threads: threads inside one operator; operators run one after the other.
        folder: where external tensors of a model given as content lie.
        optimised: whether operations may be fused; otherwise every one runs as it is written.
    """
    import onnxruntime  # an import of 0.2 s that not every process needs

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the core away from the neighbouring stage.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of where activations lie, made at the first runs, costs memory. Measured on the first
    # half of a VGG16 with 8 rows: 458 MiB with it and 275 MiB without, at the same speed; nor did
    # a MobileNetV2 and a ResNet18 become slower.
    options.enable_mem_pattern = False
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_session(
    session: Any, inputs: Mapping[str, torch.Tensor], outputs: Sequence[str] | None = None
) -> tuple[torch.Tensor, ...]:
    """Runs a session on tensors.

    Args:
        session: what `make_session` made.
        inputs: by name.
        outputs: names of what is wanted; all outputs if None.

    Returns:
        The outputs in the order of `outputs`.
    """
    feed = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
    names = None if outputs is None else list(outputs)
    return tuple(torch.from_numpy(result) for result in session.run(names, feed))
