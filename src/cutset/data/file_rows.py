"""Rows of a model's inputs out of files: images, folders of them, arrays."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cutset.data.array_files import ARRAY_SUFFIXES, read_arrays
from cutset.data.images import Preprocessing, find_images, read_image, read_pixels
from cutset.errors import ModelError
from cutset.host import num_usable_cores
from cutset.tensors import TensorSpec

_MOST_THREADS = 8
_AHEAD = 2


class FileRows:
    """Reads files some rows at a time, and notes what could not be read.

    Images are read by threads of their own, a few ahead of who takes them: decoding is most of
    what a caller does, and lets go of the interpreter meanwhile.

    Args:
        inputs: of the model.
        preprocessing: how an image becomes a row, or None where that is not known.
        paths: images, folders of images, ``.npy``, ``.npz`` or ``.safetensors`` files.
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
        if not paths:
            return
        if preprocessing is None or len(self._inputs) != 1:
            raise ModelError(
                f"{paths[0]}: it is not known how an image becomes a row; give a .npy, .npz "
                "or .safetensors file, or say it with --preprocess to `cutset split`, or of a "
                "bundle to `cutset bundle set`"
            )
        rows: list[np.ndarray] = []
        read = functools.partial(self._read, preprocessing=preprocessing)
        for path, image in _read_ahead(paths, read):
            try:
                rows.append(image.result())
            except ModelError as error:
                self.failed.append((str(path), str(error)))
                continue
            self.names.append(str(path))
            if len(rows) == num_images:
                yield (np.stack(rows),)
                rows = []
        if rows:
            yield (np.stack(rows),)


def _read_ahead(
    paths: Sequence[Path], read: Callable[[Path], np.ndarray]
) -> Iterator[tuple[Path, Future[np.ndarray]]]:
    """Images in order, as many on their way as the cores of this machine can read at once."""
    num_threads = min(_MOST_THREADS, max(1, num_usable_cores() - 1))
    coming = collections.deque[tuple[Path, Future[np.ndarray]]]()
    with ThreadPoolExecutor(num_threads, "cutset-image") as pool:
        try:
            for path in paths:
                coming.append((path, pool.submit(read, path)))
                if len(coming) > _AHEAD * num_threads:
                    yield coming.popleft()
            while coming:
                yield coming.popleft()
        finally:
            for _, image in coming:
                image.cancel()
