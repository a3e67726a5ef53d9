"""The ``onnxruntime`` backend: the stage's ONNX model in ONNX Runtime.

Inputs and outputs are bound where they lie, so none is copied on the way in or out. Its results
differ from torch's in the last bits (other kernels, fused operations).

``onnxruntime`` computes on the CPU with ONNX Runtime's own kernels. What else an installed build
has (execution providers: CUDA, XNNPACK, OpenVINO, ...) are variants, ``onnxruntime:XNNPACK``. An
operation that a provider does not have, ONNX Runtime's own kernels compute; where it would have
none, the variant cannot run the stage.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, ClassVar

from cutset.backends.base import Computation, ModelBackend, Specs, rows_of
from cutset.capture.onnx.inference import ELEMENT_TYPES, make_session
from cutset.dtypes import NUMPY_DTYPES, Arrays, empty_array, row_major
from cutset.errors import EngineError
from cutset.printable import first_line

_SUFFIX = "ExecutionProvider"
_CPU = "CPU"
_REMOTE = frozenset({"Azure"})
"""Providers that compute nothing here: they ask a service elsewhere, where a model says so."""

_OWN_THREADS = {"XNNPACK": "intra_op_num_threads", "OpenVINO": "num_of_threads"}
"""Providers that have threads of their own, and how these are counted;
https://onnxruntime.ai/docs/execution-providers/"""


class OnnxruntimeBackend(ModelBackend):
    """ONNX Runtime, with one of its execution providers."""

    name = "onnxruntime"
    needs: ClassVar = {"onnxruntime": "onnxruntime"}
    dtypes = frozenset(ELEMENT_TYPES)
    reads_folder = True

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        """The execution providers of the installed build, but for the CPU's."""
        if importlib.util.find_spec("onnxruntime") is None:
            return ()
        import onnxruntime

        names = map(cls.short_name, onnxruntime.get_available_providers())
        return tuple(name for name in names if name and name not in _REMOTE)

    @classmethod
    def short_name(cls, variant: str) -> str:
        """``"XNNPACK"`` for that and for ``"XNNPACKExecutionProvider"``."""
        name = variant.removesuffix(_SUFFIX)
        return "" if name == _CPU else name

    def load_model(
        self,
        model: Path | bytes,
        inputs: Specs,
        outputs: Specs,
        *,
        num_threads: int,
        folder: Path | None = None,
    ) -> Computation:
        """Makes a session; operators run one after the other, each with `num_threads` threads.

        Raises:
            EngineError: ONNX Runtime cannot load it, its tensors are not those of the contracts, or
                the variant computes nothing of it.
        """
        provider, options = "", {}
        if self.variant:
            provider = f"{self.variant}{_SUFFIX}"
            key = _OWN_THREADS.get(self.variant)
            options = {key: str(num_threads)} if key else {}
        try:
            session = make_session(
                model if isinstance(model, bytes) else str(model),
                num_threads,
                folder=folder,
                provider=provider,
                provider_options=options,
            )
        except Exception as error:
            # onnxruntime's errors derive from Exception alone.
            raise EngineError(
                f"ONNX Runtime cannot load the model ({first_line(error)}); use another"
                " backend, or a device with more memory"
            ) from error
        if provider and not _computes(session, provider):
            raise EngineError(
                f"ONNX Runtime's provider {self.variant} computes nothing of the model here; use"
                f" --backend {self.name}"
            )
        return _Bound(session, inputs, outputs)


def _computes(session: Any, provider: str) -> bool:
    """Whether a provider has at least one operation of a session's model."""
    if provider not in session.get_providers():
        return False  # a library that it needs is missing; ONNX Runtime goes on without it
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return True  # ONNX Runtime before 1.24 does not tell
    assigned = session.get_provider_graph_assignment_info()
    return any(subgraph.ep_name == provider for subgraph in assigned)


class _Bound:
    """A session whose inputs and outputs lie in arrays."""

    def __init__(self, session: Any, inputs: Specs, outputs: Specs) -> None:
        self._session = session
        self._input_specs = inputs
        self._input_names = _names(session.get_inputs(), inputs)
        self._outputs = [
            (name, spec.dtype, spec)
            for name, spec in zip(_names(session.get_outputs(), outputs), outputs, strict=True)
        ]

    def __call__(self, inputs: Arrays) -> Arrays:
        """Computes the outputs into fresh arrays, whose shapes the contract gives.

        Raises:
            EngineError: ONNX Runtime cannot compute them, or gives an output of another shape than
                the contract's.
        """
        num_rows = rows_of(inputs, self._input_specs)
        binding = self._session.io_binding()
        held = [row_major(array) for array in inputs]  # alive until the run has ended
        for array, name, spec in zip(held, self._input_names, self._input_specs, strict=True):
            binding.bind_input(
                name, "cpu", 0, ELEMENT_TYPES[spec.dtype], list(array.shape), array.ctypes.data
            )
        outputs = []
        for name, dtype, spec in self._outputs:
            output = empty_array(spec.concrete_shape(num_rows), NUMPY_DTYPES[dtype])
            binding.bind_output(
                name, "cpu", 0, ELEMENT_TYPES[dtype], list(output.shape), output.ctypes.data
            )
            outputs.append(output)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            # onnxruntime's errors derive from Exception alone; its words say what did not fit.
            raise EngineError(f"ONNX Runtime cannot compute the stage: {error}") from error
        return tuple(outputs)


def _names(nodes: list[Any], specs: Specs) -> list[str]:
    names = [node.name for node in nodes]
    if len(names) != len(specs):
        raise EngineError(
            f"the ONNX model has {len(names)} tensors ({', '.join(names)}) where the manifest"
            f" promises {len(specs)} ({', '.join(spec.name for spec in specs)}); export the bundle"
            " again"
        )
    return names
