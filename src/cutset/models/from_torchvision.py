"""Models that torchvision can build, with the weights that it knows.

What a builder makes depends on the weights it is given: whether an input is transformed, which
auxiliary heads stay, which epsilon a normalisation has, how large the input is. So every model is
built with an entry of its weights enum, as torchvision's users build it, and where other numbers
are wanted, they take the place of the download.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import re
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import nn
from torchvision import models as zoo
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import InterpolationMode, _presets

from cutset.data.images import Preprocessing
from cutset.errors import ModelError, WeightsMismatch
from cutset.models.checkpoint import StateDict, pick_state, read_checkpoint
from cutset.models.found import FoundModel, random_rows
from cutset.models.randomise import randomise
from cutset.models.weights import (
    check_state,
    describe_file,
    has_versions,
    in_order_of,
    with_casts,
    with_versions_of,
)
from cutset.models.weights_request import (
    HOW_TO_GIVE_WEIGHTS,
    NamedWeights,
    RandomWeights,
    WeightsFile,
    WeightsRequest,
    file_sha256,
    near_names,
)
from cutset.printable import first_line

logger = logging.getLogger(__name__)

_NUM_FRAMES = 16
"""Frames of a clip where the weights ask for fewer or do not say; all video models take it."""

_ENTRY_LOCK = threading.Lock()


def find_in_torchvision(name: str, request: WeightsRequest | None) -> FoundModel:
    """Builds a registered model; see `cutset.models.find_model`.

    Raises:
        ModelError: unknown model or weights, or weights that cannot be downloaded or read.
        WeightsMismatch: a file of weights is for another model.
    """
    name = name.lower()
    if name not in zoo.list_models():
        raise ModelError(f"torchvision has no model {name!r}{near_names(name, zoo.list_models())}")
    try:
        entries = zoo.get_model_weights(name)
        default = entries.DEFAULT
    except (ValueError, AttributeError) as error:
        raise ModelError(
            f"torchvision:{name} declares no weights, which would tell its input size; write a "
            "factory that returns it with example inputs (FILE.py:FACTORY)"
        ) from error
    request = request or NamedWeights(name="DEFAULT")
    if isinstance(request, NamedWeights):
        entry = _named_entry(name, entries, request.name)
        return _found(name, _download(name, entry), entry, f"torchvision {entry!r}")
    if isinstance(request, RandomWeights):
        # A quantised entry names the one with floating-point weights that it was made from.
        return _random(name, default.meta.get("unquantized", default), request.seed)
    return _from_file(name, entries, request)


def images_and_labels_of(name: str) -> tuple[Preprocessing | None, tuple[str, ...] | None]:
    """How images become rows for weights, and the names of their classes; None what they lack.

    Args:
        name: of weights, as ``ResNet50_Weights.IMAGENET1K_V2``, or of a model for its default ones.

    Raises:
        ModelError: torchvision has neither.
    """
    try:
        entry: Any = (
            zoo.get_weight(name) if "." in name else zoo.get_model_weights(name.lower()).DEFAULT
        )
    except (ValueError, AttributeError, KeyError) as error:
        near = near_names(name, zoo.list_models())
        raise ModelError(
            f"torchvision has no weights or model {name!r}{near}; write a model's name or, as "
            "example, ResNet50_Weights.IMAGENET1K_V2"
        ) from error
    transforms = entry.transforms()
    labels = entry.meta.get("categories") if _gives_one_answer(transforms) else None
    return _preprocessing(transforms), tuple(labels) if labels else None


def _gives_one_answer(transforms: nn.Module) -> bool:
    """Whether a model of these transforms gives one label to a row."""
    return isinstance(transforms, _presets.ImageClassification | _presets.VideoClassification)


def _named_entry(name: str, entries: Any, wanted: str) -> Any:
    wanted = wanted.removeprefix(f"{entries.__name__}.")
    if wanted not in entries.__members__:
        raise ModelError(
            f"torchvision:{name} has no weights {wanted!r}; it has DEFAULT, "
            f"{', '.join(entry.name for entry in entries)}; or {HOW_TO_GIVE_WEIGHTS}"
        )
    return entries[wanted]


def _download(name: str, entry: Any) -> nn.Module:
    try:
        return _build(name, entry)
    except OSError as error:
        raise ModelError(
            f"torchvision:{name}: weights {entry!r} are not in the local cache and cannot be "
            f"downloaded ({getattr(error, 'reason', None) or error}); {HOW_TO_GIVE_WEIGHTS}"
        ) from error
    except RuntimeError as error:
        # torch.hub raises it where the downloaded file has another hash than its name says.
        raise ModelError(
            f"torchvision:{name}: weights {entry!r} do not load: {first_line(error)}; "
            f"{HOW_TO_GIVE_WEIGHTS}"
        ) from error


def _build(name: str, entry: Any) -> nn.Module:
    """Calls the builder; its own first random numbers leave the caller's generator as it was."""
    parameters = inspect.signature(zoo.get_model_builder(name)).parameters
    options: dict[str, Any] = {"progress": False} if "progress" in parameters else {}
    if "quantize" in parameters:
        options["quantize"] = "backend" in entry.meta
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # How torchvision will initialise one day does not matter: every number is replaced.
        warnings.filterwarnings(
            "ignore", message="The default weight initialization", category=FutureWarning
        )
        torch.manual_seed(0)
        model: nn.Module = zoo.get_model(name, weights=entry, **options)
    return model.eval()


