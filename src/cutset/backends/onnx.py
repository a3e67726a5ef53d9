"""The ``onnxruntime`` backend: the stage's ONNX model on ONNX Runtime's CPU provider.

Inputs and outputs are bound where torch keeps them, so no tensor is copied on the way in or out.
Its results differ from torch's in the last bits (other kernels, fused operations).
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import torch

from cutset.errors import EngineError
from cutset.shards.load import load_onnx_model

if TYPE_CHECKING:
    from cutset.shards.load import Bundle
    from cutset.shards.manifest import StageEntry
    from cutset.tensors import TensorSpec

# Numbers of onnx.TensorProto.DataType, https://onnx.ai/onnx/api/classes.html#tensorproto
_ELEMENT_TYPES = {
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


class OnnxProgram:
    """A stage in ONNX Runtime; see `cutset.backends.base.StageProgram`."""

    backend = "onnxruntime"

    def __init__(
        self, session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self._session = session
        self._inputs = self._pair([node.name for node in session.get_inputs()], inputs)
        self._outputs = self._pair([node.name for node in session.get_outputs()], outputs)
        self._input_specs = inputs

    def _pair(
        self, names: list[str], specs: tuple[TensorSpec, ...]
    ) -> tuple[tuple[str, TensorSpec, int], ...]:
        if len(names) != len(specs):
            raise EngineError(
                f"the ONNX model has {len(names)} tensors ({', '.join(names)}) where the manifest"
                f" promises {len(specs)} ({', '.join(spec.name for spec in specs)}); export the"
                " bundle again"
            )
        return tuple(
            (name, spec, _ELEMENT_TYPES[spec.dtype])
            for name, spec in zip(names, specs, strict=True)
        )

    def __call__(self, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Computes the outputs into fresh tensors, whose shapes the contract gives.

        Raises:
            EngineError: ONNX Runtime gives an output of another shape than the contract's.
        """
        num_rows = rows_of(inputs, self._input_specs)
        binding = self._session.io_binding()
        held = [tensor.contiguous() for tensor in inputs]  # alive until the run has ended
        for tensor, (name, _, element_type) in zip(held, self._inputs, strict=True):
            binding.bind_input(name, "cpu", 0, element_type, list(tensor.shape), tensor.data_ptr())
        outputs = []
        for name, spec, element_type in self._outputs:
            shape = spec.concrete_shape(num_rows)
            output = torch.empty(shape, dtype=getattr(torch, spec.dtype))
            binding.bind_output(name, "cpu", 0, element_type, list(shape), output.data_ptr())
            outputs.append(output)
        self._session.run_with_iobinding(binding)
        return tuple(outputs)


def rows_of(tensors: tuple[torch.Tensor, ...], specs: tuple[TensorSpec, ...]) -> int:
    """How many rows `tensors` hold, read from the first length that grows with the rows.

    Returns:
        The number of rows; 1 where no length grows with them.
    """
    for tensor, spec in zip(tensors, specs, strict=True):
        for length, dim in zip(tensor.shape, spec.shape, strict=True):
            if isinstance(dim, str):
                return int(length) // int(dim.partition("*")[2] or 1)
    return 1


def load(bundle: Bundle, stage: int, *, num_threads: int, micro_batch: int) -> OnnxProgram:  # noqa: ARG001
    """Loads the stage's ``model.onnx``.

    Args:
        bundle: opened and checked.
        stage: index of the stage.
        num_threads: threads inside one operator; operators run one after the other.
        micro_batch: not needed here.

    Raises:
        BundleError: the file is missing, changed or unsafe.
        EngineError: the model's tensors are not those of the manifest.
    """
    entry = bundle.manifest.stages[stage]
    session = make_session(str(load_onnx_model(bundle, stage)), num_threads)
    return OnnxProgram(session, entry.inputs, entry.outputs)


def make_session(model: str | bytes, num_threads: int) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        model: path of a checked file, or the content of a model that this process made.
        num_threads: threads inside one operator; operators run one after the other.
    """
    import onnxruntime  # an import of 0.2 s that only this backend needs

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the core away from the neighbouring stage.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def why_not(entry: StageEntry) -> str:
    """Why ONNX Runtime cannot run the stage here; ``""`` if it can."""
    if entry.model is None:
        return f"the bundle has no ONNX model for it ({entry.model_missing}); use --backend torch"
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; pip install onnxruntime"
    unknown = {spec.dtype for spec in (*entry.inputs, *entry.outputs)} - _ELEMENT_TYPES.keys()
    if unknown:
        return f"it has no tensors of dtype {', '.join(sorted(unknown))}; use --backend torch"
    return ""
