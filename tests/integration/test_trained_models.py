"""Trained weights on real photographs: the known answers come out.

The weights and the photographs come with packages of the development group.
"""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from cutset.bundles.agreement import AgreementEntry
from cutset.cluster.devices import Cluster, Device, Link
from cutset.data.array_files import top_k
from cutset.data.images import read_image
from cutset.models import FoundModel, find_model
from cutset.planning import PlanRequest
from cutset.workflow import AnswerLimits, plan_within, prepare_model


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


def _crops(photographs: list[Path], folder: Path, number: int) -> Path:
    """Square parts of photographs, of half their height and more, as files."""
    from PIL import Image

    drawn = random.Random(0)
    folder.mkdir()
    images = [Image.open(path).convert("RGB") for path in photographs]
    for index in range(number):
        image = images[index % len(images)]
        side = int(min(image.size) * drawn.uniform(0.5, 1.0))
        left, top = (drawn.randint(0, length - side) for length in image.size)
        crop = image.crop((left, top, left + side, top + side))
        crop.save(folder / f"{index:03d}.png")
    return folder


def _agreement(weights: Path, crops: Path, *allow: str) -> tuple[AgreementEntry, list[str]]:
    """Of MobileNetV2 in two stages over a slow wire, with the codecs that the planner takes."""
    prepared = prepare_model("mobilenet_v2", weights=str(weights))
    slow = Cluster(
        devices=(Device(name="a"), Device(name="b")),
        link=Link(latency_s=0.0, bandwidth_bytes_per_s=1e4),
    )
    request = PlanRequest(num_stages=2, cluster=slow, cut_names=("features.13",), allow=allow)
    limits = AnswerLimits(calibration=(crops,))
    plan, agreement = plan_within(prepared, request, limits, costs="flops")
    assert agreement is not None
    return agreement, [stage.codec for stage in plan.stages]


@pytest.mark.parametrize(
    "number", [6, pytest.param(102, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])]
)
def test_codecs_keep_the_labels_of_photographs(
    assets: ModuleType, tmp_path: Path, number: int
) -> None:
    crops = _crops(assets.photographs(), tmp_path / "crops", number)
    found, codecs = _agreement(assets.mobilenet_weights(), crops, "fp16")
    assert codecs == ["fp16", "none"]
    assert (found.num_same, found.num_rows) == (number, number)
    found, codecs = _agreement(assets.mobilenet_weights(), crops, "int8")
    assert codecs == ["int8", "none"]
    assert (found.num_same or 0) >= 0.97 * number
    assert found.max_abs_error < 0.5
