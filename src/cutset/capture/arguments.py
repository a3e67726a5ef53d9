"""What a model is called with: the forms of an example, and calls that leave no trace.

Importing this module does not import torch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arguments:
    """Arguments of a forward that takes some by position and some by name.

    Attributes:
        args: those by position.
        kwargs: those by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


ExampleInputs: TypeAlias = "torch.Tensor | Sequence[Any] | Mapping[str, Any] | Arguments"
"""A tensor, positional arguments, keyword arguments, or both kinds; each tensor with rows along its
first dimension, two rows or more."""


def split_inputs(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments by position, and those by name."""
    if isinstance(example_inputs, Arguments):
        return example_inputs.args, dict(example_inputs.kwargs)
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, Sequence):
        return tuple(example_inputs), {}
    return (example_inputs,), {}


def call_model(model: torch.nn.Module, example_inputs: ExampleInputs) -> Any:
    """What the model's forward returns for an example."""
    args, kwargs = split_inputs(example_inputs)
    return model(*args, **kwargs)


@contextlib.contextmanager
def untouched(model: torch.nn.Module, *, with_buffers: bool = True) -> Iterator[None]:
    """After the context the model has the attributes and the buffers that it had before.

    A forward may keep something for its next call (a grid for the shape seen last, a counter). What
    is called to look at a model must not be seen in what is captured of it. What lies within an
    attribute (the entries of a list) is not brought back.

    Args:
        model: what is called within the context.
        with_buffers: whether the numbers in buffers are brought back as well.
    """
    # TorchScript modules keep no attributes of their own in Python.
    modules = [module for module in model.modules() if isinstance(module._buffers, dict)]
    before = [dict(vars(module)) for module in modules]
    tables: list[tuple[Any, dict[str, Any]]] = [
        (table, dict(table))
        for module in modules
        for table in (module._parameters, module._buffers, module._modules)
    ]
    buffers = [(tensor, tensor.clone()) for tensor in model.buffers()] if with_buffers else []
    try:
        yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            vars(module).clear()
            vars(module).update(attributes)
        for table, entries in tables:
            table.clear()
            table.update(entries)
        for tensor, numbers in buffers:
            _bring_back(tensor, numbers)


def _bring_back(tensor: torch.Tensor, numbers: torch.Tensor) -> None:
    import torch

    with torch.no_grad():
        if tensor.shape != numbers.shape:
            tensor.set_(numbers)  # type: ignore[call-overload]
        elif not torch.equal(tensor, numbers):
            tensor.copy_(numbers)
