"""Which models the coverage run tries: all of torchvision, one of each family of timm."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

import timm
import torch
from timm.models import _registry as timm_registry
from torchvision import models as zoo

TORCHVISION_GROUPS = {
    "classification": zoo,
    "segmentation": zoo.segmentation,
    "video": zoo.video,
    "optical flow": zoo.optical_flow,
    "quantised": zoo.quantization,
    "detection": zoo.detection,
}
MOST_PIXELS = 600 * 600
"""Members of a timm family with a larger input are passed over where there are smaller ones."""


def coverage_list() -> Iterator[tuple[str, str]]:
    """Pairs of a group's name and a model's spec, cheap groups first."""
    for group, module in TORCHVISION_GROUPS.items():
        for name in zoo.list_models(module=module):
            yield group, f"torchvision:{name}"
    for name in one_per_timm_family():
        yield "timm", f"timm:{name}"


def one_per_timm_family() -> tuple[str, ...]:
    """The cheapest member of every family of timm: parameters times pixels.

    A family is a module of timm together with the letters that its models' names begin with: a
    module like ``resnet`` holds several architectures. Models are built on the meta device.
    """
    families: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in timm.list_models():
        prefix = re.match(r"[a-z]+", name)
        assert prefix is not None
        families[timm_registry._model_to_module[name], prefix[0]].append(name)
    return tuple(min(names, key=_cost) for _, names in sorted(families.items()))


def _cost(name: str) -> tuple[bool, float]:
    """Whether the model is odd (made for tests, large input), and its parameters times pixels."""
    size = (timm.get_pretrained_cfg(name, allow_unregistered=True) or _NoSize).input_size
    pixels = float(size[-1] * size[-2]) if size else 224.0 * 224
    is_odd = name.startswith("test_") or pixels > MOST_PIXELS
    with torch.device("meta"):
        try:
            model = timm.create_model(name)
        except (RuntimeError, NotImplementedError, AssertionError):
            return True, pixels * 1e9
    return is_odd, sum(p.numel() for p in model.parameters()) * pixels


class _NoSize:
    """Stands for a model without a configuration."""

    input_size = None
