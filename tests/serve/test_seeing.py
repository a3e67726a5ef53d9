"""Spans, logs, status, command: what operators see."""

from __future__ import annotations

import asyncio
import collections
import gc
import json
import logging
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cutset.backends.allocator import give_back_memory
from cutset.engines.protocol import Span
from cutset.errors import CutsetError
from cutset.runtime.timeline import ProcessTimeline
from cutset.serve.app import Service
from cutset.serve.command import serve_bundle
from cutset.serve.logs import JsonFormatter
from cutset.serve.server import Server
from cutset.serve.settings import ServeSettings, default_model_name
from cutset.serve.stage_times import StageTime, stage_times
from cutset.serve.tracing import Tracing

from .held import HeldSession
from .running import INFER, Running, ask, serving, until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def _body(num_rows: int) -> bytes:
    tensor = {"name": "x", "shape": [num_rows, 3, 16, 16], "datatype": "FP32"}
    tensor["data"] = [0.5] * (num_rows * 768)
    return json.dumps({"id": "mine", "inputs": [tensor]}).encode()


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def traced(bundle: Path, exporter: InMemorySpanExporter) -> Iterator[Running]:
    """A server that makes spans."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with serving(bundle, make_tracing=lambda times: Tracing(times, provider)) as running:
        yield running
    provider.shutdown()


def _on_loop(running: Running, make: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs something on the server's event loop."""
    loop = running.server._loop
    assert loop is not None
    asyncio.run_coroutine_threadsafe(make(), loop).result(30)


def _has_spans(running: Running, exporter: InMemorySpanExporter, number: int) -> bool:
    tracing = running.server.service.tracing
    assert tracing is not None
    _on_loop(running, tracing.flush)
    return len(exporter.get_finished_spans()) >= number


def test_spans_of_requests_and_stages(traced: Running, exporter: InMemorySpanExporter) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    assert ask(traced, path=INFER, body=_body(6), headers=headers)[0] == 200
    assert ask(traced, path=INFER, body=b"{}")[0] == 400
    assert ask(traced, "GET", "/status")[0] == 200
    until(lambda: _has_spans(traced, exporter, 4))
    spans = exporter.get_finished_spans()
    exporter.clear()
    assert sorted(span.name for span in spans) == ["POST infer"] * 2 + ["stage 0", "stage 1"]
    good = next(span for span in spans if span.attributes.get("cutset.request_id") == "mine")
    assert good.attributes["http.response.status_code"] == 200
    assert good.attributes["cutset.num_rows"] == 6
    assert format(good.context.trace_id, "032x") == TRACE
    assert good.parent is not None
    assert format(good.parent.span_id, "016x") == PARENT
    for child in (span for span in spans if span.name.startswith("stage")):
        assert child.parent is not None
        assert child.parent.span_id == good.context.span_id
        assert good.start_time <= child.start_time <= child.end_time <= good.end_time


def _metrics(running: Running) -> collections.Counter[str]:
    """All that `/metrics` says, once the workers have counted all that was answered."""
    found: collections.Counter[str] = collections.Counter()

    def counted() -> bool:
        _on_loop(running, running.server.service.monitor.sample)
        status, headers, text = ask(running, "GET", "/metrics")
        assert status == 200
        assert headers["content-type"].startswith("text/plain; version=0.0.4")
        for line in text.decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)  # type: ignore[assignment]
        # The last thing that is counted, after the answer is out.
        sent = found['cutset_stage_sent_bytes_total{device="cpu:1",stage="1"}']
        return sent == 40 * found["cutset_rows_total"]

    until(counted)
    return found


def test_metrics_of_real_workers(traced: Running) -> None:
    before = _metrics(traced)
    assert ask(traced, path=INFER, body=_body(3))[0] == 200
    assert ask(traced, path=INFER, body=b"{}")[0] == 400
    now = _metrics(traced)
    more = {name: value - before[name] for name, value in now.items()}
    assert more["cutset_rows_total"] == 3
    assert more['cutset_requests_total{route="infer",status="200"}'] == 1
    assert more['cutset_requests_total{route="infer",status="400"}'] == 1
    assert more['cutset_request_seconds_count{route="infer"}'] == 1
    assert now["cutset_queue_rows"] == 0
    assert now["cutset_in_flight_micro_batches"] == 0
    assert now["cutset_epoch"] == 1
    for stage, received, sent in (("0", 3 * 3072, 3 * 8192), ("1", 3 * 8192, 3 * 40)):
        labels = f'{{device="cpu:{stage}",stage="{stage}"}}'
        assert more[f"cutset_stage_received_bytes_total{labels}"] == received
        assert more[f"cutset_stage_sent_bytes_total{labels}"] == sent
        assert now[f"cutset_stage_restarts_total{labels}"] == 0


def test_stages_of_an_answer_are_those_of_its_rows(traced: Running) -> None:
    """The numbers that the batcher counts are those of the session's timeline."""
    for num_rows in (9, 1, 4):
        assert ask(traced, path=INFER, body=_body(num_rows))[0] == 200
    num_sent = traced.server.service.batcher.num_sent_micro_batches
    assert num_sent >= 5
    sequences = {
        span.sequence
        for timeline in traced.session.timeline()
        for span in timeline.spans
        if span.activity == "compute"
    }
    assert sequences == set(range(num_sent))


