"""A plan: which stage runs where, what is predicted for it, and the bound that judges it."""

from __future__ import annotations

import msgspec

PLAN_FORMAT = "cutset-plan/1"


class StagePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage of a plan.

    Attributes:
        index: 0 for the stage that takes the model's inputs.
        first: name of the unit or operation it begins with.
        last: name of the cut point that ends it (``CutPoint.after``), ``"output"`` for the last
            stage.
        start: index of its first operation in the graph.
        stop: index after its last operation.
        units: paths of the units that it holds.
        device: name of the device it runs on.
        compute_s: predicted seconds for one micro-batch.
        send_s: predicted seconds to send one micro-batch's outputs to the next stage, 0 for the
            last one.
        weight_bytes: bytes of the parameters, buffers and constants that it holds.
        memory_bytes: predicted bytes of memory that it needs on its device.
        output_bytes_per_sample: bytes that leave it for one row.
    """

    index: int
    first: str
    last: str
    start: int
    stop: int
    units: tuple[str, ...]
    device: str
    compute_s: float
    send_s: float
    weight_bytes: int
    memory_bytes: int
    output_bytes_per_sample: int


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stages, devices, predictions and the proof.

    Attributes:
        format: ``"cutset-plan/1"``.
        objective: ``"throughput"`` or ``"latency"``.
        micro_batch: rows of a micro-batch.
        stages: in pipeline order.
        period_s: predicted seconds per micro-batch in steady state.
        latency_s: predicted seconds for one micro-batch alone.
        bound_s: no plan under the same rules can have an objective below this.
        bound_by: which certificate gives `bound_s` (``"exhaustion"``, ``"volume"``, ...).
        gap: objective / bound_s - 1; 0 when the plan is proven the best.
    """

    format: str
    objective: str
    micro_batch: int
    stages: tuple[StagePlan, ...]
    period_s: float
    latency_s: float
    bound_s: float
    bound_by: str
    gap: float
