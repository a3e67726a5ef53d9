"""Torch programs for the checks of a bundle; imported only where torch is installed."""

from __future__ import annotations

from cutset.bundles.open import Bundle
from cutset.bundles.reading.torch.loading import load_program
from cutset.bundles.reading.torch.program import Program
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.dtypes import Arrays


class TorchStage:
    """A stage's torch program, ready to run on arrays.

    Attributes:
        program: what it was built from.
    """

    def __init__(self, bundle: Bundle, index: int) -> None:
        """Loads it after all checks; raises what `load_program` does."""
        self._run = load_program(bundle, index)
        self.program: Program = self._run.program

    def __call__(self, inputs: Arrays) -> Arrays:
        """The stage's outputs for `inputs`; raises what the program does."""
        return tuple(map(as_array, self._run(tuple(map(as_tensor, inputs)))))
