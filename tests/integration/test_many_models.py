"""Thirty very different models, none of which the rules were written for, cut and compared.

Each is cut into as many as four stages of even multiply-adds, small images throughout; the chain
of pieces must equal the whole model bit for bit with 1, 2 and 5 rows. For all of them at their own
size `benchmarks/coverage_models.py` does the same, by way of exported stages and ONNX.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cutset.capture.captured_model import CapturedModel
from cutset.capture.pieces import build_piece
from cutset.capture.torch_export import capture_model
from cutset.cluster.devices import equal_cluster
from cutset.costs.cost_model import costs_from_flops
from cutset.graph.cuts import CutPoints, find_cut_points
from cutset.models.randomise import randomise
from cutset.planning import PlanRequest, make_plan

# Name, length of the image's sides, tensors across a cut, options of the builder.
TORCHVISION: list[tuple[str, int, int, Mapping[str, Any]]] = [
    ("densenet121", 32, 1, {}),
    ("googlenet", 64, 1, {"aux_logits": False, "init_weights": False}),
    ("shufflenet_v2_x0_5", 64, 1, {}),
    ("efficientnet_b0", 32, 1, {}),
    ("regnet_y_400mf", 32, 1, {}),
    ("convnext_tiny", 32, 1, {}),
    ("vit_b_32", 64, 1, {"image_size": 64}),
    ("swin_t", 64, 1, {}),
    ("squeezenet1_1", 64, 1, {}),
    ("lraspp_mobilenet_v3_large", 64, 2, {"weights_backbone": None}),
    ("fcn_resnet50", 32, 2, {"weights_backbone": None, "aux_loss": True}),
]
TIMM: list[tuple[str, int, int, Mapping[str, Any]]] = [
    ("cait_xxs24_224", 64, 1, {"img_size": 64}),
    ("coat_tiny", 64, 3, {"img_size": 64}),
    ("crossvit_tiny_240", 240, 2, {}),
    ("davit_tiny", 64, 1, {}),
    ("edgenext_xx_small", 64, 1, {}),
    ("ghostnet_050", 64, 1, {}),
    ("hrnet_w18_small", 64, 4, {}),
    ("levit_128s", 224, 1, {}),
    ("mixer_s16_224", 64, 1, {"img_size": 64}),
    ("mobilevit_xxs", 64, 1, {}),
    ("poolformer_s12", 64, 1, {}),
    ("resnetv2_18", 64, 1, {}),
    ("sequencer2d_s", 56, 1, {"img_size": 56}),
    ("test_nfnet", 64, 1, {}),
    ("test_vit", 160, 1, {}),
    ("tnt_s_legacy_patch16_224", 64, 2, {"img_size": 64}),
    ("xcit_nano_12_p8_224", 64, 1, {}),
]
MOST_STAGES = 4


def _video() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return torchvision.models.video.mc3_18(weights=None), (torch.randn(2, 3, 4, 32, 32),)


def _flow() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = torchvision.models.optical_flow.raft_small(weights=None)
    # As often as a model for tests needs to update its flow.
    forward = model.forward
    model.forward = lambda first, second: forward(first, second, num_flow_updates=2)
    return model, (torch.randn(2, 3, 128, 128), torch.randn(2, 3, 128, 128))


def _stages(captured: CapturedModel, cuts: CutPoints) -> tuple[int, ...]:
    """Edges of as many even stages as there can be, four at most."""
    num_stages = min(MOST_STAGES, len(cuts.points) + 1)
    costs = costs_from_flops(captured.graph, cuts)
    plan = make_plan(
        captured.graph,
        cuts,
        costs,
        PlanRequest(cluster=equal_cluster(num_stages), num_stages=num_stages),
    )
    return (0, *(stage.stop for stage in plan.stages))


def _check(model: nn.Module, example: tuple[Tensor, ...], max_tensors: int) -> None:
    randomise(model, example, 0)
    captured = capture_model(model, example)
    cuts = find_cut_points(captured.graph, max_tensors=max_tensors)
    edges = _stages(captured, cuts)
    assert len(edges) > 2, "the model should have a cut point"
    pieces = [build_piece(captured, start, stop) for start, stop in pairwise(edges)]
    for num_rows in (1, 2, 5):
        rows = tuple(torch.randn(num_rows, *t.shape[1:]) for t in captured.example_inputs)
        with torch.inference_mode():
            whole = captured.call(model, rows)
            values: dict[str, Tensor] = {
                spec.name: tensor for spec, tensor in zip(captured.graph.inputs, rows, strict=True)
            }
            for piece in pieces:
                results = piece(*(values[spec.name] for spec in piece.input_specs))
                # Nothing but what the contract names goes on.
                values = {
                    spec.name: tensor
                    for spec, tensor in zip(piece.output_specs, results, strict=True)
                }
                for spec in piece.output_specs:
                    assert tuple(values[spec.name].shape) == spec.concrete_shape(num_rows)
        for name, expected in zip(captured.graph.outputs, pytree.tree_leaves(whole), strict=True):
            assert torch.equal(values[name], expected), (name, num_rows)


@pytest.mark.parametrize(
    ("name", "side", "max_tensors", "options"), TORCHVISION, ids=[row[0] for row in TORCHVISION]
)
def test_of_torchvision(name: str, side: int, max_tensors: int, options: Mapping[str, Any]) -> None:
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    _check(model, (torch.randn(2, 3, side, side),), max_tensors)


@pytest.mark.parametrize(
    ("name", "side", "max_tensors", "options"), TIMM, ids=[row[0] for row in TIMM]
)
def test_of_timm(name: str, side: int, max_tensors: int, options: Mapping[str, Any]) -> None:
    model = timm.create_model(name, **options).eval()
    _check(model, (torch.randn(2, 3, side, side),), max_tensors)


def test_a_clip() -> None:
    _check(*_video(), max_tensors=1)


def test_optical_flow() -> None:
    _check(*_flow(), max_tensors=6)
