"""Every set of weights that torchvision and timm offer: its own rows, bit for bit, or none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg, list_pretrained
from torchvision.models import get_model_weights, list_models
from torchvision.transforms._presets import ImageClassification

from cutset.data.images import Preprocessing, read_image
from cutset.models import from_timm, from_torchvision


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _row(picture: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return read_image(stream, preprocessing)


def test_all_weights_of_torchvision(picture: Image.Image) -> None:
    presets: dict[str, ImageClassification] = {}
    others: set[str] = set()
    for name in list_models():
        for weights in get_model_weights(name):
            preset = weights.transforms()
            if isinstance(preset, ImageClassification):
                presets.setdefault(repr(preset), preset)
            else:
                assert from_torchvision._preprocessing(preset) is None
                others.add(type(preset).__name__)
    assert others >= {"ObjectDetection", "SemanticSegmentation", "VideoClassification"}
    assert len(presets) > 20
    for text, preset in presets.items():
        preprocessing = from_torchvision._preprocessing(preset)
        assert preprocessing is not None, text
        assert np.array_equal(_row(picture, preprocessing), preset(picture).numpy()), text


def test_all_weights_of_timm(picture: Image.Image) -> None:
    configs = {}
    for name in list_pretrained():
        weights = get_pretrained_cfg(name).to_dict()
        config = resolve_data_config({}, pretrained_cfg=weights)
        if config["input_size"][1] <= 288:  # the larger ones are the same arithmetic, only slow
            configs.setdefault(str(sorted(config.items())), (weights, config))
    assert len(configs) > 50
    without = set()
    for text, (weights, config) in configs.items():
        preprocessing = from_timm._preprocessing(weights)
        if preprocessing is None:
            without.add((config["crop_mode"], config["input_size"][0]))
            continue
        expected = create_transform(**config)(picture).numpy()
        assert np.array_equal(_row(picture, preprocessing), expected), text
    assert without <= {("border", 3), ("center", 1)}
