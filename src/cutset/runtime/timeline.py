"""Who did what when: spans of the processes of a session, and the Chrome trace format."""

from __future__ import annotations

import collections
from typing import Any

import msgspec

from cutset.engines.protocol import Span
from cutset.links.network import Parcel


class ProcessTimeline(msgspec.Struct, frozen=True, kw_only=True):
    """What one process did.

    Attributes:
        name: ``"caller"`` or ``"stage 0"``.
        spans: in the order in which they ended.
    """

    name: str
    spans: tuple[Span, ...]


class CallerTimeline:
    """Collects the caller's spans; `sent` and `received` are called on a thread each.

    Args:
        num_spans: micro-batches to keep; 0 keeps none.
    """

    def __init__(self, num_spans: int) -> None:
        self._spans: collections.deque[Span] = collections.deque(maxlen=2 * num_spans)

    def sent(self, parcel: Parcel, started_s: float, stopped_s: float) -> None:
        """Notes that a micro-batch was sent to the first stage."""
        if self._spans.maxlen:
            self._spans.append(Span(parcel.sequence, "send", started_s, stopped_s))

    def received(self, parcel: Parcel) -> None:
        """Notes that a micro-batch came from the last stage."""
        if self._spans.maxlen:
            self._spans.append(
                Span(parcel.sequence, "receive", parcel.arrived_s, parcel.received_s)
            )

    def finish(self) -> ProcessTimeline:
        """The caller's timeline so far."""
        return ProcessTimeline(name="caller", spans=tuple(self._spans))


def chrome_trace(timelines: tuple[ProcessTimeline, ...]) -> dict[str, Any]:
    """The timelines in the Chrome trace format, for chrome://tracing or Perfetto.

    Each process is a row of its own, with one line for receiving, computing and sending each, since
    these overlap. Times are microseconds since the first span. The clocks of processes on one
    host are the same; those of different hosts are not, and are drawn as they are.

    Source: the format's description, "Trace Event Format", complete events (``"ph": "X"``).
    """
    origin_s = min((span.start_s for timeline in timelines for span in timeline.spans), default=0.0)
    lanes = {"receive": 0, "compute": 1, "send": 2}
    events: list[dict[str, Any]] = []
    for process, timeline in enumerate(timelines):
        events.append(
            {"ph": "M", "name": "process_name", "pid": process, "args": {"name": timeline.name}}
        )
        for activity, lane in lanes.items():
            name = {"name": activity}
            events.append(
                {"ph": "M", "name": "thread_name", "pid": process, "tid": lane, "args": name}
            )
        events.extend(
            {
                "ph": "X",
                "name": f"{span.activity} {span.sequence}",
                "cat": span.activity,
                "pid": process,
                "tid": lanes[span.activity],
                "ts": (span.start_s - origin_s) * 1e6,
                "dur": (span.stop_s - span.start_s) * 1e6,
            }
            for span in timeline.spans
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}
