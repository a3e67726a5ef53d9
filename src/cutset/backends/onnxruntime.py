"""The ``onnxruntime`` backend: the stage's ONNX model on ONNX Runtime's CPU provider.

Inputs and outputs are bound where they lie, so none is copied on the way in or out.
Its results differ from torch's in the last bits (other kernels, fused operations).
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

from cutset.bundles.open import load_onnx_model
from cutset.capture.onnx.inference import ELEMENT_TYPES, make_session
from cutset.dtypes import NUMPY_DTYPES, empty_array, row_major
from cutset.errors import EngineError

if TYPE_CHECKING:
    from cutset.backends.base import Arrays
    from cutset.bundles.manifest import StageEntry
    from cutset.bundles.open import Bundle
    from cutset.tensors import TensorSpec


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
            (name, spec, ELEMENT_TYPES[spec.dtype]) for name, spec in zip(names, specs, strict=True)
        )

    def __call__(self, inputs: Arrays) -> Arrays:
        """Computes the outputs into fresh arrays, whose shapes the contract gives.

        Raises:
            EngineError: ONNX Runtime cannot compute them, or gives an output of another shape than
                the contract's.
        """
        num_rows = rows_of(inputs, self._input_specs)
        binding = self._session.io_binding()
        held = [row_major(array) for array in inputs]  # alive until the run has ended
        for array, (name, _, element_type) in zip(held, self._inputs, strict=True):
            binding.bind_input(name, "cpu", 0, element_type, list(array.shape), array.ctypes.data)
        outputs = []
        for name, spec, element_type in self._outputs:
            shape = spec.concrete_shape(num_rows)
            output = empty_array(shape, NUMPY_DTYPES[spec.dtype])
            binding.bind_output(name, "cpu", 0, element_type, list(shape), output.ctypes.data)
            outputs.append(output)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            # onnxruntime's errors derive from Exception alone; its words say what did not fit.
            raise EngineError(f"ONNX Runtime cannot compute the stage: {error}") from error
        return tuple(outputs)


def rows_of(arrays: Arrays, specs: tuple[TensorSpec, ...]) -> int:
    """How many rows `arrays` hold, read from the first length that grows with the rows.

    Returns:
        The number of rows; 1 where no length grows with them.
    """
    for array, spec in zip(arrays, specs, strict=True):
        for length, dim in zip(array.shape, spec.shape, strict=True):
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
        EngineError: ONNX Runtime cannot load it, or the model's tensors are not those of the
            manifest.
    """
    entry = bundle.manifest.stages[stage]
    file = load_onnx_model(bundle, stage)
    try:
        session = make_session(str(file), num_threads)
    except Exception as error:
        # onnxruntime's errors derive from Exception alone.
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise EngineError(
            f"ONNX Runtime cannot load stage {stage} ({words[0]}); use another backend, or a device"
            " with more memory"
        ) from error
    return OnnxProgram(session, entry.inputs, entry.outputs)


def one_convolution() -> bytes:
    """An ONNX model of one small convolution, with zeros for weights; input ``x``, output ``y``."""
    import onnx  # an import that processes of the other backends do without

    weights = onnx.numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "weights")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "weights"], ["y"])],
        "one convolution",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 8, 6, 6])],
        [weights],
    )
    opset = onnx.helper.make_opsetid("", 17)
    content: bytes = onnx.helper.make_model(
        graph, opset_imports=[opset], ir_version=9
    ).SerializeToString()
    return content


def start() -> None:
    """Computes one small convolution."""
    session = make_session(one_convolution(), 1)
    session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})


def missing() -> str:
    """What this machine lacks for it; ``""`` if nothing."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed; pip install onnxruntime"
    return ""


def why_not(entry: StageEntry) -> str:
    """Why ONNX Runtime cannot run the stage here; ``""`` if it can."""
    if entry.model is None:
        return f"the bundle has no ONNX model for it ({entry.model_missing}); use --backend torch"
    otherwise = "; use --backend torch" if entry.program is not None else ""
    if missing():
        return missing()
    unknown = {spec.dtype for spec in (*entry.inputs, *entry.outputs)} - ELEMENT_TYPES.keys()
    if unknown:
        return f"it has no tensors of dtype {', '.join(sorted(unknown))}{otherwise}"
    return ""
