"""A backend for Cutset: the operators' definitions in NumPy, from the package `onnx` itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import cutset

Arrays = tuple[np.ndarray, ...]


class ReferenceBackend(cutset.ModelBackend):
    """Slow and plain: for looking at what a model ought to compute."""

    name = "onnx-reference"
    needs: ClassVar = {"onnx": "onnx"}
    dtypes = frozenset({"float32", "float64", "int32", "int64", "bool"})

    def load_model(
        self,
        model: Path | bytes,
        inputs: tuple[cutset.TensorSpec, ...],
        outputs: tuple[cutset.TensorSpec, ...],
        *,
        num_threads: int,  # NumPy takes it from OMP_NUM_THREADS, which workers are started with
        folder: Path | None = None,
    ) -> Any:
        import onnx  # only here: listing backends must not load what they compute with
        from onnx.reference import ReferenceEvaluator

        proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
        evaluator = ReferenceEvaluator(proto)
        names = [value.name for value in proto.graph.input]

        def compute(arrays: Arrays) -> Arrays:
            return tuple(evaluator.run(None, dict(zip(names, arrays, strict=True))))

        return compute