@contextlib.contextmanager
def _instead_of_download(entry: Any, state: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Lets `entry` give `state` for as long as the context lasts."""
    with _ENTRY_LOCK:
        entry.get_state_dict = lambda *_args, **_kwargs: state
        try:
            yield
        finally:
            del entry.get_state_dict


def _module_being_loaded(error: BaseException) -> nn.Module | None:
    """The module in whose `load_state_dict` an error was raised, or None."""
    frame = error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        if frame.tb_frame.f_code.co_name == "load_state_dict" and isinstance(owner, nn.Module):
            return owner
        frame = frame.tb_next
    return None


def _skeleton(name: str, entry: Any) -> nn.Module:
    """The model as it is when the builder begins to load the entry's weights.

    Nothing but the builder knows its names and shapes. So the builder is given a state dict
    without entries, which `load_state_dict` refuses; the model is taken from where it did.
    """
    try:
        with _instead_of_download(entry, {}):
            return _build(name, entry)  # a model without any state
    except Exception as error:
        model = _module_being_loaded(error)
        if model is None:
            raise
        return model


def _random(name: str, entry: Any, seed: int) -> FoundModel:
    with _instead_of_download(entry, _skeleton(name, entry).state_dict()):
        model = _build(name, entry)
    found = _found(name, model, entry, f"random, seed {seed}", labels=False)
    randomise(model, found.example_inputs, seed)
    return found


def _from_file(name: str, entries: Any, request: WeightsFile) -> FoundModel:
    sets = read_checkpoint(request.path)
    sha256 = file_sha256(request.path)
    known = _entry_of_file(entries, request.path.name, sha256)
    others = [entry for entry in entries if entry is not entries.DEFAULT]
    mismatch: WeightsMismatch | None = None
    for entry in [known] if known is not None else [entries.DEFAULT, *others]:
        try:
            expected = functools.cache(lambda entry=entry: _skeleton(name, entry).state_dict())
            picked = pick_state(sets, request, expected)
            named = picked.state
            if request.by_order:
                named = in_order_of(expected(), named, request.path)
            model = _load(name, entry, named, request)
        except WeightsMismatch as error:
            mismatch = mismatch or error
            continue
        remark = with_casts(picked.remark, model.state_dict(), named, request.path)
        words = describe_file(request, sha256, remark)
        if known is not None:
            words += f", torchvision {entry!r}"
        else:
            words += f"; preprocessing and labels are assumed to be those of {entry!r}"
        return _found(name, model, entry, words)
    assert mismatch is not None, "an enum of weights has at least one entry"
    raise mismatch


def _load(name: str, entry: Any, state: StateDict, request: WeightsFile) -> nn.Module:
    try:
        with _instead_of_download(entry, state):
            return _build(name, entry)
    except Exception as error:
        model = _module_being_loaded(error)
        if model is None:
            raise
        expected = model.state_dict()
        check_state(expected, state, request.path)
        if not has_versions(state):
            return _load(name, entry, with_versions_of(expected, state), request)
        raise ModelError(
            f"weights file {request.path} does not load into torchvision:{name}: "
            f"{first_line(error)}"
        ) from error


def _entry_of_file(entries: Any, file_name: str, sha256: str) -> Any:
    """The entry whose file this is, by the hash in its URL or by the file's name, or None."""
    by_name = None
    for entry in entries:
        published = PurePosixPath(entry.url).name
        prefix = re.search(r"-([0-9a-f]{8,64})\.", published)
        if prefix is not None and sha256.startswith(prefix[1]):
            return entry
        if published == file_name:
            by_name = entry
    return by_name


def _found(
    name: str, model: nn.Module, entry: Any, words: str, *, labels: bool = True
) -> FoundModel:
    transforms = entry.transforms()
    named = labels and _gives_one_answer(transforms)
    return FoundModel(
        model=model,
        name=f"torchvision:{name}",
        weights=words,
        example_inputs=_example_inputs(name, model, entry, transforms),
        preprocessing=_preprocessing(transforms),
        labels=tuple(entry.meta["categories"]) if named else None,
    )


def _preprocessing(transforms: nn.Module) -> Preprocessing | None:
    """How an image becomes a row; None where the input is no single image of one size."""
    if not isinstance(transforms, _presets.ImageClassification):
        return None
    (resize,), (crop,) = transforms.resize_size, transforms.crop_size
    mean, std = transforms.mean, transforms.std
    return Preprocessing(
        resize=resize,
        crop=(crop, crop),
        interpolation=InterpolationMode(transforms.interpolation).value,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def _example_inputs(
    name: str, model: nn.Module, entry: Any, transforms: nn.Module
) -> tuple[torch.Tensor, ...]:
    """Two rows of the size that the weights' transforms give.

    Segmentation: a square of the length that the shorter side gets. Detection: a square of the
    length to which the model itself resizes. Optical flow: two frames of the smallest size.
    """
    if isinstance(transforms, _presets.ImageClassification):
        return random_rows((2, 3, transforms.crop_size[0], transforms.crop_size[0]))
    if isinstance(transforms, _presets.VideoClassification):
        num_frames = max(_NUM_FRAMES, entry.meta.get("min_temporal_size", 1))
        return random_rows((2, 3, num_frames, *transforms.crop_size))
    if isinstance(transforms, _presets.SemanticSegmentation) and transforms.resize_size:
        return random_rows((2, 3, transforms.resize_size[0], transforms.resize_size[0]))
    if isinstance(transforms, _presets.OpticalFlow):
        shape = (2, 3, *entry.meta["min_size"])
        return random_rows(shape, shape)
    resizing = getattr(model, "transform", None)
    if isinstance(resizing, GeneralizedRCNNTransform):
        length = int(resizing.min_size[-1])
        return random_rows((2, 3, length, length))
    raise ModelError(
        f"torchvision:{name}: its weights do not tell its input size; write a factory that "
        "returns it with example inputs (FILE.py:FACTORY)"
    )
