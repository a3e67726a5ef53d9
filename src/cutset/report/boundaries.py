"""What was verified, boundary by boundary, as plain data."""

from __future__ import annotations

import dataclasses

from cutset.bundles.manifest import StageEntry
from cutset.bundles.proof.results import BoundaryNumbers
from cutset.graph.cuts import CutPoints
from cutset.planning.plan import Plan
from cutset.report.sources import ReportSources
from cutset.tensors import TensorSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boundary:
    """What crosses between two stages, or leaves the last one.

    Attributes:
        stage: index of the stage that returns it.
        name: the cut point, ``"output"`` after the last stage.
        goes_to: ``"stage 1"`` or ``"the caller"``.
        contract: every tensor with its shape and dtype.
        bytes_per_row: of all of them.
        sent_bytes_per_row: of these, those that travel.
        codec: with which they travel.
        torch_difference: from the reference, in words; ``""`` where it was not looked at.
        onnx_difference: the same with onnxruntime.
        is_ok: whether every difference is within its tolerance; None where none was looked at.
    """

    stage: int
    name: str
    goes_to: str
    contract: tuple[str, ...]
    bytes_per_row: int
    sent_bytes_per_row: int
    codec: str
    torch_difference: str
    onnx_difference: str
    is_ok: bool | None


def boundaries(sources: ReportSources) -> tuple[Boundary, ...]:
    """The boundaries of a plan, in pipeline order, with what verification found there."""
    plan = sources.plan
    found = sources.verification.boundaries if sources.verification else ()
    rows = []
    for stage in plan.stages:
        here = [each for each in found if each.stage == stage.index]
        is_last = stage.index == len(plan.stages) - 1
        rows.append(
            Boundary(
                stage=stage.index,
                name=stage.last,
                goes_to="the caller" if is_last else f"stage {stage.index + 1}",
                contract=_contract(plan, stage.index, sources.cuts, sources.contracts),
                bytes_per_row=stage.output_bytes_per_sample,
                sent_bytes_per_row=stage.travelling_bytes,
                codec=stage.codec,
                torch_difference=_difference([n for n in here if n.backend == "torch"]),
                onnx_difference=_difference([n for n in here if n.backend == "onnxruntime"]),
                is_ok=all(_is_ok(each) for each in here) if here else None,
            )
        )
    return tuple(rows)


def _contract(
    plan: Plan, index: int, cuts: CutPoints | None, contracts: tuple[StageEntry, ...]
) -> tuple[str, ...]:
    specs: tuple[TensorSpec, ...] = ()
    if contracts:
        specs = contracts[index].outputs
    elif cuts is not None:
        stop = plan.stages[index].stop
        specs = next((p.tensors for p in cuts.points if p.position == stop), ())
    return tuple(f"{spec.name}: {spec}" for spec in specs)


def _is_ok(numbers: BoundaryNumbers) -> bool:
    return numbers.max_abs_error is not None and numbers.max_abs_error <= numbers.tolerance


def _difference(numbers: list[BoundaryNumbers]) -> str:
    """The largest difference against its tolerance, in words."""
    if not numbers:
        return ""
    if any(each.max_abs_error is None for each in numbers):
        return "another shape or dtype"
    worst = max(numbers, key=lambda each: (not _is_ok(each), each.max_abs_error or 0.0))
    if not worst.max_abs_error:
        return "none: equal bit for bit"
    return f"{worst.max_abs_error:.3g} (allowed {worst.tolerance:.3g})"
