"""Who computes and sends when: predicted by the simulation, measured in a trace, as plain data."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence

import msgspec

from cutset.planning.plan import Plan
from cutset.planning.simulate import Slot, simulate_plan
from cutset.runtime.chrome_trace import Trace, TraceEvent

NUM_MICRO_BATCHES = 10
_STAGE = re.compile(r"stage (\d{1,4})")
_NAME = re.compile(r"[a-z]+ (\d{1,18})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimelinePicture:
    """Some micro-batches over stages and links.

    Attributes:
        bars: in order of resource and start; those of kind ``"idle"``, which belong to no
            micro-batch (-1), are a stage's bubbles.
        resources: from the caller's link down to the way back.
        total_s: when the last bar ends.
        busy: by stage, the part of the picture in which it computes.
        num_micro_batches: how many are shown.
    """

    bars: tuple[Slot, ...]
    resources: tuple[str, ...]
    total_s: float
    busy: tuple[float, ...]
    num_micro_batches: int


def predicted_timeline(
    plan: Plan, *, num_micro_batches: int = NUM_MICRO_BATCHES
) -> TimelinePicture:
    """The first micro-batches through the empty pipeline, with the plan's seconds."""
    timeline = simulate_plan(plan, num_microbatches=num_micro_batches)
    return _picture(timeline.slots, len(plan.stages), num_micro_batches)


def measured_timeline(
    trace: Trace, num_stages: int, *, num_micro_batches: int = NUM_MICRO_BATCHES
) -> TimelinePicture | None:
    """Some consecutive micro-batches from the middle of a run, as they happened.

    Of all runs of so many micro-batches that were in the pipeline together, the one of median
    length is shown: neither the best nor the worst. None where the trace has too few.

    Args:
        trace: what `cutset bench --trace` wrote.
        num_stages: how many stages the plan has.
        num_micro_batches: how many to show.
    """
    batches = _by_micro_batch(trace, num_stages)
    whole = sorted(
        index
        for index, bars in batches.items()
        if sum(bar.kind == "compute" for bar in bars) == num_stages
    )
    runs = []
    for first in range(len(whole) - num_micro_batches + 1):
        chosen = whole[first : first + num_micro_batches]
        if chosen[-1] - chosen[0] != num_micro_batches - 1 or not _overlap(batches, chosen):
            continue
        bars = [bar for index in chosen for bar in batches[index]]
        length = max(bar.stop_s for bar in bars) - min(bar.start_s for bar in bars)
        runs.append((length, first))
    if not runs:
        return None
    runs.sort()
    first = runs[len(runs) // 2][1]
    chosen = whole[first : first + num_micro_batches]
    bars = [bar for index in chosen for bar in batches[index]]
    begin_s, end_s = min(bar.start_s for bar in bars), max(bar.stop_s for bar in bars)
    # With what is seen of the micro-batches before and after; else their time would look idle.
    seen = [
        msgspec.structs.replace(
            bar,
            start_s=max(bar.start_s, begin_s) - begin_s,
            stop_s=min(bar.stop_s, end_s) - begin_s,
        )
        for bars in batches.values()
        for bar in bars
        if bar.stop_s > begin_s and bar.start_s < end_s
    ]
    return _picture(seen, num_stages, num_micro_batches)


def _overlap(batches: Mapping[int, Sequence[Slot]], chosen: Sequence[int]) -> bool:
    """Whether each begins before the one before it has ended, as in a stream."""
    for before, after in itertools.pairwise(chosen):
        begin = min(bar.start_s for bar in batches[after])
        if begin > max(bar.stop_s for bar in batches[before]):
            return False
    return True


def _by_micro_batch(trace: Trace, num_stages: int) -> dict[int, list[Slot]]:
    stage_of: dict[int, int] = {}
    for event in trace.traceEvents:
        name = event.args.get("name") if event.args else None
        if event.ph == "M" and event.name == "process_name" and isinstance(name, str):
            found = _STAGE.fullmatch(name)
            stage_of[event.pid] = int(found[1]) if found else -1
    batches: dict[int, list[Slot]] = {}
    for event in trace.traceEvents:
        bar = _bar(event, stage_of, num_stages)
        if bar is not None:
            batches.setdefault(bar.microbatch_index, []).append(bar)
    return batches


def _bar(event: TraceEvent, stage_of: Mapping[int, int], num_stages: int) -> Slot | None:
    """The bar of an event: computing on its stage, sending on the link behind it."""
    named = _NAME.fullmatch(event.name)
    stage = stage_of.get(event.pid)
    start_us, lasts_us = event.ts or 0.0, event.dur or 0.0
    if event.ph != "X" or named is None or stage is None or stage >= num_stages:
        return None
    if event.cat not in ("compute", "send") or not all(
        0 <= t < math.inf for t in (start_us, lasts_us)
    ):
        return None
    return Slot(
        resource=f"stage {stage}" if event.cat == "compute" else link_names(num_stages)[stage + 1],
        kind="compute" if event.cat == "compute" else "transfer",
        stage=stage,
        microbatch_index=int(named[1]),
        start_s=start_us / 1e6,
        stop_s=(start_us + lasts_us) / 1e6,
    )


def link_names(num_stages: int) -> tuple[str, ...]:
    """The links in order: from the caller, between neighbours, back to the caller."""
    ends = ["caller", *(str(k) for k in range(num_stages)), "caller"]
    return tuple(f"link {a} -> {b}" for a, b in itertools.pairwise(ends))


def _picture(bars: Sequence[Slot], num_stages: int, num_micro_batches: int) -> TimelinePicture:
    total_s = max(bar.stop_s for bar in bars)
    links = link_names(num_stages)
    used = {bar.resource for bar in bars}
    order = [links[0]]
    for stage in range(num_stages):
        replicas = sorted(name for name in used if name.startswith(f"stage {stage} replica "))
        order += [f"stage {stage}", *replicas, links[stage + 1]]
    shown: list[Slot] = []
    busy: dict[int, list[float]] = {}
    for resource in (name for name in order if name in used):
        here = sorted((b for b in bars if b.resource == resource), key=lambda bar: bar.start_s)
        shown += here
        if resource.startswith("stage"):
            stage = int(resource.split()[1])
            shown += _bubbles(stage, here, total_s)
            seconds = sum(b.stop_s - b.start_s for b in here)
            busy.setdefault(stage, []).append(seconds / total_s if total_s else 0.0)
    return TimelinePicture(
        bars=tuple(shown),
        resources=tuple(name for name in order if name in used),
        total_s=total_s,
        busy=tuple(sum(lanes) / len(lanes) for lanes in busy.values()),
        num_micro_batches=num_micro_batches,
    )


def _bubbles(stage: int, bars: Sequence[Slot], total_s: float) -> list[Slot]:
    """The stretches between the bars of a stage in which it does nothing."""
    found = []
    free_s = 0.0
    for start_s, stop_s in [*((b.start_s, b.stop_s) for b in bars), (total_s, total_s)]:
        if start_s - free_s > 1e-9 * total_s:
            found.append(
                Slot(
                    resource=f"stage {stage}",
                    kind="idle",
                    stage=stage,
                    microbatch_index=-1,
                    start_s=free_s,
                    stop_s=start_s,
                )
            )
        free_s = max(free_s, stop_s)
    return found
