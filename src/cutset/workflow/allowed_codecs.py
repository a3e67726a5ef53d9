"""Plans with codecs that keep the answers as the caller wants them: what does not is not used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from cutset.bundles.agreement import AgreementEntry
from cutset.bundles.coded_boundaries import change_numbers
from cutset.bundles.coded_model import CodedModel, measured_agreement, planned_codecs
from cutset.codecs.coding import CodecError
from cutset.codecs.known_codecs import CODECS, lossy_part
from cutset.data.file_rows import FileRows
from cutset.dtypes import Arrays
from cutset.errors import ModelError, PlanError
from cutset.planning import Plan, PlanRequest
from cutset.progress import Progress, no_progress
from cutset.tensors import dim_factor
from cutset.workflow.best_plans import plan_model
from cutset.workflow.measured_costs import measure_costs
from cutset.workflow.prepare import PreparedModel

LEAST_AGREEMENT = 0.97
"""Share of rows that keep their top label, where a model has labels and nothing else is asked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerLimits:
    """How far codecs may change answers, and on which rows that is looked at.

    Attributes:
        calibration: images, folders of images, ``.npy``, ``.npz`` or ``.safetensors`` files; the
            rows that a bundle's reference begins with where empty.
        min_agreement: the least share of these rows that keep their top label, 0 to 1; where None
            `LEAST_AGREEMENT` for a model with labels, none for others.
        max_error: the most that a number of an output may differ, or None.
    """

    calibration: tuple[Path, ...] = ()
    min_agreement: float | None = None
    max_error: float | None = None

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ValueError: a number is beyond its range.
        """
        if self.min_agreement is not None and not 0 <= self.min_agreement <= 1:
            raise ValueError(f"min_agreement is from 0 to 1, got {self.min_agreement}")
        if self.max_error is not None and not 0 <= self.max_error < math.inf:
            raise ValueError(f"max_error is finite and from 0, got {self.max_error}")

    def refusal(self, found: AgreementEntry, *, has_labels: bool) -> str:
        """Why an agreement is too little, in words; ``""`` where it is enough.

        Raises:
            PlanError: `min_agreement` is asked for where there are no classes.
        """
        least = self.min_agreement
        if least is None and has_labels:
            least = LEAST_AGREEMENT
        if found.num_same is None and self.min_agreement is not None:
            raise PlanError(
                "min_agreement is for models whose first output has a row of scores for each row;"
                " limit what outputs may differ: max_error (--max-error)"
            )
        if not math.isfinite(found.max_abs_error):
            return "answers become infinite or NaN where they are not"
        if least is not None and found.num_same is not None:
            share = found.num_same / found.num_rows
            if share < least:
                return (
                    f"{found.num_same} of {found.num_rows} rows keep their top label ({share:.1%}),"
                    f" at least {least:.1%} is wanted"
                )
        if self.max_error is not None and found.max_abs_error > self.max_error:
            return (
                f"outputs differ by up to {found.max_abs_error:.3g}, at most {self.max_error:.3g}"
                " is wanted"
            )
        return ""


def agreement_of(
    prepared: PreparedModel, plan: Plan, limits: AnswerLimits
) -> AgreementEntry | None:
    """How far the codecs of a plan change a model's answers; None where none does.

    Args:
        prepared: the model.
        plan: with codecs, or without.
        limits: on which rows.

    Raises:
        CodecError: a codec refuses a number of these rows.
        ModelError: a row cannot be read.
    """
    captured = prepared.captured
    codecs = (planned_codecs(captured.graph, stage) for stage in plan.stages)
    if not any(map(change_numbers, codecs)):
        return None
    with captured.computing(1):
        return measured_agreement(
            captured,
            CodedModel(captured, plan),
            _rows(prepared, plan.micro_batch, limits.calibration),
            calibrated=bool(limits.calibration),
        )


def _rows(prepared: PreparedModel, num_rows: int, files: tuple[Path, ...]) -> Iterator[Arrays]:
    """Rows to compare answers on, no more at a time than a micro-batch has."""
    captured = prepared.captured
    if not files:
        yield captured.rows(captured.micro_batch_only or 2)
        return
    specs, only = captured.graph.inputs, captured.micro_batch_only
    most = only or num_rows
    factors = [dim_factor(spec.shape[0]) if spec.shape else None for spec in specs]
    reader = FileRows(specs, prepared.found.preprocessing, files)
    for arrays in reader.batches(most):
        pairs = list(zip(arrays, factors, strict=True))
        count = next((len(array) // factor for array, factor in pairs if factor), 1)
        # Of a model for one number of rows, those that are left over are not looked at.
        stop = count - count % only if only else count
        for start in range(0, stop, most):
            yield tuple(
                array[start * factor : (start + most) * factor] if factor else array
                for array, factor in pairs
            )
    if reader.failed:
        name, reason = reader.failed[0]
        raise ModelError(f"calibration: {name} cannot be read: {reason}")


def plan_within(
    prepared: PreparedModel,
    request: PlanRequest,
    limits: AnswerLimits,
    *,
    progress: Progress | None = None,
    **costs: Any,
) -> tuple[Plan, AgreementEntry | None]:
    """The best plan whose codecs change answers no more than is wanted.

    Where those of the best plan do, the one that changes most of them is left out and it is planned
    again; the plan says so in a note, and by how much.

    Args:
        prepared: the model.
        request: what is wanted, with the codecs that are allowed.
        limits: how far answers may change.
        progress: told of every step.
        costs: what `plan_model` takes besides.

    Returns:
        The plan, and how far its codecs change answers; None where none does.

    Raises:
        PlanError: as for `plan_model`, or `limits` do not fit the model.
        ModelError: a calibration row cannot be read.
    """
    progress = progress or no_progress
    if request.allow and costs.get("costs", "measured") == "measured":
        # Measured once, however often it is planned.
        costs["costs"] = measure_costs(
            prepared,
            backend=costs.get("backend", "auto"),
            batch_size=costs.get("batch_size"),
            num_threads=costs.get("num_threads") or 1,
            progress=progress,
        )
    notes: list[str] = []
    while True:
        plan = plan_model(prepared, request, progress=progress, **costs)
        lossy = {lossy_part(stage.codec) for stage in plan.stages}
        used = [name for name in CODECS if name in lossy]
        found, refused = None, ""
        if used:
            progress("comparing answers with and without codecs")
            worst = used[-1]
            try:
                found = agreement_of(prepared, plan, limits)
            except CodecError as error:
                worst, refused = error.codec, str(error)
            if found is not None:
                has_labels = prepared.found.labels is not None and prepared.part is None
                refused = limits.refusal(found, has_labels=has_labels)
        if not refused:
            return msgspec.structs.replace(plan, notes=(*plan.notes, *notes)), found
        notes.append(f"{worst} is allowed and not used: {refused}")
        allow = tuple(name for name in request.allow if name != worst)
        request = msgspec.structs.replace(request, allow=allow)
