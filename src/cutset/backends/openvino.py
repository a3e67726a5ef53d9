"""The ``openvino`` backend: the stage's ONNX model in OpenVINO's CPU plugin (an extra).

It reads the same file as the ``onnxruntime`` backend, after the same checks. Inputs and outputs are
used where they lie. It computes in the precision of the model, also on processors that would be
faster with bfloat16; results differ from torch's in the last bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cutset.backends.allocator import give_back_mapping
from cutset.backends.base import Computation, ModelBackend, Specs, rows_of
from cutset.dtypes import NUMPY_DTYPES, Arrays, empty_array, row_major
from cutset.errors import EngineError

if TYPE_CHECKING:
    from cutset.bundles.open import Bundle


class OpenvinoBackend(ModelBackend):
    """OpenVINO on the CPU."""

    name = "openvino"
    needs: ClassVar = {"openvino": "'cutset[openvino]'"}
    # What both NumPy and OpenVINO can hold.
    dtypes = frozenset(
        {"float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "bool"}
    )

    def load(
        self, bundle: Bundle, stage: int, *, num_threads: int, micro_batch: int
    ) -> Computation:
        """Loads the stage's ``model.onnx`` and runs it once, on one row.

        At its first run OpenVINO packs the weights into memory of its own, and keeps the file
        mapped: without more, a stage would hold its weights twice.

        Raises:
            BundleError: the file is missing, changed or unsafe.
            EngineError: OpenVINO cannot run it.
        """
        compute = super().load(bundle, stage, num_threads=num_threads, micro_batch=micro_batch)
        entry = bundle.manifest.stages[stage]
        zeros = [
            np.zeros(spec.concrete_shape(1), NUMPY_DTYPES[spec.dtype]) for spec in entry.inputs
        ]
        try:
            compute(tuple(zeros))
        except RuntimeError as error:
            raise _cannot_run(error) from error
        file = bundle.path(entry.model or "")
        give_back_mapping(file.with_name(f"{file.name}.data").resolve())
        return compute

    def load_model(
        self,
        model: Path | bytes,
        inputs: Specs,
        outputs: Specs,
        *,
        num_threads: int,
        folder: Path | None = None,  # noqa: ARG002  # such a model holds its tensors itself
    ) -> Computation:
        """Compiles a model for the CPU.

        Raises:
            EngineError: OpenVINO cannot read or run it, with its words; or it has another number of
                tensors than the contracts.
        """
        return _Request(compile_model(model, num_threads), inputs, outputs)


class _Request:
    """A compiled model whose inputs and outputs lie in arrays."""

    def __init__(self, compiled: Any, inputs: Specs, outputs: Specs) -> None:
        import openvino

        counts = (len(compiled.inputs), len(compiled.outputs))
        if counts != (len(inputs), len(outputs)):
            raise EngineError(
                f"the ONNX model has {counts[0]} inputs and {counts[1]} outputs in OpenVINO, where"
                f" the manifest promises {len(inputs)} and {len(outputs)}; export the bundle again"
            )
        self._tensor = openvino.Tensor
        self._request = compiled.create_infer_request()
        self._inputs = inputs
        self._outputs = outputs

    def __call__(self, inputs: Arrays) -> Arrays:
        """Computes the outputs into fresh arrays, whose shapes the contract gives."""
        num_rows = rows_of(inputs, self._inputs)
        held = [row_major(array) for array in inputs]  # alive until the run has ended
        for index, array in enumerate(held):
            self._request.set_input_tensor(index, self._tensor(array, shared_memory=True))
        outputs = tuple(
            empty_array(spec.concrete_shape(num_rows), NUMPY_DTYPES[spec.dtype])
            for spec in self._outputs
        )
        for index, output in enumerate(outputs):
            shared = self._tensor(output, shared_memory=True)
            self._request.set_output_tensor(index, shared)
        self._request.infer()
        return outputs


def compile_model(model: Path | bytes, num_threads: int) -> Any:
    """Compiles an ONNX model for the CPU.

    Args:
        model: a checked file, or the content of a model that this process made.
        num_threads: threads that compute.

    Raises:
        EngineError: OpenVINO cannot read or run it; with its words.
    """
    import openvino  # an import of half a second that few processes need

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # Otherwise it takes bfloat16, with three digits, on processors that have it.
        "INFERENCE_PRECISION_HINT": "f32",
        # Pinned threads of two processes would share one core and leave the other idle.
        "ENABLE_CPU_PINNING": False,
    }
    try:
        return core.compile_model(core.read_model(model), "CPU", options)
    except RuntimeError as error:
        raise _cannot_run(error) from error


def _cannot_run(error: RuntimeError) -> EngineError:
    words = str(error).strip().splitlines()
    return EngineError(
        f"OpenVINO cannot run the model ({words[-1] if words else 'it does not say why'});"
        " use another backend"
    )
