"""A model is run on its example before it is captured, so that its own faults are told as such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from cutset.capture.arguments import untouched
from cutset.capture.diagnosis import place_of, shortened
from cutset.capture.source_lines import place_in_words
from cutset.errors import CaptureError

_MOST_CHARACTERS = 600


def check_runs(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Runs a model on its example, without a trace of that in the model.

    Raises:
        CaptureError: a weight has no numbers or lies on another device, or the model raises
            something, which is said as it is.
    """
    _check_tensors(model, args, kwargs)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        return  # refused as such by whoever tries to capture it
    copied = pytree.tree_map_only(torch.Tensor, torch.clone, (args, dict(kwargs)))
    try:
        with untouched(model), torch.no_grad():
            model(*copied[0], **copied[1])
    except Exception as error:
        module_path, source = place_of(model, error)
        text = shortened(" ".join(str(error).split()), _MOST_CHARACTERS)
        place = place_in_words(module_path, source, None)
        raise CaptureError(
            f"the model does not run on its example inputs{place}: {type(error).__name__}: "
            f"{text or 'no words'}. That is torch's or the model's own error; give example inputs "
            "that the model takes, or mend its forward",
            module_path=module_path,
            source=source,
        ) from error


def _check_tensors(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise CaptureError(
                f"weight {name!r} has no numbers yet: a lazy module gets its shape from its first "
                "call. Call the model once on its example, or load its weights, before it is split"
            )
        if tensor.is_meta:
            raise CaptureError(
                f"weight {name!r} lies on device 'meta', where it has no numbers; build the model "
                "without that device"
            )
        if tensor.device.type != "cpu":
            raise CaptureError(
                f"weight {name!r} lies on device {str(tensor.device)!r}; models are captured on "
                "the processor: move the model there first (model.cpu())"
            )
    for index, leaf in enumerate(pytree.tree_leaves((args, dict(kwargs)))):
        if isinstance(leaf, torch.Tensor) and leaf.device.type != "cpu":
            raise CaptureError(
                f"example input {index} lies on device {str(leaf.device)!r}; give one that lies "
                "in the processor's memory, as the model does"
            )


def kept_from_calls(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[torch.nn.Module, str], ...]:
    """Attributes that an earlier call left in a model, and that a call with more rows changes."""
    more = pytree.tree_map_only(
        torch.Tensor, lambda tensor: torch.cat([tensor, tensor[:1]]), (args, dict(kwargs))
    )
    before = {module: dict(vars(module)) for module in model.modules()}
    found: list[tuple[torch.nn.Module, str]] = []
    with untouched(model), torch.no_grad():
        try:
            model(*more[0], **more[1])
        except Exception:  # noqa: BLE001 - a model may fail with other rows in any way
            return ()
        for module, attributes in before.items():
            found += [(module, name) for name in _changed(attributes, vars(module))]
    return tuple(found)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    kinds = (torch.Tensor, torch.Size, tuple, list, int, float, str)
    for name, value in before.items():
        if isinstance(value, kinds) and after.get(name, value) is not value:
            yield name
