"""Images in: how a picture becomes a row of a model's input."""

from __future__ import annotations

import msgspec


class Preprocessing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes a row: resize, crop the centre, scale to 0..1, normalise.

    Attributes:
        resize: length in pixels of the shorter side after resizing, the longer one in
            proportion; or (height, width), whatever the proportions were.
        crop: height and width in pixels of the centre crop.
        interpolation: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.
        mean: subtracted per channel after scaling to 0..1.
        std: divided by per channel.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
