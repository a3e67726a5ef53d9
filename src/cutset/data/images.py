"""Images in: how a picture becomes a row of a model's input.

Importing this module imports neither NumPy nor Pillow; reading an image does. The arithmetic is
that of torchvision's and timm's evaluation transforms on an image of Pillow, operation by
operation: each is a correctly rounded float32 operation on one element, so the bits are theirs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from cutset.errors import ModelError
from cutset.extras import naming_extras

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes, in lower case, of the files that are taken from a folder."""

MAX_PIXELS = 1 << 26
"""Most pixels (64 Mi) that an image may have, before and after it is resized."""

INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
"""How `Preprocessing` may resize, by torchvision's names."""

_MAX_NUMBER = 3e38
_MIN_DIVISOR = 2.0**-126
"""Of float32, in which the arithmetic is done; a divisor below it would be 0 or nearly so."""

# The formats behind the suffixes, and no others: Pillow would run Ghostscript for some.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_UNKNOWN_RANGE_MODES = ("I", "F")


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes a row: resize, crop the centre, scale to 0..1, normalise.

    Attributes:
        resize: length in pixels of the shorter side after resizing, the longer one in
            proportion; or (height, width), whatever the proportions were.
        crop: height and width in pixels of the centre crop.
        interpolation: one of `INTERPOLATIONS`.
        mean: subtracted per channel after scaling to 0..1.
        std: divided by per channel; not 0, nor 0 when rounded to float32.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        """Checks the values: a manifest may come from someone else.

        Raises:
            ValueError: a length is not positive, the crop has more pixels than `MAX_PIXELS`, the
                interpolation is unknown, or a number is no number or a divisor 0.
        """
        resize = (self.resize,) if isinstance(self.resize, int) else self.resize
        if min(*resize, *self.crop) < 1 or math.prod(self.crop) > MAX_PIXELS:
            raise ValueError(
                f"resize {self.resize} and crop {self.crop} are expected to be positive lengths, "
                f"the crop at most {MAX_PIXELS} pixels"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"interpolation {self.interpolation!r} is none of {', '.join(INTERPOLATIONS)}"
            )
        numbers = (*self.mean, *self.std)
        if not all(abs(value) <= _MAX_NUMBER for value in numbers) or any(
            abs(value) < _MIN_DIVISOR for value in self.std
        ):
            raise ValueError(
                f"mean {self.mean} and std {self.std} are expected to be numbers that float32 "
                "has, std not 0"
            )


def find_images(paths: Iterable[Path]) -> list[Path]:
    """Lists images in files and folders.

    Args:
        paths: a file is taken whatever its name; of a folder, the files at any depth whose
            suffix is one of `IMAGE_SUFFIXES` (in either case), sorted by path.

    Returns:
        the files, in the order of `paths`.

    Raises:
        ModelError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file())
            inside = [file for file in files if _has_image_suffix(file)]
            others = _listed(
                [f for f in files if not _has_image_suffix(f) and not f.name.startswith(".")]
            )
            if not inside:
                raise ModelError(
                    f"folder {path} holds no image{f', only {others}' if others else ''}; looked "
                    f"for {', '.join(IMAGE_SUFFIXES)}"
                )
            if others:
                logger.warning("folder %s: skipped %s, no image is read from them", path, others)
            found.extend(inside)
        elif path.exists():
            found.append(path)
        else:
            raise ModelError(f"input {path} does not exist")
    return found


def _has_image_suffix(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _listed(files: Sequence[Path]) -> str:
    """Names of files in words, a few of them, or ``""``."""
    names = [file.name for file in files[:3]]
    more = f" and {len(files) - len(names)} more" if len(files) > len(names) else ""
    return ", ".join(names) + more


def read_image(
    source: Path | BinaryIO, preprocessing: Preprocessing, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Reads an image as one row of a model's input: `read_pixels`, then `normalised`.

    The numbers are those of torchvision's own preset for classification and of timm's evaluation
    transform, bit for bit. A photo
    is first turned upright as its EXIF orientation says. Greyscale becomes three equal channels,
    16-bit greyscale keeps its upper 8 bits, a palette is looked up, transparency is dropped (the
    colour under it stays), and of an animation the first frame is taken.

    Args:
        source: a file's path, or an open binary file.
        preprocessing: what the model expects.
        max_pixels: most pixels that the image may have, before and after it is resized.

    Returns:
        float32 [3, height, width] of the crop.

    Raises:
        ModelError: as for `read_pixels`.
        MissingExtra: likewise.
    """
    from cutset.data.pixels import normalised

    pixels = read_pixels(source, preprocessing, max_pixels=max_pixels)
    row: np.ndarray = normalised(pixels[None], preprocessing)[0]
    return row


