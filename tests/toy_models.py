"""A source of models in one file: chains of layers, ``chain:N`` is one of N."""

from __future__ import annotations

import torch
from torch import nn

from cutset import FoundModel
from cutset.errors import ModelError

SCALES = {"quiet": 0.01, "loud": 1.0}
"""The weights that it knows, by name."""


def chain(name: str, weights: str | None) -> FoundModel:
    """The model called ``chain:NAME``.

    Args:
        name: how many layers, 2 to 64.
        weights: one of `SCALES`, or None for the first of them.

    Raises:
        ModelError: there is no such model, or no such weights.
    """
    if not name.isdecimal() or not 2 <= int(name) <= 64:
        raise ModelError(f"chain:{name}: expected a number of layers, 2 to 64")
    scale = SCALES.get(weights or "quiet")
    if scale is None:
        raise ModelError(f"chain:{name} has no weights {weights!r}; it has {', '.join(SCALES)}")
    layers = [layer for _ in range(int(name)) for layer in (nn.Linear(32, 32), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    generator = torch.Generator().manual_seed(int(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=scale, generator=generator)
    return FoundModel(
        model=model.eval(),
        name=f"chain:{name}",
        weights=f"chain's {weights or 'quiet'}",
        example_inputs=torch.zeros(2, 32),
        labels=("north", "east", "south", "west"),
    )
