"""The six models for a small image, as a user's own file: the architectures are torchvision's.

Only the two wide layers before the classifiers of AlexNet and VGG16 are thinner, since writing half
a gigabyte of weights would take most of the time and show nothing.
"""

from __future__ import annotations

import itertools

import torch
import torchvision
from torch import nn

from cutset.models.randomise import randomise

IMAGE = 45
"""Height and width; AlexNet and InceptionV3 take no less than 63 and 75."""

_THIN = 32


def _made(model: nn.Module, image: int = IMAGE) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    model = model.to_empty(device="cpu").eval()
    for buffer in model.buffers():
        buffer.zero_()
    generator = torch.Generator().manual_seed(0)
    example = (torch.randn(2, 3, image, image, generator=generator),)
    randomise(model, example, seed=0)
    return model, example


def _thin(classifier: nn.Sequential) -> None:
    linear = [k for k, layer in enumerate(classifier) if isinstance(layer, nn.Linear)]
    widths = [classifier[linear[0]].in_features, _THIN, _THIN, 1000]
    for k, (inside, outside) in zip(linear, itertools.pairwise(widths), strict=True):
        classifier[k] = nn.Linear(inside, outside)


def alexnet():
    with torch.device("meta"):
        model = torchvision.models.alexnet()
        _thin(model.classifier)
    return _made(model, 63)


def vgg16():
    with torch.device("meta"):
        model = torchvision.models.vgg16()
        _thin(model.classifier)
    return _made(model)


def resnet18():
    with torch.device("meta"):
        model = torchvision.models.resnet18()
    return _made(model)


def resnet50():
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    return _made(model)


def mobilenet_v2():
    with torch.device("meta"):
        model = torchvision.models.mobilenet_v2()
    return _made(model)


def inception_v3():
    with torch.device("meta"):
        model = torchvision.models.inception_v3(init_weights=False)
    return _made(model, 75)
