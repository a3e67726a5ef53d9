"""Whether every input of a model has its rows in the first dimension, and which has not."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.utils import _pytree as pytree

from cutset.errors import CaptureError


def check_input_rows(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *, least: int = 2
) -> dict[str, torch.Tensor]:
    """Checks that the example's tensors have equally many rows, and enough of them.

    Args:
        model: the module that is called with them.
        args: positional arguments.
        kwargs: keyword arguments.
        least: the fewest rows; two where their number is to be free.

    Returns:
        The tensors by the names of the forward's parameters.

    Raises:
        CaptureError: one has other entries in its first dimension than rows, or too few.
    """
    named = tensors_by_name(model, args, kwargs)
    leader = next(iter(named), "")
    for name, tensor in named.items():
        num_rows = named[leader].shape[0] if named[leader].dim() else 0
        length = tensor.shape[0] if tensor.dim() else 0
        if length and num_rows >= least and length != num_rows:
            dims = [dim for dim, other in enumerate(tensor.shape) if other == num_rows]
            raise CaptureError(
                f"input {name!r} of shape {list(tensor.shape)} has {length} "
                f"{'entry' if length == 1 else 'entries'} in its first dimension, where "
                f"{leader!r} has {num_rows} rows: {_elsewhere(name, dims)}"
            )
        if length < least:
            raise CaptureError(
                f"example input {name!r} of shape {list(tensor.shape)}: every input needs at least "
                "two rows along its first dimension, so that the number of rows stays free"
            )
    return named


def name_input_without_rows(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> CaptureError | None:
    """The error for an input whose first dimension only happens to be as long as there are rows.

    The model is run with the first row of every input alone: one that it refuses to take that way,
    and takes when it is cut along another dimension, has its rows there.
    """
    named = tensors_by_name(model, args, kwargs)
    if len(named) < 2 or _runs(model, args, kwargs, {}):
        return None
    num_rows = next(iter(named.values())).shape[0]
    others = list(named.items())[1:]
    for dim in (1, 2):
        fitting = [
            (name, tensor)
            for name, tensor in others
            if tensor.dim() > dim and tensor.shape[dim] == num_rows
        ]
        # Each alone; and all, since a state may be several tensors.
        for group in (*([pair] for pair in fitting), fitting):
            if group and _runs(model, args, kwargs, {id(tensor): dim for _, tensor in group}):
                name, tensor = group[0]
                what = f"input {name!r} of shape {list(tensor.shape)}"
                return CaptureError(f"{what}: {_elsewhere(name, [dim])}")
    return None


def _elsewhere(name: str, dims: list[int]) -> str:
    """Where an input has its rows, and what to do."""
    rule = "Every input needs its rows first, since batches are cut along the first dimension"
    if not dims:
        return (
            f"it has no row for each of these. {rule}; what is the same for all rows can be a "
            "buffer of the model"
        )
    what = "layers, not rows," if dims[0] == 1 else "something else than rows"
    return (
        f"it has {what} in its first dimension, and its rows in dimension {dims[0]}, as the state "
        f"of a recurrent layer has. {rule}: give the model a forward that takes it with its rows "
        f"first and turns it round inside ({name}.transpose(0, {dims[0]})), and its results alike"
    )


def _runs(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], cut: dict[int, int]
) -> bool:
    """Whether the model takes one row; of the tensors in `cut`, by id, along that dimension."""

    def one_row(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.narrow(cut.get(id(value), 0), 0, 1).clone()

    one_args, one_kwargs = pytree.tree_map(one_row, (args, kwargs))
    try:
        with torch.no_grad():
            model(*one_args, **one_kwargs)
    except Exception:  # noqa: BLE001 - a model may fail in any way
        return False
    return True


def tensors_by_name(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The tensors among the arguments, by parameter and place within it (``x``, ``state.0``)."""
    try:
        bound = dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    except (TypeError, ValueError):
        bound = {str(index): value for index, value in enumerate(args)} | kwargs
    flat, _ = pytree.tree_flatten_with_path(bound)
    return {
        ".".join(_key(key) for key in path): leaf
        for path, leaf in flat
        if isinstance(leaf, torch.Tensor)
    }


def _key(key: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    return str(key)
