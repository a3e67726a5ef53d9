from __future__ import annotations

import json

import msgspec

from cutset.engines.protocol import Span
from cutset.links.parcels import Parcel
from cutset.runtime.chrome_trace import ProcessTimeline, Trace, chrome_trace
from cutset.runtime.timeline import CallerTimeline


def test_chrome_trace_counts_microseconds_from_the_first_span() -> None:
    trace = chrome_trace(
        (
            ProcessTimeline(name="caller", spans=(Span(0, "send", 10.0, 10.001),)),
            ProcessTimeline(name="stage 0", spans=(Span(0, "compute", 10.002, 10.005),)),
        )
    )
    document = json.loads(msgspec.json.encode(trace))
    assert msgspec.convert(document, Trace) == trace
    spans = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert [(e["pid"], e["tid"], e["name"], round(e["ts"]), round(e["dur"])) for e in spans] == [
        (0, 2, "send 0", 0, 1000),
        (1, 1, "compute 0", 2000, 3000),
    ]
    names = [e["args"]["name"] for e in document["traceEvents"] if e["name"] == "process_name"]
    assert names == ["caller", "stage 0"]
    assert document["displayTimeUnit"] == "ms"
    assert [list(event) for event in document["traceEvents"][:5]] == [
        ["ph", "name", "pid", "args"],
        *[["ph", "name", "pid", "tid", "args"]] * 3,
        ["ph", "name", "cat", "pid", "tid", "ts", "dur"],
    ]


def test_a_caller_timeline_keeps_only_the_newest_spans() -> None:
    timeline = CallerTimeline(1)
    for sequence in range(3):
        timeline.sent(Parcel(sequence=sequence, num_rows=1, tensors=()), 1.0, 2.0)
    assert [span.sequence for span in timeline.finish().spans] == [1, 2]
    nothing = CallerTimeline(0)
    nothing.received(Parcel(sequence=0, num_rows=1, tensors=()))
    assert nothing.finish().spans == ()
