"""Images as pixels: the same rows, a fourth of the bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cutset.data.images import Preprocessing, read_image, read_pixels
from cutset.data.pixels import are_pixels, normalised, takes_images
from cutset.tensors import TensorSpec

WAY = Preprocessing(
    resize=20, crop=(16, 24), interpolation="bilinear", mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)  # fmt: skip


def photograph(seed: int) -> io.BytesIO:
    numbers = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "png")
    file.seek(0)
    return file


def test_rows_of_pixels_are_the_rows_of_the_images_bit_for_bit() -> None:
    pixels = np.stack([read_pixels(photograph(seed), WAY) for seed in range(3)])
    rows = np.stack([read_image(photograph(seed), WAY) for seed in range(3)])
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 16, 24, 3))
    made = normalised(pixels, WAY)
    assert made.tobytes() == rows.tobytes()
    assert made.flags.c_contiguous
    assert made.nbytes == 4 * pixels.nbytes
    # However they lie in memory.
    assert normalised(pixels.copy("F"), WAY).tobytes() == rows.tobytes()
    # 255 and 0 of the first channel: (1 - 0.485) / 0.229 and (0 - 0.485) / 0.229.
    ends = np.zeros((1, 16, 24, 3), np.uint8)
    ends[0, 0, 0] = 255
    assert normalised(ends, WAY)[0, 0, 0, :2] == pytest.approx([2.2489083, -2.117904])


@pytest.mark.parametrize(
    ("array", "are"),
    [
        (np.zeros((3, 16, 24, 3), np.uint8), True),
        (np.zeros((0, 16, 24, 3), np.uint8), True),
        (np.zeros((3, 24, 16, 3), np.uint8), False),
        (np.zeros((3, 16, 24, 3), np.int8), False),
        (np.zeros((3, 3, 16, 24), np.float32), False),
        (np.zeros((16, 24, 3), np.uint8), False),
        ("pixels", False),
    ],
)
def test_what_pixels_are(array: object, are: bool) -> None:
    assert are_pixels((array,), None, WAY) == are
    assert not are_pixels((array, array), None, WAY)
    assert not are_pixels((array,), 7, WAY)


@pytest.mark.parametrize(
    ("shape", "dtype", "takes"),
    [
        (("batch", 3, 16, 24), "float32", True),
        (("batch", 3, 24, 16), "float32", False),
        (("batch", 3, 16, 24), "float16", False),
        (("batch*2", 3, 16, 24), "float32", False),
        ((2, 3, 16, 24), "float32", False),
        ((), "float32", False),
    ],
)
def test_which_models_take_images(shape: tuple[int | str, ...], dtype: str, takes: bool) -> None:
    spec = TensorSpec(name="x", shape=shape, dtype=dtype)
    assert takes_images(WAY, (spec,)) == takes
    assert not takes_images(WAY, (spec, spec))
