"""Small bundles for tests, cut at given places by hand: no planner, no profile."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import torch
from torch import nn

from cutset.backends.base import StageProgram
from cutset.backends.selection import load_stage
from cutset.bundles.open import open_bundle
from cutset.bundles.write.export import export_bundle
from cutset.capture.captured_model import CapturedModel
from cutset.capture.torch_export import capture_model
from cutset.planning.plan import GROUPS_FORMAT, PLAN_FORMAT, Plan, Replica, StagePlan


def hand_plan(
    captured: CapturedModel,
    positions: tuple[int, ...],
    micro_batch: int,
    sizes: tuple[int, ...] = (),
) -> Plan:
    """A plan that cuts before the operations with the given indices.

    `sizes` are the replicas of each stage, with equal shares; none where each is one device.
    """
    operations = captured.graph.operations
    edges = (0, *positions, len(operations))
    stages = tuple(
        StagePlan(
            index=index,
            first=operations[start].name,
            last=operations[stop - 1].name,
            start=start,
            stop=stop,
            units=(),
            device=f"cpu:{index}",
            compute_s=0.001,
            send_s=0.0,
            weight_bytes=0,
            memory_bytes=0,
            output_bytes_per_sample=operations[stop - 1].bytes_per_sample,
            replicas=_group(index, sizes[index] if sizes else 1),
        )
        for index, (start, stop) in enumerate(itertools.pairwise(edges))
    )
    return Plan(
        format=GROUPS_FORMAT if max(sizes, default=1) > 1 else PLAN_FORMAT,
        objective="throughput",
        micro_batch=micro_batch,
        stages=stages,
        period_s=0.001,
        latency_s=0.001 * len(stages),
        bound_s=0.001,
        bound_by="exhaustion",
        gap=0.0,
    )


def _group(stage: int, size: int) -> tuple[Replica, ...]:
    """Replicas on ``cpu:STAGE`` and ``cpu:STAGE.1``, ...; none where it is one device."""
    names = [f"cpu:{stage}", *(f"cpu:{stage}.{number}" for number in range(1, size))]
    return tuple(
        Replica(device=name, share=1 / size, compute_s=0.001, memory_bytes=0)
        for name in names
        if size > 1
    )


def write_bundle(
    model: nn.Module,
    example: tuple[torch.Tensor, ...],
    positions: tuple[int, ...],
    directory: Path,
    *,
    micro_batch: int = 4,
    max_tensors: int = 1,
    sizes: tuple[int, ...] = (),
) -> Path:
    """Exports `model`, cut before the operations with the given indices."""
    captured = capture_model(model, example)
    plan = hand_plan(captured, positions, micro_batch, sizes)
    return export_bundle(model, plan, directory, captured=captured, max_tensors=max_tensors)


class SmallNet(nn.Module):
    """Convolutions, normalisation and a head: enough for kernels to differ by memory format."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.flatten(self.body(x), 1))


def small_net() -> SmallNet:
    """A seeded `SmallNet` in evaluation mode."""
    torch.manual_seed(7)
    model = SmallNet().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    return model


def whole_model(model: nn.Module, rows: torch.Tensor, micro_batch: int) -> torch.Tensor:
    """What the pipeline must equal bit for bit: the model over the same micro-batches."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in rows.split(micro_batch)])


@functools.cache
def _stages(bundle: Path, micro_batch: int) -> tuple[StageProgram, ...]:
    opened = open_bundle(bundle)
    return tuple(
        load_stage(opened, stage, backend="onnxruntime", num_threads=1, micro_batch=micro_batch)
        for stage in opened.stages
    )


def in_turn(bundle: Path, rows: torch.Tensor, micro_batch: int = 4) -> torch.Tensor:
    """What workers of ONNX Runtime must equal bit for bit: the stages one by one, in this process.

    Such a worker starts in a fifth of the time that one with torch takes. So those have it whose
    tests are of processes, threads and links; that the stages equal the model is tested elsewhere.
    """
    results = []
    for part in rows.split(micro_batch):
        arrays = (part.numpy(),)
        for stage in _stages(bundle, micro_batch):
            arrays = stage(arrays)
        results.append(torch.as_tensor(arrays[0]))
    return torch.cat(results)
