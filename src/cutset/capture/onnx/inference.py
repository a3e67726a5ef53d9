"""Runs ONNX models in ONNX Runtime; every session of Cutset is made here."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cutset.dtypes import row_major
from cutset.processes import encodable

_LOG = logging.getLogger(__name__)

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

# https://onnxruntime.ai/docs/get-started/with-c.html, arena_extend_strategy
_SAME_AS_REQUESTED = 1


def make_session(
    model: str | bytes,
    num_threads: int,
    *,
    folder: Path | None = None,
    optimised: bool = True,
    provider: str = "",
    provider_options: Mapping[str, str] | None = None,
) -> Any:
    """An ONNX Runtime session.

    Args:
        model: path of a checked file, or the content of a model that this process made.
        num_threads: threads inside one operator; operators run one after the other.
        folder: where external tensors of a model given as content lie.
        optimised: whether operations may be fused; otherwise every one runs as it is written.
        provider: the execution provider that computes what it can, in ONNX Runtime's words; the CPU
            computes all where it is empty.
        provider_options: for that provider.
    """
    import onnxruntime  # an import of 0.2 s that not every process needs

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # What it cannot run it raises; nothing of its own goes to the terminal before that is told.
    options.log_severity_level = 4
    # Threads that spin while they wait would take the core away from the neighbouring stage.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of where activations lie, made at the first runs, costs memory, and so does an arena
    # that doubles whenever it grows. Measured on the first half of a VGG16 with 8 rows, whose
    # activations need 196 MiB: 457 MiB with both, 278 to 375 MiB without the plan, 227 MiB with
    # neither, at the same speed; nor did a MobileNetV2, a ResNet18 and a ResNet50 become slower.
    options.enable_mem_pattern = False
    _grow_as_requested()
    options.add_session_config_entry("session.use_env_allocators", "1")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    providers: list[Any] = ["CPUExecutionProvider"]
    if provider:
        # Which operations it computes is looked at afterwards, where ONNX Runtime can tell.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers.insert(0, (provider, dict(provider_options or {})))
    with contextlib.ExitStack() as names:
        if folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path",
                names.enter_context(_in_utf8(folder)),
            )
        if isinstance(model, str):
            parent, name = os.path.split(model)
            model = os.path.join(names.enter_context(_in_utf8(Path(parent))), name)  # noqa: PTH118
        return onnxruntime.InferenceSession(model, options, providers=providers)


@contextlib.contextmanager
def _in_utf8(folder: Path) -> Iterator[str]:
    """A folder's name for ONNX Runtime, which takes none that is no UTF-8; Linux has another."""
    if encodable(str(folder)) == str(folder):
        yield str(folder)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@functools.cache
def _grow_as_requested() -> None:
    """Makes the arena of this process, from which its sessions that ask for it take memory.

    Once: ONNX Runtime keeps it for the process's life. One that someone else has registered is used
    as it is, which costs memory at most.
    """
    import onnxruntime

    kind = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    as_requested = onnxruntime.OrtArenaCfg({"arena_extend_strategy": _SAME_AS_REQUESTED})
    try:
        onnxruntime.create_and_register_allocator(kind, as_requested)
    except RuntimeError as error:  # of versions that refuse a second one; later ones do not
        _LOG.info("ONNX Runtime's arena stays as it is: %s", error)


def run_session(
    session: Any, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
) -> tuple[np.ndarray, ...]:
    """Runs a session.

    Args:
        session: what `make_session` made.
        inputs: by name.
        outputs: names of what is wanted; all outputs if None.

    Returns:
        The outputs in the order of `outputs`.
    """
    names = None if outputs is None else list(outputs)
    feed = {name: row_major(array) for name, array in inputs.items()}
    return tuple(session.run(names, feed))
