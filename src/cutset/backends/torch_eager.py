"""The reference backend, ``torch``: the exported program, run operation by operation.

At the same micro-batch size and thread count its results are bit for bit those of the whole
model, since it calls the same kernels in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch

from cutset.bundles.open import load_program
from cutset.capture.torch_arrays import as_array, as_tensor

if TYPE_CHECKING:
    from cutset.backends.base import Arrays
    from cutset.bundles.manifest import StageEntry
    from cutset.bundles.open import Bundle

_Function: TypeAlias = Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


class EagerProgram:
    """A stage as torch's own operations; see `cutset.backends.base.StageProgram`."""

    backend = "torch"

    def __init__(self, function: _Function) -> None:
        self._function = function

    def __call__(self, inputs: Arrays) -> Arrays:
        """Computes the outputs without recording anything for gradients."""
        with torch.inference_mode():
            outputs = self._function(tuple(as_tensor(array) for array in inputs))
        return tuple(as_array(tensor) for tensor in outputs)


def load(bundle: Bundle, stage: int, *, num_threads: int, micro_batch: int) -> EagerProgram:  # noqa: ARG001
    """Loads the stage's ``program.pt2`` after all its safety checks.

    Args:
        bundle: opened and checked.
        stage: index of the stage.
        num_threads: for torch's operators, in this whole process.
        micro_batch: not needed here.

    Raises:
        BundleError: the file is missing, changed or unsafe.
    """
    torch.set_num_threads(num_threads)
    return EagerProgram(load_program(bundle, stage))


def start() -> None:
    """Computes one small convolution."""
    with torch.inference_mode():
        torch.conv2d(torch.zeros(1, 3, 8, 8), torch.zeros(8, 3, 3, 3))


def missing() -> str:
    """What this machine lacks for it: nothing."""
    return ""


def why_not(entry: StageEntry) -> str:
    """Why torch cannot run the stage; ``""`` if it can."""
    if entry.program is None:
        return (
            "the bundle holds no torch program, since the model was an ONNX file; "
            "use --backend onnxruntime"
        )
    return ""
