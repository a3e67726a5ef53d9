"""Checks that a machine can have the sizes in a manifest, before any of them is used.

A shape costs its author nothing. Memory is laid out by it, so what is far beyond any real
model is refused where it is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cutset.bundles.strict_json import contradiction
from cutset.capture.setting_values import TORCH_SETTINGS
from cutset.planning.plan import GROUPS_FORMAT, PLAN_FORMAT, Plan
from cutset.tensors import MAX_RANK, TensorSpec, dim_factor

if TYPE_CHECKING:
    from cutset.bundles.manifest import Manifest

MAX_LENGTH = (1 << 31) - 1
MAX_ROW_BYTES = 1 << 31
"""Most bytes of one row of a tensor that crosses a boundary."""
MAX_MICRO_BATCH_BYTES = 1 << 36
"""Most bytes of a tensor that crosses a boundary, with all rows of a micro-batch."""
MAX_INNER_ROW_BYTES = 1 << 40
"""Most bytes of one row of a tensor within a stage."""


def check_sizes(manifest: Manifest) -> None:
    """Checks shapes, and the plan's numbers, which other code takes as they are.

    Raises:
        ManifestError: one is beyond its range; `path` is its JSON path.
    """
    rows = max(manifest.plan.micro_batch, manifest.micro_batch_only or 1)
    for place, spec in _boundary_specs(manifest):
        _check_tensor(place, spec, MAX_ROW_BYTES)
        num_bytes = spec.num_bytes(rows)
        if num_bytes > MAX_MICRO_BATCH_BYTES:
            raise contradiction(
                place,
                f"takes {num_bytes} bytes with the {rows} rows of a micro-batch, at most "
                f"{MAX_MICRO_BATCH_BYTES} are permitted",
            )
    for index, operation in enumerate(manifest.graph.operations):
        for number, spec in enumerate(operation.outputs):
            place = f"$.graph.operations[{index}].outputs[{number}]"
            _check_tensor(place, spec, MAX_INNER_ROW_BYTES)
    _check_plan(manifest.plan, len(manifest.graph.operations))
    for name, value in (manifest.torch_settings or {}).items():
        values = TORCH_SETTINGS.get(name, ())
        if value not in values:
            raise contradiction(
                f"$.torch_settings.{name[:120]}",
                f"is {value[:60]!r}, expected {' or '.join(values) or 'no such setting'}",
            )


def _boundary_specs(manifest: Manifest) -> Iterator[tuple[str, TensorSpec]]:
    groups = [("$.graph.inputs", manifest.graph.inputs), ("$.outputs", manifest.outputs)]
    for index, stage in enumerate(manifest.stages):
        groups.append((f"$.stages[{index}].inputs", stage.inputs))
        groups.append((f"$.stages[{index}].outputs", stage.outputs))
    for place, specs in groups:
        for number, spec in enumerate(specs):
            yield f"{place}[{number}]", spec


def _check_tensor(place: str, spec: TensorSpec, max_row_bytes: int) -> None:
    if len(spec.shape) > MAX_RANK:
        raise contradiction(
            f"{place}.shape", f"has {len(spec.shape)} dimensions, at most {MAX_RANK} are permitted"
        )
    for number, dim in enumerate(spec.shape):
        length = dim if isinstance(dim, int) else dim_factor(dim) or 1
        if length > MAX_LENGTH:
            raise contradiction(
                f"{place}.shape[{number}]", f"is {dim}, at most {MAX_LENGTH} is permitted"
            )
    if spec.bytes_per_sample > max_row_bytes:
        raise contradiction(
            f"{place}.shape",
            f"makes {spec.bytes_per_sample} bytes a row, at most {max_row_bytes} are permitted",
        )


def _check_plan(plan: Plan, num_operations: int) -> None:
    if plan.format not in (PLAN_FORMAT, GROUPS_FORMAT):
        formats = f"{PLAN_FORMAT!r} or {GROUPS_FORMAT!r}"
        raise contradiction("$.plan.format", f"is {plan.format[:60]!r}, expected {formats}")
    for index, stage in enumerate(plan.stages):
        place = f"$.plan.stages[{index}]"
        if stage.index != index:
            raise contradiction(f"{place}.index", f"is {stage.index}, expected {index}")
        if not stage.start <= stage.stop <= num_operations:
            raise contradiction(
                f"{place}.stop",
                f"is {stage.stop}, expected {stage.start} (start) to {num_operations}, the number "
                "of operations",
            )
    for index, message in enumerate(plan.messages):
        if message.after is not None and message.after >= len(plan.stages):
            raise contradiction(
                f"$.plan.messages[{index}].after",
                f"is {message.after}, the plan has {len(plan.stages)} stages",
            )
    if plan.expected is not None:
        wanted = len(plan.stages)
        for key, times, count in (
            ("compute_s", plan.expected.compute_s, wanted),
            ("message_s", plan.expected.message_s, wanted + 1),
        ):
            if len(times) != count:
                raise contradiction(
                    f"$.plan.expected.{key}", f"has {len(times)} entries, expected {count}"
                )
