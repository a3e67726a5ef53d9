"""The JSON documents that scripts rely on: what `--json` prints.

Numbers are in the units that their names end in; sizes are for one row unless a name says
otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec

from cutset.bundles.agreement import AgreementEntry
from cutset.bundles.manifest import PartEntry
from cutset.graph.cuts import CutPoint, CutPoints
from cutset.graph.ir import Graph
from cutset.planning.plan import Plan
from cutset.tensors import TensorSpec

Document: TypeAlias = dict[str, Any]


def inspection_document(
    model: str, graph: Graph, cuts: CutPoints, *, part: PartEntry | None = None
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
        "part": msgspec.to_builtins(part),
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
    part: PartEntry | None = None,
    bundle: str | None = None,
    agreement: AgreementEntry | None = None,
    gain_inside_units: float | None = None,
) -> Document:
    """``cutset plan --json`` and ``cutset split --json``: the whole plan.

    Args:
        plan: the plan.
        part: what was planned of the model, where it is not the whole.
        bundle: the folder that `split` wrote, or None.
        agreement: how far codecs of the bundle change answers, where it has some.
        gain_inside_units: what cuts inside units would gain, as a fraction, if it was asked for.
    """
    document: Document = msgspec.to_builtins(plan)
    document["bottleneck"] = plan.bottleneck
    document["part"] = msgspec.to_builtins(part)
    if bundle is not None:
        document["bundle"] = bundle
        document["agreement"] = agreement_document(agreement)
    if gain_inside_units is not None:
        document["gain_inside_units"] = gain_inside_units
    return document


def agreement_document(agreement: AgreementEntry | None) -> Document | None:
    """An agreement with the exact model, and the least share of rows that it proves."""
    if agreement is None:
        return None
    return {**msgspec.to_builtins(agreement), "least_share": agreement.least_share}


def front_document(plans: Sequence[Plan], *, part: PartEntry | None = None) -> Document:
    """``cutset plan --objective pareto --json``: the front, of falling rows per second."""
    return {"plans": [plan_document(plan, part=part) for plan in plans]}