def test_an_hour_of_looking_keeps_nothing(traced: Running) -> None:
    """What is asked every second while somebody looks, as often as in an hour, amid requests."""
    session, monitor = traced.session, traced.server.service.monitor
    rows = torch.zeros(4, 3, 16, 16)

    async def look(times: int) -> None:
        for index in range(times):
            await monitor.sample()
            document = monitor.document()
            timelines = session.timeline()
            if index % 8 == 0:
                session.run(rows)
        assert len(document["history"]) <= 60
        assert [len(timeline.spans) for timeline in timelines] == [2 * 64, 3 * 64, 3 * 64]

    def kept() -> tuple[int, int]:
        gc.collect()
        give_back_memory()
        return len(gc.get_objects()), psutil.Process().memory_info().rss

    def workers() -> list[int]:
        return [psutil.Process(pid).memory_info().rss for pid in session.worker_pids]

    asyncio.run(look(600))  # what is kept of the newest is full by now
    (num_objects, resident_bytes), workers_bytes = kept(), workers()
    asyncio.run(look(3000))
    num_later, later_bytes = kept()
    # Of each look one number kept would be 3000 objects; one timeline more than 300 spans.
    assert num_later - num_objects < 1000
    assert later_bytes - resident_bytes < 8 << 20
    for before, after in zip(workers_bytes, workers(), strict=True):
        assert after - before < 8 << 20


def test_times_of_stages_are_picked_by_micro_batch() -> None:
    caller = ProcessTimeline(name="caller", spans=(Span(1, "send", 0.0, 9.0),))
    stage = ProcessTimeline(
        name="stage 0",
        spans=(
            Span(0, "compute", 0.0, 1.0),
            Span(1, "receive", 1.0, 1.5),
            Span(1, "compute", 2.0, 4.0),  # lost with its worker, and done again:
            Span(1, "compute", 5.0, 6.0),
            Span(2, "compute", 6.0, 6.5),
            Span(2, "send", 6.5, 7.0),
        ),
    )
    expected = StageTime(stage=0, start_s=1.0, stop_s=7.0, compute_s=1.5)
    assert stage_times((caller, stage), (1, 2)) == (expected,)
    assert stage_times((caller, stage), (2, 3)) is None
    assert stage_times((caller, stage), ()) is None


def test_status_document(traced: Running) -> None:
    before = traced.server.service.batcher.num_answered_rows
    assert ask(traced, path=INFER, body=_body(2))[0] == 200
    asyncio.run(traced.server.service.monitor.sample())
    asyncio.run(traced.server.service.monitor.sample())
    status, _, text = ask(traced, "GET", "/status")
    assert status == 200
    document = json.loads(text)
    assert document["model_name"] == "small"
    assert document["state"] == "running"
    assert document["takes_images"] is True
    assert [link["bytes_per_row"] for link in document["links"]] == [3072, 8192, 40]
    assert [link["to"] for link in document["links"]] == ["stage 0", "stage 1", "caller"]
    assert [stage["predicted_compute_s"] for stage in document["stages"]] == [0.001, 0.001]
    assert document["num_answered_rows"] == before + 2
    assert [stage["predicted_from_profile"] for stage in document["stages"]] == [False, False]
    assert document["slowest"] in (0, 1)
    assert document["predicted_rows_per_s"] == 4000.0


def test_json_logs() -> None:
    record = logging.LogRecord("cutset.serve", logging.INFO, "f.py", 1, "to %s", ("you",), None)
    record.status = 200
    record.created = 0.0
    assert json.loads(JsonFormatter().format(record)) == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "info",
        "logger": "cutset.serve",
        "message": "to you",
        "status": 200,
    }
    try:
        raise ValueError("wrong")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: wrong" in json.loads(JsonFormatter().format(record))["traceback"]


@pytest.mark.parametrize(
    ("folder", "name"),
    [("mobilenet_v2.cutset", "mobilenet_v2"), ("my model (2)", "my-model-2")],
)
def test_names_of_models(tmp_path: Path, folder: str, name: str) -> None:
    assert default_model_name(tmp_path / folder) == name


@pytest.mark.parametrize(("given", "name"), [(None, "held"), ("model", "model"), ("held", "held")])
def test_every_name_that_is_given_is_taken(given: str | None, name: str) -> None:
    service = Service(HeldSession(), ServeSettings(model_name=given))  # type: ignore[arg-type]
    assert service.contract.model_name == name


@pytest.mark.parametrize(
    ("module", "extra", "tracing"),
    [("uvicorn", "serve", False), ("opentelemetry", "tracing", True)],
)
def test_what_an_extra_would_have_brought(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, extra: str, tracing: bool
) -> None:
    for name in [each for each in sys.modules if each.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("cutset.serve.server", "cutset.serve.connections", "cutset.serve.tracing"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CutsetError, match=rf"pip install 'cutset\[{extra}\]'"):
        serve_bundle(tmp_path, ServeSettings(port=0), with_tracing=tracing)


def test_dtypes_that_the_protocol_lacks() -> None:
    from cutset.tensors import TensorSpec

    spec = TensorSpec(name="x", shape=("batch", 3), dtype="complex64")
    with pytest.raises(ValueError, match="tensor 'x' is complex64, which the Open Inference"):
        Server(HeldSession(input_spec=spec), ServeSettings())  # type: ignore[arg-type]
