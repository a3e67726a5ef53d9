"""Torch programs for the checks of a bundle; imported only where torch is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from cutset.bundles.manifest import Manifest
from cutset.bundles.open import Bundle
from cutset.bundles.reading.torch.loading import load_program
from cutset.bundles.reading.torch.program import Program
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.capture.torch_settings import using_settings
from cutset.capture.torch_threads import compute_threads
from cutset.dtypes import Arrays


@contextlib.contextmanager
def as_captured(manifest: Manifest) -> Iterator[None]:
    """Has torch compute in the block as it did where the bundle was made."""
    with using_settings(manifest.torch_settings), compute_threads(manifest.num_threads):
        yield


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
