"""A stage program as plain, checked data: calls, weights, inputs, outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Result:
    """An argument that is the result of an earlier call, an input or a weight, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class OnDevice:
    """An argument that names the device on which the program was captured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One call of a listed operation.

    Attributes:
        target: e.g. ``"torch.ops.aten.conv2d.default"``.
        arguments: name in the operation's signature, and the value.
        results: names of what it returns.
        is_sequence: whether it returns a tuple or list that holds `results` in order.
    """

    target: str
    arguments: tuple[tuple[str, Any], ...]
    results: tuple[str, ...]
    is_sequence: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A tensor that the program holds: a view of one member of the archive.

    Attributes:
        name: its original name in the model, e.g. ``"layer1.0.conv1.weight"``.
        member: archive member with its bytes.
        dtype: of its elements.
        sizes: shape.
        strides: in elements.
        offset: first element within the member.
        requires_grad: as it was in the author's model. Nothing is trained here, but torch's
            matrix product looks at it when it chooses a kernel, even without gradients
            (``should_fold`` in ``aten/src/ATen/native/LinearAlgebra.cpp``).
    """

    name: str
    member: str
    dtype: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    requires_grad: bool

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.sizes)

    @property
    def num_bytes(self) -> int:
        """Their size."""
        return self.num_elements * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """What a program says of one of its tensors.

    Attributes:
        dtype: of its elements.
        sizes: lengths; None for one that grows with the number of rows.
    """

    dtype: torch.dtype
    sizes: tuple[int | None, ...]

    def __str__(self) -> str:
        lengths = ", ".join("*" if size is None else str(size) for size in self.sizes)
        return f"{self.dtype}[{lengths}]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A stage program, checked, not yet runnable.

    Attributes:
        path: its path within the bundle.
        inputs: names of its tensor inputs, in order.
        weights: what it holds, by the name that calls use.
        calls: in execution order.
        outputs: names of the tensors it returns, in order.
        declared: dtype and shape of every tensor, by its name.
        stored: original names of all weights in the archive, used or not.
        stored_bytes: size of all the members that hold weights.
    """

    path: str
    inputs: tuple[str, ...]
    weights: dict[str, Weight]
    calls: tuple[Call, ...]
    outputs: tuple[str, ...]
    declared: dict[str, Declared]
    stored: frozenset[str]
    stored_bytes: int


def results_in(arguments: Iterable[tuple[str, Any]]) -> list[str]:
    """Names of the values that are among a call's arguments, also within lists."""
    names: list[str] = []
    for _, value in arguments:
        items = value if isinstance(value, list) else [value]
        names.extend(item.name for item in items if isinstance(item, Result))
    return names
