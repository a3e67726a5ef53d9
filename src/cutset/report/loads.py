"""How the work is spread: seconds and memory of every stage against the bound and the limits."""

from __future__ import annotations

import dataclasses
from typing import Any

from cutset.measure.bench_results import BenchReport
from cutset.planning.plan import Plan, StagePlan
from cutset.planning.plan_messages import WireUse


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageLoad:
    """One stage of the plan and, where there is a bench run, what was measured of it.

    Attributes:
        stage: as planned.
        measured_s: measured seconds of computing per micro-batch, or None.
        is_slowest: whether its computing and overhead take longest.
    """

    stage: StagePlan
    measured_s: float | None
    is_slowest: bool


def stage_loads(plan: Plan, bench: BenchReport | None) -> tuple[StageLoad, ...]:
    """The load of every stage of a plan."""
    slowest = max(plan.stages, key=lambda stage: stage.busy_s).index
    return tuple(
        StageLoad(
            stage=stage,
            measured_s=bench.stages[stage.index].busy * bench.period_s if bench else None,
            is_slowest=stage.index == slowest,
        )
        for stage in plan.stages
    )


def load_rows(
    loads: tuple[StageLoad, ...], wires: tuple[WireUse, ...], *, with_measured: bool
) -> list[dict[str, Any]]:
    """The bars of the picture in ms: a heading for each stage, then a row for each kind of time.

    Ports and media come last, under a heading of their own and without a stage's `index`. `line` is
    unique and ends in what stands beside the bar.
    """
    rows: list[dict[str, Any]] = []
    for load in loads:
        label = _label(load)
        times = {
            "receives": load.stage.receive_s,
            "computes": load.stage.compute_s,
            "overhead": load.stage.overhead_s,
            "sends": load.stage.send_s,
            "measured": load.measured_s if with_measured else None,
        }
        rows.append(
            {"line": f"{load.stage.index}h:{label}", "stage": label, "index": load.stage.index}
        )
        rows += [
            {
                "line": f"{load.stage.index}:{what}",
                "stage": label,
                "index": load.stage.index,
                "what": "computes, measured" if what == "measured" else what,
                "milliseconds": 1e3 * seconds,
            }
            for what, seconds in times.items()
            if seconds
        ]
    if wires:
        label = "ports and media"
        rows.append({"line": f"wh:{label}", "stage": label, "index": None})
    rows += [
        {
            "line": f"w{k}:{use.wire}",
            "stage": use.wire,
            "index": None,
            "what": "is busy",
            "milliseconds": 1e3 * use.busy_s,
        }
        for k, use in enumerate(wires)
    ]
    return rows


def memory_rows(loads: tuple[StageLoad, ...]) -> list[dict[str, Any]]:
    """The bars of the picture of memory, in MiB; `limit` is None where memory is no limit."""
    scale = 1 / (1 << 20)
    return [
        {
            "stage": _label(load),
            "index": load.stage.index,
            "MiB": load.stage.memory_bytes * scale,
            "limit": None
            if load.stage.memory_limit_bytes is None
            else load.stage.memory_limit_bytes * scale,
        }
        for load in loads
    ]


def _label(load: StageLoad) -> str:
    return f"{load.stage.index}: {load.stage.where}"
