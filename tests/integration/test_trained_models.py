"""Trained weights on real photographs: the known answers come out.

The weights and the photographs come with packages of the development group.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from cutset.data.array_files import top_k
from cutset.data.images import read_image
from cutset.models import FoundModel, find_model


def _answers(found: FoundModel, photographs: list[Path]) -> list[tuple[str, float]]:
    assert found.preprocessing is not None
    rows = [read_image(path, found.preprocessing) for path in photographs]
    with torch.no_grad():
        logits = found.model(torch.from_numpy(np.stack(rows))).numpy()
    return [(label, round(score, 3)) for ((label, score),) in top_k(logits, found.labels, k=1)]


def test_mobilenet_v2(assets: ModuleType) -> None:
    found = find_model("mobilenet_v2", weights=str(assets.mobilenet_weights()))
    assert found.name == "torchvision:mobilenet_v2"
    assert found.weights == (
        "file mobilenet_v2-b0353104.pth, sha256 "
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889, "
        "torchvision MobileNet_V2_Weights.IMAGENET1K_V1"
    )
    answers = _answers(found, assets.photographs())
    assert answers == [("Egyptian cat", 0.717), ("espresso", 0.992)]


def test_efficientnet_lite0(assets: ModuleType) -> None:
    weights = assets.efficientnet_lite0_weights()
    found = find_model("timm:tf_efficientnet_lite0", weights=f"{weights}:by-order")
    assert found.preprocessing is not None
    assert found.preprocessing.mean == (0.5, 0.5, 0.5)
    assert found.preprocessing.std == (0.5, 0.5, 0.5)
    answers = _answers(found, assets.photographs())
    assert answers == [("tiger cat", 0.393), ("espresso", 0.951)]


def test_photographs_equal_torchvision_preset(assets: ModuleType) -> None:
    from PIL import Image
    from torchvision.models import Inception_V3_Weights, MobileNet_V2_Weights

    weights = (MobileNet_V2_Weights.DEFAULT, Inception_V3_Weights.DEFAULT)
    for entry, name in zip(weights, ("mobilenet_v2", "inception_v3"), strict=True):
        preprocessing = find_model(name, weights="random:0").preprocessing
        assert preprocessing is not None
        for path in assets.photographs():
            with Image.open(path) as image:
                expected = entry.transforms()(image.convert("RGB"))
            assert np.array_equal(read_image(path, preprocessing), expected.numpy())
