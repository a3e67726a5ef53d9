"""What `cutset.measure.bench` found, as plain values: the JSON of ``cutset bench`` both ways."""

from __future__ import annotations

import msgspec

from cutset.bundles.manifest import PartEntry


class Quantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Median, 95th and 99th percentile, in seconds."""

    p50: float
    p95: float
    p99: float


class StageShare(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage's worker did with its time, as shares of the measured time (0 to 1).

    Attributes:
        busy: share spent computing.
        waiting: share in which the computing thread had no work.
        sending: share spent sending; between hosts on a thread of its own, so it overlaps with the
            others.
        backend: the backend that ran the stage.
        received_bytes_per_row: bytes that its tensors took on their way to it, codecs applied.
        sent_bytes_per_row: the same of what it sent.
    """

    busy: float
    waiting: float
    sending: float
    backend: str
    received_bytes_per_row: float
    sent_bytes_per_row: float


class BenchReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; its fields are the keys of ``cutset bench --json``.

    Attributes:
        period_s: seconds per micro-batch in steady state.
        rows_per_s: rows per second in steady state.
        latency_s: of one micro-batch alone in the pipeline, from submission to answer.
        predicted_period_s: what the plan promised, from its stages measured as wholes where they
            were (`Plan.expected`).
        slowest_stage_alone_s: mean seconds, as a period is, of the slowest stage without transfers,
            each stage in a process of its own; on one machine all of them busy, on nodes one after
            the other.
        whole_model_period_s: mean seconds per micro-batch of all stages in one process, with as
            many threads as the pipeline has in all.
        stages: one for each stage.
        part: what the bundle holds of the model, or None where it is the whole.
    """

    period_s: float
    rows_per_s: float
    latency_s: Quantiles
    predicted_period_s: float
    slowest_stage_alone_s: float
    whole_model_period_s: float
    stages: tuple[StageShare, ...]
    part: PartEntry | None = None
