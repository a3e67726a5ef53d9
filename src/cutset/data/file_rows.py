"""Rows of a model's inputs out of files: images, folders of them, arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from cutset.data.array_files import ARRAY_SUFFIXES, read_arrays
from cutset.data.images import Preprocessing, find_images, read_image, read_pixels
from cutset.errors import ModelError
from cutset.tensors import TensorSpec


class FileRows:
    """Reads files some rows at a time, and notes what could not be read.

    Args:
        inputs: of the model.
        preprocessing: how an image becomes a row, or None where that is not known.
        paths: images, folders of images, ``.npy`` or ``.safetensors`` files.
        as_pixels: images as `read_pixels` gives them, instead of as rows.

    Attributes:
        names: what each row came from: a file, or ``file[3]`` for row 3 of a file of arrays.
        failed: images that could not be read, each with the reason.
    """

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        preprocessing: Preprocessing | None,
        paths: Sequence[Path],
        *,
        as_pixels: bool = False,
    ) -> None:
        self._inputs = inputs
        self._preprocessing = preprocessing
        self._paths = paths
        self._read = read_pixels if as_pixels else read_image
        self.names: list[str] = []
        self.failed: list[tuple[str, str]] = []

    def batches(self, num_images: int) -> Iterator[tuple[np.ndarray, ...]]:
        """Tuples of the model's inputs: so many images at a time, a file of arrays as it is.

        Raises:
            ModelError: a path does not exist, an array does not fit the model, or there are images
                and it is not known how they become rows.
        """
        images: list[Path] = []
        for path in self._paths:
            if path.suffix in ARRAY_SUFFIXES:
                yield from self._image_batches(images, num_images)
                images = []
                yield self._arrays(path)
            else:
                images.extend(find_images([path]))
        yield from self._image_batches(images, num_images)

    def _arrays(self, path: Path) -> tuple[np.ndarray, ...]:
        arrays = tuple(read_arrays(path, self._inputs).values())
        self.names.extend(f"{path}[{row}]" for row in range(arrays[0].shape[0]))
        return arrays

    def _image_batches(
        self, paths: Sequence[Path], num_images: int
    ) -> Iterator[tuple[np.ndarray, ...]]:
        preprocessing = self._preprocessing
        if paths and (preprocessing is None or len(self._inputs) != 1):
            raise ModelError(
                f"{paths[0]}: the bundle does not say how an image becomes a row; give a .npy "
                "or .safetensors file, or split the model again with weights that know"
            )
        rows: list[np.ndarray] = []
        for path in paths:
            assert preprocessing is not None
            try:
                rows.append(self._read(path, preprocessing))
            except ModelError as error:
                self.failed.append((str(path), str(error)))
                continue
            self.names.append(str(path))
            if len(rows) == num_images:
                yield (np.stack(rows),)
                rows = []
        if rows:
            yield (np.stack(rows),)
