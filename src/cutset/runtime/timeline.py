"""Who did what when: spans of the processes of a session."""

from __future__ import annotations

import collections

from cutset.engines.protocol import Span
from cutset.links.parcels import Parcel
from cutset.runtime.chrome_trace import ProcessTimeline


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
