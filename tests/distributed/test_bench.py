from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from cutset.bundles.open import open_bundle
from cutset.errors import EngineError
from cutset.measure.bench import bench_bundle
from cutset.measure.stages import measure_alone


def test_the_report_has_the_keys_that_scripts_rely_on(bundle: Path) -> None:
    report, trace = bench_bundle(bundle, backend="torch", duration_s=0.2, trace=True)
    document = msgspec.to_builtins(report)
    assert list(document) == [
        "period_s",
        "rows_per_s",
        "latency_s",
        "predicted_period_s",
        "slowest_stage_alone_s",
        "whole_model_period_s",
        "stages",
        "part",
    ]
    assert list(document["latency_s"]) == ["p50", "p95", "p99"]
    assert [list(stage) for stage in document["stages"]] == [
        [*("busy", "waiting", "sending", "backend"), "received_bytes_per_row", "sent_bytes_per_row"]
    ] * 2
    assert report.rows_per_s == pytest.approx(4 / report.period_s)
    assert report.predicted_period_s == 0.001
    assert all(0 < stage.busy <= 1 for stage in report.stages)
    # Some rows are on their way where it is asked, with the bytes of one end and not of the other.
    first, last = report.stages
    assert first.received_bytes_per_row == pytest.approx(3 * 16 * 16 * 4, rel=0.3)
    assert first.sent_bytes_per_row == pytest.approx(last.received_bytes_per_row, rel=0.3)
    assert last.sent_bytes_per_row == pytest.approx(40, rel=0.3)
    assert report.slowest_stage_alone_s > 0
    assert trace is not None
    events = msgspec.to_builtins(trace)["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {(event["pid"], event["cat"]) for event in spans} == {
        (0, "send"),
        (0, "receive"),
        *((pid, activity) for pid in (1, 2) for activity in ("receive", "compute", "send")),
    }
    assert all(event["dur"] >= 0 for event in spans)


def test_a_stage_that_cannot_be_timed_says_why(bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot be timed alone: .*no backend 'fast'"):
        measure_alone(
            open_bundle(bundle),
            [(0,)],
            backends=["fast", "fast"],
            num_threads=1,
            micro_batch=4,
            duration_s=0.1,
        )
