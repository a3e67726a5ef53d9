"""A small network of torch, with preprocessing and labels, of which a bundle is made."""

from __future__ import annotations

import torch
from torch import nn

from cutset.data.images import Preprocessing
from cutset.models.found import FoundModel

LABELS = ("cat", "dog", "cup", "tree", "sea")


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of `width` channels."""
        return torch.relu(self.body(x) + x)


def make() -> FoundModel:
    """3 x 12 x 12 to 5 scores."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        Block(8),
        Block(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()
    return FoundModel(
        model=model,
        name="small",
        weights="seed 0",
        example_inputs=(torch.randn(2, 3, 12, 12),),
        preprocessing=Preprocessing(
            resize=14,
            crop=(12, 12),
            interpolation="bicubic",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        labels=LABELS,
    )
