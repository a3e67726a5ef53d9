"""The JSON documents that scripts rely on: what `--json` prints.

Numbers are in the units that their names end in; sizes are for one row unless a name says
otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from cutset.graph.cuts import CutPoint, CutPoints
from cutset.graph.ir import Graph
from cutset.planning.plan import Plan
from cutset.tensors import TensorSpec

Document: TypeAlias = dict[str, Any]


class Part(Protocol):
    """A part of the user's model that was split in its place."""

    @property
    def path(self) -> str:
        """Of the module in the model."""

    @property
    def work_share(self) -> float:
        """The share of the whole model's work that it does, 0 to 1."""


def part_document(part: Part | None) -> Document | None:
    """The part that a document speaks of; null where it is the whole model."""
    return None if part is None else {"path": part.path, "work_share": part.work_share}


def inspection_document(
    model: str, graph: Graph, cuts: CutPoints, *, part: Part | None = None
) -> Document:
    """``cutset inspect --json``: units, cut points, refused positions with their reasons.

    Args:
        model: its name.
        graph: of the model, or of its part.
        cuts: of the same.
        part: what is captured of the model, where it is not the whole.
    """
    return {
        "model": model,
        "part": part_document(part),
        "flops": graph.flops,
        "parameters": graph.num_parameters,
        "units": [{"path": unit.path, "class": unit.class_name} for unit in cuts.units],
        "cut_points": [_cut_point(point) for point in cuts.points],
        "refused": [{"after": point.after, "reason": point.reason} for point in cuts.refused],
    }


def _cut_point(point: CutPoint) -> Document:
    return {
        "after": point.after,
        "kind": point.kind,
        "bytes_per_sample": point.bytes_per_sample,
        "tensors": [_tensor(spec) for spec in point.tensors],
        "cumulative_flops": point.cumulative_flops,
        "cumulative_parameters": point.cumulative_parameters,
    }


def _tensor(spec: TensorSpec) -> Document:
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def plan_document(
    plan: Plan,
    *,
    part: Part | None = None,
    bundle: str | None = None,
    gain_inside_units: float | None = None,
) -> Document:
    """``cutset plan --json`` and ``cutset split --json``: the whole plan.

    Args:
        plan: the plan.
        part: what was planned of the model, where it is not the whole.
        bundle: the folder that `split` wrote, or None.
        gain_inside_units: what cuts inside units would gain, as a fraction, if it was asked for.
    """
    document: Document = msgspec.to_builtins(plan)
    document["part"] = part_document(part)
    if bundle is not None:
        document["bundle"] = bundle
    if gain_inside_units is not None:
        document["gain_inside_units"] = gain_inside_units
    return document


def front_document(plans: Sequence[Plan], *, part: Part | None = None) -> Document:
    """``cutset plan --objective pareto --json``: the plans of the front, of rising period."""
    return {"plans": [plan_document(plan, part=part) for plan in plans]}


class Comparison(Protocol):
    """How far a tensor at a boundary is from the reference; see `VerificationReport`."""

    @property
    def stage(self) -> int:
        """Index of the stage that returned it."""

    @property
    def tensor(self) -> str:
        """Its name."""

    @property
    def max_abs_error(self) -> float:
        """The largest absolute difference; infinite where shape or dtype is another."""

    @property
    def tolerance(self) -> float:
        """The largest that is allowed."""

    @property
    def backend(self) -> str:
        """What computed it."""


def verification_document(
    checks: Sequence[tuple[str, bool, str]],
    max_abs_error: float | None,
    *,
    bit_exact: bool,
    comparisons: Sequence[Comparison] = (),
    part: Part | None = None,
) -> Document:
    """``cutset verify --json``: every check, and how far the numbers are apart.

    A difference that is no number, since shape or dtype is another, is null.
    """
    return {
        "ok": all(ok for _, ok, _ in checks),
        "part": part_document(part),
        "checks": [{"name": name, "ok": ok, "detail": detail} for name, ok, detail in checks],
        "max_abs_error": _finite(max_abs_error),
        "bit_exact": bit_exact,
        "boundaries": [
            {
                "stage": each.stage,
                "tensor": each.tensor,
                "backend": each.backend,
                "max_abs_error": _finite(each.max_abs_error),
                "tolerance": each.tolerance,
            }
            for each in comparisons
        ],
    }


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def run_document(
    names: Sequence[str],
    tops: Sequence[Sequence[tuple[str, float]]],
    seconds: float,
    failed: Sequence[tuple[str, str]],
    *,
    part: Part | None = None,
) -> Document:
    """``cutset run --json``: a row's input and its most likely labels.

    Args:
        names: what each row came from.
        tops: for each row the labels and their scores, the most likely first.
        seconds: from the first row in to the last one out.
        failed: inputs that could not be read, each with the reason.
        part: what the bundle holds of the model, where it is not the whole.
    """
    return {
        "part": part_document(part),
        "num_rows": len(names),
        "rows": [
            {"input": name, "top": [{"label": label, "score": score} for label, score in top]}
            for name, top in zip(names, tops, strict=True)
        ],
        "seconds": seconds,
        "rows_per_s": len(names) / seconds if seconds else 0.0,
        "failed": [{"input": name, "reason": reason} for name, reason in failed],
    }
