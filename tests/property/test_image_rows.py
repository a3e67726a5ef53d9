"""A picture's row is, bit for bit, what torchvision and timm make of it themselves."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from cutset.data.images import INTERPOLATIONS, MAX_PIXELS, Preprocessing, read_image

NORMS = (
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
)
# Lengths of every parity around the crops, strips of a pixel, and photographs.
LENGTHS = st.integers(1, 90) | st.sampled_from([1, 2, 3, 127, 128, 255, 256, 257, 500, 1023])


def _pixels(height: int, width: int, channels: int) -> np.ndarray:
    seed = height * 4099 + width
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _file(image: Image.Image, image_format: str = "PNG", **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    stream.seek(0)
    return stream


def _same_bits(row: np.ndarray, expected: np.ndarray) -> bool:
    return (
        row.dtype == expected.dtype == np.float32
        and row.flags.c_contiguous
        and row.tobytes() == expected.tobytes()
    )


@settings(max_examples=80, deadline=None)
@given(
    height=LENGTHS,
    width=LENGTHS,
    resize=st.integers(1, 80) | st.sampled_from([224, 232, 256, 342]),
    crop=st.integers(1, 80) | st.sampled_from([224, 299]),
    interpolation=st.sampled_from(INTERPOLATIONS),
    norm=st.sampled_from(NORMS),
)
@example(1, 1023, 3, 1, "bicubic", NORMS[0])
@example(1023, 1, 3, 80, "bilinear", NORMS[1])
@example(1, 1, 256, 224, "bicubic", NORMS[2])
@example(500, 333, 256, 224, "bilinear", NORMS[0])
@example(257, 500, 342, 299, "bilinear", NORMS[4])
def test_as_torchvision(
    height: int,
    width: int,
    resize: int,
    crop: int,
    interpolation: str,
    norm: tuple[tuple[float, float, float], tuple[float, float, float]],
) -> None:
    # More pixels than that after resizing are refused; a test of its own has it.
    assume(resize * resize * max(height, width) <= MAX_PIXELS * min(height, width))
    image = Image.fromarray(_pixels(height, width, 3))
    preset = ImageClassification(
        crop_size=crop,
        resize_size=resize,
        mean=norm[0],
        std=norm[1],
        interpolation=InterpolationMode(interpolation),
    )
    preprocessing = Preprocessing(
        resize=resize, crop=(crop, crop), interpolation=interpolation, mean=norm[0], std=norm[1]
    )
    assert _same_bits(read_image(_file(image), preprocessing), preset(image).numpy())


@settings(max_examples=50, deadline=None)
@given(
    height=LENGTHS,
    width=LENGTHS,
    crop=st.integers(1, 80) | st.just(224),
    share=st.sampled_from([0.85, 0.875, 0.9, 0.95, 1.0]),
    mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    norm=st.sampled_from(NORMS),
)
@example(333, 500, 224, 0.875, "center", "bicubic", NORMS[1])
@example(500, 7, 80, 0.95, "squash", "bilinear", NORMS[0])
def test_as_timm(
    height: int,
    width: int,
    crop: int,
    share: float,
    mode: str,
    interpolation: str,
    norm: tuple[tuple[float, float, float], tuple[float, float, float]],
) -> None:
    image = Image.fromarray(_pixels(height, width, 3))
    transform = create_transform(
        (3, crop, crop),
        crop_pct=share,
        crop_mode=mode,
        interpolation=interpolation,
        mean=norm[0],
        std=norm[1],
    )
    resized = int(crop / share)
    preprocessing = Preprocessing(
        resize=resized if mode == "center" else (resized, resized),
        crop=(crop, crop),
        interpolation=interpolation,
        mean=norm[0],
        std=norm[1],
    )
    assert _same_bits(read_image(_file(image), preprocessing), transform(image).numpy())


def _deep_grey(height: int, width: int) -> tuple[Image.Image, Image.Image]:
    pixels = _pixels(height, width, 2).astype(np.uint16)
    upper, lower = pixels[..., 0], pixels[..., 1]
    return Image.fromarray(upper * 256 + lower), Image.fromarray(upper.astype(np.uint8))


@settings(max_examples=40, deadline=None)
@given(
    height=LENGTHS,
    width=LENGTHS,
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
    turned=st.integers(1, 8),
    interpolation=st.sampled_from(INTERPOLATIONS),
)
def test_every_kind_of_picture(
    height: int, width: int, mode: str, turned: int, interpolation: str
) -> None:
    if mode == "I;16":
        image, plain = _deep_grey(height, width)
    else:
        image = plain = Image.fromarray(_pixels(height, width, 4)).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turned
    preset = ImageClassification(
        crop_size=31, resize_size=40, interpolation=InterpolationMode(interpolation)
    )
    upright = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    plain = plain.convert("RGB")
    plain = plain.transpose(upright[turned]) if turned in upright else plain
    preprocessing = Preprocessing(
        resize=40,
        crop=(31, 31),
        interpolation=interpolation,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    row = read_image(_file(image, exif=exif), preprocessing)
    assert _same_bits(row, preset(plain).numpy())


def test_what_would_not_be_the_same_is_not_offered() -> None:
    """timm's other ways to resize and crop have no `Preprocessing`: see `models/from_timm.py`."""
    with pytest.raises(ValueError, match="'lanczos' is none of bilinear, bicubic, nearest"):
        Preprocessing(resize=8, crop=(8, 8), interpolation="lanczos", mean=(0, 0, 0), std=(1, 1, 1))
