"""The six models that the project began with, captured once for all tests."""

from __future__ import annotations

import functools

from cutset.workflow import PreparedModel, prepare_model

SIX = ("mobilenet_v2", "resnet18", "resnet50", "vgg16", "alexnet", "inception_v3")


@functools.cache
def prepared(name: str) -> PreparedModel:
    """The model with random weights and random batch-norm statistics."""
    return prepare_model(f"torchvision:{name}", weights="random:0")
