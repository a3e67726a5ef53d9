"""The reference backend, ``torch``: the exported program, run operation by operation.

At the same micro-batch size and thread count its results are bit for bit those of the whole
model, since it calls the same kernels in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cutset.backends.base import Computation, ProgramBackend
from cutset.dtypes import Arrays

if TYPE_CHECKING:
    import torch

    from cutset.bundles.open import Bundle
    from cutset.capture.captured import Captured


class EagerBackend(ProgramBackend):
    """Torch's own operations, one after the other."""

    name = "torch"

    def load(
        self,
        bundle: Bundle,
        stage: int,
        *,
        num_threads: int,
        micro_batch: int,  # noqa: ARG002
    ) -> Computation:
        """Loads the stage's ``program.pt2`` after all its safety checks.

        This process computes with the bundle's settings of torch from here on.

        Raises:
            BundleError: the file is missing, changed or unsafe.
        """
        import torch

        from cutset.bundles.reading.torch.loading import load_program
        from cutset.capture.torch_settings import apply_settings

        apply_settings(bundle.manifest.torch_settings)
        torch.set_num_threads(num_threads)
        return _on_arrays(load_program(bundle, stage))

    def load_piece(
        self,
        captured: Captured,
        start: int,
        stop: int,
        *,
        num_threads: int,  # noqa: ARG002  # those of the process
    ) -> Computation:
        """Runs a piece as a stage's program is run."""
        from cutset.capture.reuse import reuse_dead_tensors

        module = captured.piece_module(start, stop)
        reuse_dead_tensors(module)
        return self.load_module(module, ())

    def load_module(
        self,
        module: Callable[..., tuple[torch.Tensor, ...]],
        examples: tuple[torch.Tensor, ...],  # noqa: ARG002
    ) -> Computation:
        """Runs a module as it is."""
        return _on_arrays(lambda inputs: module(*inputs))


def _on_arrays(
    function: Callable[[tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]],
) -> Computation:
    import torch

    from cutset.capture.torch_arrays import as_array, as_tensor

    def compute(inputs: Arrays) -> Arrays:
        # Nothing is recorded for gradients.
        with torch.inference_mode():
            outputs = function(tuple([as_tensor(array) for array in inputs]))
        return tuple([as_array(tensor) for tensor in outputs])

    return compute
