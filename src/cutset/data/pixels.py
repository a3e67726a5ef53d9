"""Images as pixels: a fourth of a row's bytes, scaled and normalised where they are used."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cutset.data.images import Preprocessing
from cutset.dtypes import empty_array
from cutset.tensors import BATCH, TensorSpec


def normalised(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Rows of a model's input from their pixels, in the steps and roundings of torchvision's.

    Args:
        pixels: uint8 [rows, height, width, 3].
        preprocessing: what the model expects.

    Returns:
        float32 [rows, 3, height, width], row-major.
    """
    rows = empty_array((len(pixels), 3, *pixels.shape[1:3]), np.dtype(np.float32))
    np.copyto(rows, pixels.transpose(0, 3, 1, 2))
    rows /= np.float32(255)
    with np.errstate(over="ignore"):  # a number that is too large is infinite, as in torch
        rows -= np.array(preprocessing.mean, np.float32).reshape(3, 1, 1)
        rows /= np.array(preprocessing.std, np.float32).reshape(3, 1, 1)
    return rows


def are_pixels(
    arrays: Sequence[object], num_rows: int | None, preprocessing: Preprocessing
) -> bool:
    """Whether a model's inputs are the pixels of so many images, as `normalised` takes them.

    Args:
        arrays: the inputs; tensors are none.
        num_rows: how many, or None for any number.
        preprocessing: what the model expects.
    """
    if len(arrays) != 1 or not isinstance(arrays[0], np.ndarray):
        return False
    array = arrays[0]
    if array.dtype != np.uint8 or array.ndim != 4 or num_rows not in (None, len(array)):
        return False
    height, width = preprocessing.crop
    return bool(array.shape[1:] == (height, width, 3))


def takes_images(preprocessing: Preprocessing, inputs: Sequence[TensorSpec]) -> bool:
    """Whether a model's inputs are what images become."""
    if len(inputs) != 1 or not inputs[0].shape or inputs[0].shape[0] != BATCH:
        return False
    return (*inputs[0].shape[1:], inputs[0].dtype) == (3, *preprocessing.crop, "float32")
