"""A caller's own module, run whole beside a bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from cutset.capture.captured import WholeModel
from cutset.capture.torch_arrays import as_array, as_tensor
from cutset.capture.torch_settings import computing_as
from cutset.dtypes import Arrays

Call = Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], Any]


def call_with_positional(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> Any:
    """Calls a model with one positional argument for each input."""
    return model(*inputs)


class CalledModule(WholeModel):
    """A module that is called as its owner says."""

    def __init__(self, module: torch.nn.Module, call: Call) -> None:
        self._module = module
        self._call = call

    @contextlib.contextmanager
    def computing(
        self, num_threads: int, settings: Mapping[str, str] | None = None
    ) -> Iterator[None]:
        """Within the context torch computes so, and the module is in evaluation mode."""
        was_training = self._module.training
        self._module.eval()
        try:
            with computing_as(settings, num_threads):
                yield
        finally:
            self._module.train(was_training)

    def run_whole(self, inputs: Arrays) -> Arrays:
        """Its results, flat."""
        with torch.inference_mode():
            # Copies, since a model may write to its inputs.
            results = self._call(self._module, tuple(as_tensor(each).clone() for each in inputs))
        leaves = pytree.tree_leaves(results)
        return tuple(as_array(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor))
