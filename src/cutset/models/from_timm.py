"""Models that timm can build, with the weights that it knows."""

from __future__ import annotations

import socket
import urllib.request
from typing import Any
from urllib.parse import urlsplit

import torch

from cutset.data.images import INTERPOLATIONS, Preprocessing
from cutset.errors import ModelError
from cutset.models.found import FoundModel, random_rows
from cutset.models.randomise import randomise
from cutset.models.weights import load_weights_file
from cutset.models.weights_request import (
    HOW_TO_GIVE_WEIGHTS,
    NamedWeights,
    RandomWeights,
    WeightsRequest,
    near_names,
)
from cutset.printable import first_line


def find_in_timm(name: str, request: WeightsRequest | None) -> FoundModel:
    """Builds a model of timm; see `cutset.models.find_model`.

    Raises:
        ModelError: timm is not installed, unknown model or weights, or weights that cannot be
            downloaded or read.
        WeightsMismatch: a file of weights is for another model.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ModelError(
            f"timm:{name} needs timm, which is not installed; pip install 'cutset[timm]'"
        ) from error
    architecture, _dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = near_names(architecture, timm.list_models())
        raise ModelError(f"timm has no model {architecture!r}{near}")
    request = request or NamedWeights(name="DEFAULT")
    if isinstance(request, NamedWeights) and request.name != "DEFAULT":
        tag = request.name
    tags = [
        full.partition(".")[2]
        for full in timm.list_pretrained(f"{architecture}*")
        if full.partition(".")[0] == architecture
    ]
    if tag and tag not in tags:
        raise ModelError(
            f"timm:{architecture} has no weights {tag!r}{near_names(tag, tags)}; it has "
            f"{', '.join(tags) or 'none'}; or {HOW_TO_GIVE_WEIGHTS}"
        )
    full_name = f"{architecture}.{tag}" if tag else architecture
    if isinstance(request, NamedWeights):
        if not tags:
            raise ModelError(f"timm:{architecture} has no weights; {HOW_TO_GIVE_WEIGHTS}")
        model = _download(full_name)
        words = f"timm {model.pretrained_cfg['architecture']}.{model.pretrained_cfg['tag']}"
        return _found(name, model, words, labels=_labels(model.pretrained_cfg))
    model = _build(full_name)
    if isinstance(request, RandomWeights):
        found = _found(name, model, f"random, seed {request.seed}", labels=None)
        randomise(model, found.example_inputs, request.seed)
        return found
    words = (
        f"{load_weights_file(model, request)}; preprocessing and labels are assumed to be those "
        f"of timm {model.pretrained_cfg.get('architecture')}.{model.pretrained_cfg.get('tag')}"
    )
    return _found(name, model, words, labels=_labels(model.pretrained_cfg))


def _build(full_name: str, *, pretrained: bool = False) -> Any:
    """Builds a model without leaving a trace in torch's random number generator."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return timm.create_model(full_name, pretrained=pretrained).eval()


def _download(full_name: str) -> Any:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(full_name)
    repository = getattr(config, "hf_hub_id", None)
    if repository and (reason := _why_out_of_reach(repository)):
        raise ModelError(
            f"timm:{full_name}: its weights are not in the local cache and cannot be "
            f"downloaded ({reason}); {HOW_TO_GIVE_WEIGHTS}"
        )
    try:
        return _build(full_name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"timm:{full_name}: weights cannot be had ({first_line(error)}); {HOW_TO_GIVE_WEIGHTS}"
        ) from error


def _why_out_of_reach(repository: str) -> str:
    """Why a hub's files can be neither read from the cache nor downloaded, or ``""``.

    The hub's own client would try for most of a minute before it says that a name cannot be
    resolved. Behind a proxy the name need not be known here, so nothing is said then.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return ""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if urllib.request.getproxies():
        return ""
    host = urlsplit(constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        return f"{host}: {error.strerror or error}"
    return ""


def _found(name: str, model: Any, words: str, *, labels: tuple[str, ...] | None) -> FoundModel:
    size = model.pretrained_cfg.get("input_size")
    if not size:
        raise ModelError(
            f"timm:{name} declares no input size; write a factory that returns it with example "
            "inputs (FILE.py:FACTORY)"
        )
    return FoundModel(
        model=model,
        name=f"timm:{name}",
        weights=words,
        example_inputs=random_rows((2, *size)),
        preprocessing=_preprocessing(model.pretrained_cfg),
        labels=labels,
    )


def images_and_labels_of(name: str) -> tuple[Preprocessing | None, tuple[str, ...] | None]:
    """How images become rows for weights, and the names of their classes; None what they lack.

    Args:
        name: of a model, with or without the tag of its weights.

    Raises:
        ModelError: timm is not installed, or has no such model or weights.
    """
    try:
        import timm
        from timm.models import get_pretrained_cfg
    except ModuleNotFoundError as error:
        raise ModelError(
            f"timm:{name} needs timm, which is not installed; pip install 'cutset[timm]'"
        ) from error
    config = get_pretrained_cfg(name)
    if config is None:
        known = timm.list_pretrained() if "." in name else timm.list_models()
        raise ModelError(f"timm has no weights of the name {name!r}{near_names(name, known)}")
    return _preprocessing(config.to_dict()), _labels(config.to_dict())


def _preprocessing(weights: dict[str, Any]) -> Preprocessing | None:
    """How timm's own evaluation transform makes a row; None where it has another form."""
    from timm.data import resolve_data_config

    config = resolve_data_config({}, pretrained_cfg=weights)
    channels, height, width = config["input_size"]
    interpolation, mode = config["interpolation"], config["crop_mode"]
    if channels != 3 or interpolation not in INTERPOLATIONS:
        return None
    resized = tuple(int(length / config["crop_pct"]) for length in (height, width))
    if mode == "center" and height == width:
        resize: int | tuple[int, int] = resized[0]
    elif mode == "squash":
        resize = (resized[0], resized[1])
    else:
        return None
    mean, std = config["mean"], config["std"]
    return Preprocessing(
        resize=resize,
        crop=(height, width),
        interpolation=interpolation,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
    )


def _labels(weights: dict[str, Any]) -> tuple[str, ...] | None:
    """Names of ImageNet's classes where the number of classes tells which of its sets it is."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(weights)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return tuple(
        info.index_to_description(index, detailed=False) for index in range(info.num_classes())
    )
