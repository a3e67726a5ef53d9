"""How images become rows and what classes are called, for models that do not say so themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cutset.data.images import Preprocessing
from cutset.errors import ModelError
from cutset.models.found import FoundModel

_MAX_FILE_BYTES = 1 << 24
_PREPROCESS = "FILE.toml, torchvision:WEIGHTS or timm:NAME"
_LABELS = "FILE.txt (a name a line), FILE.json (a list), torchvision:WEIGHTS or timm:NAME"


def read_preprocessing(source: str) -> Preprocessing:
    """How an image becomes a row.

    Args:
        source: a TOML file with the keys of `Preprocessing`;
            ``torchvision:ResNet50_Weights.IMAGENET1K_V2``, or a model's name for its default
            weights; ``timm:NAME``, with or without a tag.

    Raises:
        ModelError: there is no such file or name, the file says something else, or the weights'
            images become rows otherwise (clips, images of any size).
    """
    library, colon, name = source.partition(":")
    if colon and library in ("torchvision", "timm"):
        found = _of_weights(library, name)[0]
        if found is None:
            raise ModelError(
                f"{source}: its images do not become rows by resizing, cropping and normalising"
            )
        return found
    if Path(source).suffix != ".toml":
        raise ModelError(f"{source!r} does not say how an image becomes a row; give {_PREPROCESS}")
    try:
        return msgspec.toml.decode(_read(source), type=Preprocessing)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(
            f"{source}: {error}; expected resize = 256 (the shorter side) or [height, width], "
            'crop = [224, 224], interpolation = "bilinear", mean = [0.485, 0.456, 0.406], '
            "std = [0.229, 0.224, 0.225]"
        ) from error


def read_labels(source: str) -> tuple[str, ...]:
    """Names of classes, in the order of the output's last dimension.

    Args:
        source: a text file with a name a line (empty lines at the end do not count), a JSON file
            with a list of names, or weights as `read_preprocessing` takes them.

    Raises:
        ModelError: there is no such file or name, the file holds something else, or the weights
            name no classes.
    """
    library, colon, name = source.partition(":")
    if colon and library in ("torchvision", "timm"):
        labels = _of_weights(library, name)[1]
        if labels is None:
            raise ModelError(f"{source} names no classes")
        return labels
    if Path(source).suffix not in (".txt", ".json"):
        raise ModelError(f"{source!r} does not name classes; give {_LABELS}")
    data = _read(source)
    try:
        if Path(source).suffix == ".json":
            return tuple(msgspec.json.decode(data, type=list[str]))
        labels = tuple(line.strip() for line in data.decode("utf-8-sig").rstrip().splitlines())
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"{source}: {error}; expected {_LABELS}") from error
    if "" in labels:
        raise ModelError(
            f"{source}, line {labels.index('') + 1} is empty; a name is expected in each line, in "
            "the order of the model's outputs"
        )
    return labels


def described(
    found: FoundModel,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] | None = None,
) -> FoundModel:
    """A found model that is told how images become its rows, what its classes are called, or both.

    What is not given stays as it was.
    """
    return dataclasses.replace(
        found,
        preprocessing=preprocessing or found.preprocessing,
        labels=found.labels if labels is None else tuple(labels),
    )


def _of_weights(library: str, name: str) -> tuple[Preprocessing | None, tuple[str, ...] | None]:
    if library == "timm":
        from cutset.models.from_timm import images_and_labels_of
    else:
        from cutset.models.from_torchvision import images_and_labels_of
    return images_and_labels_of(name)


def _read(source: str) -> bytes:
    try:
        with Path(source).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise ModelError(f"{source} has more than {_MAX_FILE_BYTES >> 20} MiB")
    return data
