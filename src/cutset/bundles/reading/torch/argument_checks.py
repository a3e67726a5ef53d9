"""What the rules on arguments are made of: how one is looked at, and how a broken rule is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch

MAX_STEP = 1 << 16
"""Largest kernel, stride, padding, dilation or factor."""

_REDUCED = (torch.float16, torch.bfloat16)

CallArguments: TypeAlias = Mapping[str, Any]
Rule: TypeAlias = Callable[[CallArguments], None]


class BrokenRuleError(ValueError):
    """Arguments that an operation must not get; says why."""


def require(holds: bool, otherwise: str) -> None:
    """Raises a `BrokenRuleError` that says `otherwise` where something does not hold."""
    if not holds:
        raise BrokenRuleError(otherwise)


def tensor_of(arguments: CallArguments, *names: str) -> torch.Tensor:
    """The first of `names` that the operation has; it must hold elements."""
    name = next(name for name in names if name in arguments)
    tensor = arguments[name]
    require(isinstance(tensor, torch.Tensor), f"{name!r} is no tensor")
    require(tensor.numel() > 0, f"{name!r} of shape {list(tensor.shape)} has no elements")
    return tensor  # type: ignore[no-any-return]


def numbers_of(arguments: CallArguments, name: str, least: int, counts: Sequence[int]) -> list[int]:
    """An argument of one or several whole numbers from `least` on."""
    value = arguments[name]
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    require(len(values) in counts, f"{name!r} has {len(values)} numbers")
    for number in values:
        require(
            type(number) is int and least <= number <= MAX_STEP,
            f"{name!r} is {str(number)[:40]}, expected {least} to {MAX_STEP}",
        )
    return values


def spread(values: list[int], count: int) -> list[int]:
    """A number for each of `count` dimensions, where one may stand for all."""
    return values * count if len(values) == 1 else values


def check_same_dtype(arguments: CallArguments, *names: str) -> None:
    """Checks that the tensors among some arguments are of one dtype."""
    tensors = [arguments[name] for name in names if isinstance(arguments[name], torch.Tensor)]
    found = {tensor.dtype for tensor in tensors}
    require(len(found) == 1, f"{', '.join(names)} are of different dtypes")


def check_parameters(
    arguments: CallArguments, names: Sequence[str], tensor: torch.Tensor, shape: Sequence[int]
) -> None:
    """Parameters of a normalisation: as long as what they are applied to, of a dtype it knows."""
    given = [arguments[name] for name in names if arguments.get(name) is not None]
    for name in names:
        parameter = arguments.get(name)
        if parameter is not None:
            require(
                list(parameter.shape) == list(shape),
                f"{name!r} has shape {list(parameter.shape)}, expected {list(shape)}",
            )
    dtypes = {parameter.dtype for parameter in given}
    require(
        dtypes <= {tensor.dtype} or (tensor.dtype in _REDUCED and dtypes == {torch.float32}),
        f"{', '.join(names)} are of other dtypes than what they are applied to",
    )


def is_false(name: str) -> Rule:
    """The rule that a switch is off, such as that of training."""

    def rule(arguments: CallArguments) -> None:
        require(
            arguments[name] is False,
            f"{name!r} is {arguments[name]}; a stage computes as in evaluation, without "
            f"random numbers and without a state",
        )

    return rule
