"""How the work is spread: seconds and memory of every stage against the bound and the limits."""

from __future__ import annotations

import dataclasses
from typing import Any

from cutset.measure.bench_results import BenchReport
from cutset.planning.plan import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageLoad:
    """One stage of the plan, predicted and, where there is a bench run, measured.

    Attributes:
        index: from 0.
        device: where it runs.
        first: name it begins with.
        last: name it ends with.
        backend: what computes it, or ``""``.
        compute_s: predicted seconds per micro-batch.
        overhead_s: predicted seconds in which it cannot compute, per micro-batch.
        receive_s: predicted seconds to receive one.
        send_s: predicted seconds to send one.
        measured_s: measured seconds of computing per micro-batch, or None.
        weight_bytes: bytes of its weights.
        memory_bytes: what it needs on its device.
        memory_limit_bytes: what the device has, or None.
        is_slowest: whether its computing and overhead take longest.
    """

    index: int
    device: str
    first: str
    last: str
    backend: str
    compute_s: float
    overhead_s: float
    receive_s: float
    send_s: float
    measured_s: float | None
    weight_bytes: int
    memory_bytes: int
    memory_limit_bytes: int | None
    is_slowest: bool


def stage_loads(plan: Plan, bench: BenchReport | None) -> tuple[StageLoad, ...]:
    """The load of every stage of a plan."""
    slowest = max(plan.stages, key=lambda stage: stage.busy_s).index
    return tuple(
        StageLoad(
            index=stage.index,
            device=stage.device,
            first=stage.first,
            last=stage.last,
            backend=stage.backend,
            compute_s=stage.compute_s,
            overhead_s=stage.overhead_s,
            receive_s=stage.receive_s,
            send_s=stage.send_s,
            measured_s=bench.stages[stage.index].busy * bench.period_s if bench else None,
            weight_bytes=stage.weight_bytes,
            memory_bytes=stage.memory_bytes,
            memory_limit_bytes=stage.memory_limit_bytes,
            is_slowest=stage.index == slowest,
        )
        for stage in plan.stages
    )


def load_rows(loads: tuple[StageLoad, ...], *, with_measured: bool) -> list[dict[str, Any]]:
    """The bars of the picture in ms: a heading for each stage, then a row for each kind of time.

    `line` is unique and ends in what stands beside the bar.
    """
    rows: list[dict[str, Any]] = []
    for load in loads:
        label = _label(load)
        times = {
            "receives": load.receive_s,
            "computes": load.compute_s,
            "overhead": load.overhead_s,
            "sends": load.send_s,
            "measured": load.measured_s if with_measured else None,
        }
        rows.append({"line": f"{load.index}h:{label}", "stage": label, "index": load.index})
        rows += [
            {
                "line": f"{load.index}:{what}",
                "stage": label,
                "index": load.index,
                "what": "computes, measured" if what == "measured" else what,
                "milliseconds": 1e3 * seconds,
            }
            for what, seconds in times.items()
            if seconds
        ]
    return rows


def memory_rows(loads: tuple[StageLoad, ...]) -> list[dict[str, Any]]:
    """The bars of the picture of memory, in MiB; `limit` is None where memory is no limit."""
    scale = 1 / (1 << 20)
    return [
        {
            "stage": _label(load),
            "index": load.index,
            "MiB": load.memory_bytes * scale,
            "limit": None if load.memory_limit_bytes is None else load.memory_limit_bytes * scale,
        }
        for load in loads
    ]


def _label(load: StageLoad) -> str:
    return f"{load.index}: {load.device}"
