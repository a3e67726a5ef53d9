"""The whole model with codecs where a plan cuts it: the truth of a bundle with codecs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from cutset.bundles.agreement import AgreementEntry
from cutset.bundles.coded_boundaries import as_received, chosen_codecs
from cutset.bundles.reference import as_sent
from cutset.capture.captured import Captured
from cutset.differences import max_abs_difference
from cutset.dtypes import Arrays
from cutset.errors import PlanError
from cutset.graph.ir import Graph, boundary_specs
from cutset.planning.plan import Plan, StagePlan
from cutset.tensors import dim_factor


class CodedModel:
    """A captured model that computes on with what codecs make of its boundary tensors.

    It runs what was captured, not what was written of it.

    Args:
        captured: the model.
        plan: where it is cut.
        codecs: of each stage's outputs, by stage; what the plan says if None.
    """

    def __init__(
        self, captured: Captured, plan: Plan, codecs: Sequence[tuple[str, ...]] | None = None
    ) -> None:
        graph, stages = captured.graph, plan.stages
        self._captured = captured
        self._pieces = tuple(captured.piece_run(s.start, s.stop) for s in stages)
        self._specs = tuple(boundary_specs(graph, s.start) for s in stages)
        self._specs += (boundary_specs(graph, stages[-1].stop),)
        self._codecs = codecs or tuple(planned_codecs(graph, stage) for stage in stages)

    def run(self, inputs: Arrays, num_rows: int) -> tuple[dict[str, np.ndarray], Arrays]:
        """Runs the model.

        Args:
            inputs: of the model.
            num_rows: rows of each.

        Returns:
            By name, every tensor at a boundary as it was computed, before a codec wrote it; and
            the model's outputs.

        Raises:
            CodecError: a codec refuses a number.
        """
        graph = self._captured.graph
        tensors = {s.name: as_sent(a) for s, a in zip(graph.inputs, inputs, strict=True)}
        computed: dict[str, np.ndarray] = {}
        for index, piece in enumerate(self._pieces):
            made = piece(tuple(tensors[spec.name] for spec in self._specs[index]))
            outputs = self._specs[index + 1]
            for spec in outputs:
                if spec.name not in tensors:
                    computed[spec.name] = made[spec.name]
                    tensors[spec.name] = as_sent(made[spec.name])
            tensors = as_received(outputs, self._codecs[index], tensors, num_rows)
        return computed, tuple(tensors[name] for name in graph.outputs)


def planned_codecs(graph: Graph, stage: StagePlan) -> tuple[str, ...]:
    """The codec of each output of a stage, as its plan has it; empty where all travel as is."""
    return chosen_codecs(stage.codec, boundary_specs(graph, stage.stop))


def _num_rows(graph: Graph, inputs: Arrays) -> int:
    """How many rows there are; one where no input says."""
    for spec, array in zip(graph.inputs, inputs, strict=True):
        factor = dim_factor(spec.shape[0]) if spec.shape else None
        if factor is not None:
            return len(array) // factor
    return 1


def measured_agreement(
    captured: Captured, model: CodedModel, rows: Iterable[Arrays], *, calibrated: bool
) -> AgreementEntry:
    """How far the model with codecs is from the exact one.

    Args:
        captured: the exact one.
        model: the same with codecs.
        rows: inputs of the model, some rows of each at a time.
        calibrated: as in `AgreementEntry`.

    Raises:
        CodecError: a codec refuses a number.
        PlanError: there are no rows.
    """
    num_rows = num_same = 0
    max_abs_error = 0.0
    output = captured.graph.spec_of(captured.graph.outputs[0])
    has_classes = len(output.shape) == 2 and output.shape[0] == "batch"
    for inputs in rows:
        count = _num_rows(captured.graph, inputs)
        exact = captured.run_whole(inputs)
        _, coded = model.run(inputs, count)
        num_rows += count
        if has_classes:
            num_same += int((exact[0].argmax(-1) == coded[0].argmax(-1)).sum())
        errors = [max_abs_difference(a, b) for a, b in zip(coded, exact, strict=True)]
        max_abs_error = max([max_abs_error, *errors])
    if not num_rows:
        raise PlanError("there are no rows to compare the model with codecs with the exact one on")
    return AgreementEntry(
        num_rows=num_rows,
        num_same=num_same if has_classes else None,
        max_abs_error=max_abs_error,
        calibrated=calibrated,
    )
