"""Timelines in the Chrome trace format, for chrome://tracing or Perfetto; written and read.

Source: the format's description, "Trace Event Format", complete events (``"ph": "X"``).
"""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from cutset.engines.protocol import Span

_LANES = {"receive": 0, "compute": 1, "send": 2}


class ProcessTimeline(msgspec.Struct, frozen=True, kw_only=True):
    """What one process did.

    Attributes:
        name: ``"caller"`` or ``"stage 0"``.
        spans: in the order in which they ended.
    """

    name: str
    spans: tuple[Span, ...]


class TraceEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a Chrome trace; times in microseconds. Only complete events have them.

    Attributes:
        ph: its phase: ``"X"`` complete, ``"M"`` metadata.
        name: of what was done.
        cat: its category, an activity.
        pid: number of the process.
        tid: number of the lane within it.
        ts: when it began.
        dur: how long it took.
        args: whatever else is said.
    """

    ph: str
    name: str = ""
    cat: str | UnsetType = UNSET
    pid: int = 0
    tid: int | UnsetType = UNSET
    ts: float | UnsetType = UNSET
    dur: float | UnsetType = UNSET
    args: dict[str, object] | UnsetType = UNSET


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """The document that ``cutset bench --trace`` writes."""

    traceEvents: tuple[TraceEvent, ...]  # noqa: N815  # the format's own name
    displayTimeUnit: str = "ms"  # noqa: N815


def chrome_trace(timelines: tuple[ProcessTimeline, ...]) -> Trace:
    """The timelines of processes as a trace.

    Each process is a row of its own, with one line for receiving, computing and sending each, since
    these overlap. Times are microseconds since the first span. The clocks of processes on one
    host are the same; those of different hosts are not, and are drawn as they are.
    """
    origin_s = min((span.start_s for timeline in timelines for span in timeline.spans), default=0.0)
    events: list[TraceEvent] = []
    for process, timeline in enumerate(timelines):
        events.append(_metadata("process_name", process, timeline.name))
        events.extend(_metadata("thread_name", process, name, _LANES[name]) for name in _LANES)
        events.extend(
            TraceEvent(
                ph="X",
                name=f"{span.activity} {span.sequence}",
                cat=span.activity,
                pid=process,
                tid=_LANES[span.activity],
                ts=(span.start_s - origin_s) * 1e6,
                dur=(span.stop_s - span.start_s) * 1e6,
            )
            for span in timeline.spans
        )
    return Trace(traceEvents=tuple(events))


def _metadata(what: str, pid: int, name: str, tid: int | UnsetType = UNSET) -> TraceEvent:
    return TraceEvent(ph="M", name=what, pid=pid, tid=tid, args={"name": name})
