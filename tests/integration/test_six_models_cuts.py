"""Where the six models may be cut: the lists in full, the halves, and the guide's two failures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torchvision.models import get_model, get_model_weights

from cutset.capture.torch_export import capture_graph
from cutset.workflow import plan_stages
from six_models import SIX, prepared

MOBILENET_V2 = [
    ("features.0", "activation"),
    ("features.1", "block"),
    ("features.2", "block"),
    ("features.3", "block"),
    ("features.4", "block"),
    ("features.5", "block"),
    ("features.6", "block"),
    ("features.7", "block"),
    ("features.8", "block"),
    ("features.9", "block"),
    ("features.10", "block"),
    ("features.11", "block"),
    ("features.12", "block"),
    ("features.13", "block"),
    ("features.14", "block"),
    ("features.15", "block"),
    ("features.16", "block"),
    ("features.17", "block"),
    ("features.18", "activation"),
    ("classifier.0", "pool"),
]
RESNET18 = [
    ("relu", "activation"),
    ("maxpool", "pool"),
    ("layer1.0", "block"),
    ("layer1.1", "block"),
    ("layer2.0", "block"),
    ("layer2.1", "block"),
    ("layer3.0", "block"),
    ("layer3.1", "block"),
    ("layer4.0", "block"),
    ("layer4.1", "block"),
    ("flatten", "pool"),
]
RESNET50 = [
    ("relu", "activation"),
    ("maxpool", "pool"),
    ("layer1.0", "block"),
    ("layer1.1", "block"),
    ("layer1.2", "block"),
    ("layer2.0", "block"),
    ("layer2.1", "block"),
    ("layer2.2", "block"),
    ("layer2.3", "block"),
    ("layer3.0", "block"),
    ("layer3.1", "block"),
    ("layer3.2", "block"),
    ("layer3.3", "block"),
    ("layer3.4", "block"),
    ("layer3.5", "block"),
    ("layer4.0", "block"),
    ("layer4.1", "block"),
    ("layer4.2", "block"),
    ("flatten", "pool"),
]
VGG16 = [
    ("features.1", "activation"),
    ("features.3", "activation"),
    ("features.4", "pool"),
    ("features.6", "activation"),
    ("features.8", "activation"),
    ("features.9", "pool"),
    ("features.11", "activation"),
    ("features.13", "activation"),
    ("features.15", "activation"),
    ("features.16", "pool"),
    ("features.18", "activation"),
    ("features.20", "activation"),
    ("features.22", "activation"),
    ("features.23", "pool"),
    ("features.25", "activation"),
    ("features.27", "activation"),
    ("features.29", "activation"),
    ("features.30", "pool"),
    ("flatten", "pool"),
    ("classifier.2", "head"),
    ("classifier.5", "head"),
]
ALEXNET = [
    ("features.1", "activation"),
    ("features.2", "pool"),
    ("features.4", "activation"),
    ("features.5", "pool"),
    ("features.7", "activation"),
    ("features.9", "activation"),
    ("features.11", "activation"),
    ("features.12", "pool"),
    ("classifier.0", "pool"),
    ("classifier.3", "head"),
    ("classifier.5", "head"),
]
INCEPTION_V3 = [
    ("Conv2d_1a_3x3", "activation"),
    ("Conv2d_2a_3x3", "activation"),
    ("Conv2d_2b_3x3", "activation"),
    ("maxpool1", "pool"),
    ("Conv2d_3b_1x1", "activation"),
    ("Conv2d_4a_3x3", "activation"),
    ("maxpool2", "pool"),
    ("Mixed_5b", "block"),
    ("Mixed_5c", "block"),
    ("Mixed_5d", "block"),
    ("Mixed_6a", "block"),
    ("Mixed_6b", "block"),
    ("Mixed_6c", "block"),
    ("Mixed_6d", "block"),
    ("Mixed_6e", "block"),
    ("Mixed_7a", "block"),
    ("Mixed_7b", "block"),
    ("Mixed_7c", "block"),
    ("flatten", "pool"),
]

LISTS = {
    "mobilenet_v2": MOBILENET_V2,
    "resnet18": RESNET18,
    "resnet50": RESNET50,
    "vgg16": VGG16,
    "alexnet": ALEXNET,
    "inception_v3": INCEPTION_V3,
}


@pytest.mark.parametrize("name", SIX)
def test_the_cut_points_are_exactly_these(name: str) -> None:
    assert [(point.after, point.kind) for point in prepared(name).cuts.points] == LISTS[name]


@pytest.mark.parametrize("name", SIX)
def test_the_drawing_in_the_documentation_shows_exactly_these(name: str) -> None:
    drawing = Path(__file__).parents[2] / "docs" / "images" / f"strip-{name}.svg"
    shown = re.findall(r"cut after: ([^;]+); kind: (\w+)", drawing.read_text(encoding="utf-8"))
    assert list(dict.fromkeys(shown)) == LISTS[name]


@pytest.mark.parametrize(
    ("name", "count"), list(zip(SIX, (20, 11, 19, 21, 11, 19), strict=True)), ids=SIX
)
def test_their_number(name: str, count: int) -> None:
    assert len(prepared(name).cuts.points) == count


@pytest.mark.parametrize("name", SIX)
def test_one_tensor_with_a_row_per_sample_crosses_each(name: str) -> None:
    for point in prepared(name).cuts.points:
        assert len(point.tensors) == 1
        assert point.tensors[0].shape[0] == "batch"
        assert point.tensors[0].dtype == "float32"


@pytest.mark.parametrize("name", SIX)
def test_flops_and_parameters_are_the_published_ones(name: str) -> None:
    graph = prepared(name).captured.graph
    meta = get_model_weights(name).DEFAULT.meta
    assert round(graph.flops / 1e9, 3) == meta["_ops"]
    assert graph.num_parameters == meta["num_params"]


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("alexnet", 1.16),
        ("vgg16", 1.05),
        ("resnet18", 1.11),
        ("resnet50", 1.09),
        ("mobilenet_v2", 1.03),
        ("inception_v3", 1.06),
    ],
)
def test_the_slowest_of_two_stages_is_near_half(name: str, most: float) -> None:
    plan = plan_stages(prepared(name), num_stages=2)
    flops = [stage.flops for stage in plan.stages]
    assert sum(flops) == prepared(name).captured.graph.flops
    assert max(flops) <= most * sum(flops) / 2
    assert plan.is_proven


def test_the_guides_resnet50_failure_is_refused_with_its_reason() -> None:
    refused = {point.position: point for point in prepared("resnet50").cuts.refused}
    # The guide's splitter cut ResNet50 at its layer 60, in the middle of a residual block.
    assert refused[60].reason == "inside layer2.2 (Bottleneck): 2 tensors live"


def test_the_guides_inception_failure_is_refused_with_its_reason() -> None:
    inside = {
        point.after: point.reason
        for point in prepared("inception_v3").cuts.refused
        if point.reason.startswith("inside Mixed_6a ")
    }
    assert inside["Mixed_6a.branch3x3"] == "inside Mixed_6a (InceptionB): 2 tensors live"
    assert inside["Mixed_6a.branch3x3dbl_3"] == "inside Mixed_6a (InceptionB): 3 tensors live"


@pytest.mark.parametrize(("name", "side"), [("inception_v3", 299), ("googlenet", 224)])
def test_auxiliary_heads_are_parameters_that_inference_never_reads(name: str, side: int) -> None:
    model = get_model(name, weights=None, init_weights=False, aux_logits=True)
    graph = capture_graph(model, torch.randn(2, 3, side, side))
    read = {parameter for op in graph.operations for parameter in op.parameters}
    unused = [p.name for p in graph.parameters if p.kind == "parameter" and p.name not in read]
    assert unused
    assert not [name for name in unused if "aux" not in name.lower()]