def read_pixels(
    source: Path | BinaryIO, preprocessing: Preprocessing, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Reads an image upright, resized and cropped, before its numbers are scaled.

    Args:
        source: as for `read_image`.
        preprocessing: likewise.
        max_pixels: likewise.

    Returns:
        uint8 [height, width, 3] of the crop.

    Raises:
        ModelError: the file is missing, is no image of a known format, is damaged, has more
            pixels than allowed, or numbers of an unknown range; it names the file and why.
        MissingExtra: Pillow is not installed.
    """
    with naming_extras("reading an image"):
        from PIL import Image, UnidentifiedImageError

    name = str(source) if isinstance(source, Path) else getattr(source, "name", "image")
    try:
        with Image.open(source, formats=_FORMATS) as image:
            _check_pixels(name, image.size, max_pixels, "")
            upright = _as_rgb(image, name)
    except ModelError:
        raise
    except UnidentifiedImageError as error:
        raise ModelError(
            f"{name} is no image; readable formats are {', '.join(_FORMATS)}"
        ) from error
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ModelError(f"image {name} cannot be read: {reason}") from error
    return _cropped(upright, name, preprocessing, max_pixels)


def _as_rgb(image: Image, name: str) -> Image:
    import numpy as np
    from PIL import Image as Pillow
    from PIL import ImageOps

    # A grey PNG has at most 16 bits, whichever mode this version of Pillow reads it into.
    deep = image.mode in _DEEP_GREY_MODES or (image.mode == "I" and image.format == "PNG")
    if image.mode in _UNKNOWN_RANGE_MODES and not deep:
        raise ModelError(
            f"image {name} has 32-bit pixels (mode {image.mode!r}) whose range is unknown; "
            "convert it to 8 or 16 bits a channel"
        )
    upright = ImageOps.exif_transpose(image)
    if deep:
        upper = np.asarray(upright).astype(np.uint16) >> 8
        return Pillow.fromarray(upper.astype(np.uint8)).convert("RGB")
    if "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return upright.convert("RGB")


def _cropped(image: Image, name: str, preprocessing: Preprocessing, max_pixels: int) -> np.ndarray:
    """Resizes and crops, in the steps and roundings of torchvision's functions."""
    import numpy as np
    from PIL.Image import Resampling

    size = _resized(image.size, preprocessing.resize)
    _check_pixels(name, size, max_pixels, " after resizing")
    if size != image.size:
        image = image.resize(size, Resampling[preprocessing.interpolation.upper()])
    crop_height, crop_width = preprocessing.crop
    width, height = image.size
    # Where the image is smaller than the crop, `crop` fills with black on both sides.
    left, right = _crop_edges(width, crop_width)
    top, bottom = _crop_edges(height, crop_height)
    return np.asarray(image.crop((left, top, right, bottom)))


def _resized(size: tuple[int, int], resize: int | tuple[int, int]) -> tuple[int, int]:
    """Width and height after resizing; the longer side is rounded down."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def _crop_edges(length: int, crop: int) -> tuple[int, int]:
    """Where a centre crop begins and ends along one side; negative: so much is filled in."""
    start = -((crop - length) // 2) if crop > length else round((length - crop) / 2.0)
    return start, start + crop


def _check_pixels(name: str, size: tuple[int, int], max_pixels: int, when: str) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ModelError(
            f"image {name} has {width} x {height} pixels{when}, more than the {max_pixels} allowed"
        )
