"""What finding a model gives."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from cutset.capture.arguments import ExampleInputs
from cutset.data.images import Preprocessing

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundModel:
    """A model, ready to be captured, with everything that belongs to it.

    Attributes:
        model: a module of torch in evaluation mode, or what an ONNX file holds: an
            `cutset.capture.onnx.onnx_file.OnnxModule`.
        name: its full spec, such as ``"torchvision:resnet50"``.
        weights: where its weights came from, in words.
        example_inputs: two rows of the model's own input size.
        preprocessing: how an image becomes a row, or None where images are not its input.
        labels: names of the classes, by index of the output's last dimension, or None.
    """

    model: Any
    name: str
    weights: str
    example_inputs: ExampleInputs
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None


def random_rows(*shapes: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Standard normal float32 tensors of the given shapes, the same for the same seed."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)
