"""Too many requests, too late, too early, and the way out; with a session held by the test."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cutset.errors import ContractViolation, EngineError, StageFailed
from cutset.serve.server import bind, serve
from cutset.serve.settings import ServeSettings

from .held import HeldSession
from .running import INFER, Running, ask, running_server, until


def _body(value: float = 1.0, num_rows: int = 1, **parameters: int) -> bytes:
    tensor = {
        "name": "x",
        "shape": [num_rows, 3],
        "datatype": "FP32",
        "data": [value] * 3 * num_rows,
    }
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


@pytest.fixture
def session() -> HeldSession:
    return HeldSession(micro_batch=1, window=1)


@pytest.fixture
def running(session: HeldSession) -> Iterator[Running]:
    with running_server(session, max_queue=2, max_delay_s=0.0) as each:  # type: ignore[arg-type]
        yield each


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(8) as each:
        yield each


def test_a_full_queue_refuses_at_once_and_serves_what_it_took(
    session: HeldSession, running: Running, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    batcher = running.server.service.batcher
    taken = [pool.submit(ask, running, path=INFER, body=_body(each)) for each in (1.0, 2.0)]
    until(lambda: batcher.num_accepted_rows == 2)
    for path, body in ((INFER, _body()), ("/classify", b"whatever")):
        status, headers, text = ask(running, path=path, body=body)
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert "queue is full: 2 of 2 rows" in json.loads(text)["error"]
    for _ in taken:
        until(lambda: bool(session.held))
        session.answer()
    answers = sorted(json.loads(each.result(10)[2])["outputs"][0]["data"][0] for each in taken)
    assert answers == [2.0, 4.0]
    assert len(session.sent) == 2


def test_past_the_deadline_the_work_is_dropped(
    session: HeldSession, running: Running, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    first = pool.submit(ask, running, path=INFER, body=_body(1.0))
    until(lambda: len(session.sent) == 1)
    status, _, text = ask(running, path=INFER, body=_body(2.0, timeout=50_000))
    assert status == 504
    assert "deadline passed" in json.loads(text)["error"]
    session.answer()
    assert first.result(10)[0] == 200
    assert running.server.service.batcher.num_accepted_rows == 0
    assert [rows[0, 0].item() for rows in session.sent] == [1.0]


def test_the_work_of_a_client_that_left_is_dropped(
    session: HeldSession, running: Running, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    batcher = running.server.service.batcher
    first = pool.submit(ask, running, path=INFER, body=_body(1.0))
    until(lambda: len(session.sent) == 1)
    leaver = http.client.HTTPConnection(running.address, timeout=10)
    leaver.request("POST", INFER, _body(2.0))
    until(lambda: batcher.num_accepted_rows == 2)
    leaver.close()
    until(lambda: batcher.num_accepted_rows == 1)
    session.answer()
    assert first.result(10)[0] == 200
    assert len(session.sent) == 1
    assert batcher.num_dropped_rows == 1


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (StageFailed("stage 0 (a to b) failed", stage=0, device="cpu"), 500),
        (ContractViolation("into stage 0", boundary="", expected="", actual=""), 400),
    ],
)
def test_a_failure_is_told(
    session: HeldSession,
    running: Running,
    pool: concurrent.futures.ThreadPoolExecutor,
    error: EngineError,
    status: int,
) -> None:
    asking = pool.submit(ask, running, path=INFER, body=_body())
    until(lambda: bool(session.held))
    session.answer(error)
    given, _, text = asking.result(10)
    assert (given, json.loads(text)) == (status, {"error": str(error)})


def test_leaving_finishes_what_was_accepted(
    session: HeldSession, running: Running, pool: concurrent.futures.ThreadPoolExecutor
) -> None:
    accepted = [pool.submit(ask, running, path=INFER, body=_body(each)) for each in (1.0, 2.0)]
    batcher = running.server.service.batcher
    until(lambda: batcher.num_accepted_rows == 2)
    assert ask(running, "GET", "/v2/health/ready")[0] == 200
    running.leave()
    until(lambda: batcher.draining)
    assert ask(running, "GET", "/v2/health/ready")[0] == 503
    assert ask(running, "GET", "/v2/models/small/ready")[0] == 503
    assert ask(running, "GET", "/v2/health/live")[0] == 200
    status, headers, text = ask(running, path=INFER, body=_body())
    assert (status, headers["retry-after"]) == (503, "1")
    assert "about to leave" in json.loads(text)["error"]
    for _ in accepted:
        until(lambda: bool(session.held))
        session.answer()
    assert [each.result(10)[0] for each in accepted] == [200, 200]


def test_the_end_of_the_pipeline_ends_the_server(session: HeldSession) -> None:
    settings = ServeSettings(port=0, model_name="small", max_delay_s=0.0)
    listener = bind(settings)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    session.over = EngineError("stage 0 does not come back")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        listener.listen()
        serving = pool.submit(serve, session, settings, listener)  # type: ignore[arg-type]
        connection = http.client.HTTPConnection(address, timeout=10)
        connection.request("POST", INFER, _body())
        answer = connection.getresponse()
        assert answer.status == 503
        assert "stage 0 does not come back" in json.loads(answer.read())["error"]
        connection.close()
        with pytest.raises(EngineError, match="stage 0 does not come back"):
            serving.result(30)


def test_a_pipeline_that_does_not_open_leaves_the_port_free(tmp_path: Path) -> None:
    from cutset.errors import BundleError, CutsetError
    from cutset.serve.command import serve_bundle

    settings = ServeSettings(port=0)
    with pytest.raises(BundleError):
        serve_bundle(tmp_path / "none.cutset", settings)
    taken = bind(settings)
    taken.listen()
    with taken, pytest.raises(CutsetError, match="choose another with --port"):
        serve_bundle(tmp_path, ServeSettings(port=taken.getsockname()[1]))
