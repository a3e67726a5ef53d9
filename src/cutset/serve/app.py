"""The application: routes over one session."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from cutset.errors import CutsetError
from cutset.runtime.session import Session
from cutset.serve.admission import Door, refusal_message
from cutset.serve.batching import Batcher, Outputs
from cutset.serve.bodies import (
    JSON_GROWTH,
    Budget,
    Lease,
    PiecesResponse,
    declared_length,
    read_body,
    too_long,
)
from cutset.serve.classify import Classifier
from cutset.serve.handling import ClientLeft, compute
from cutset.serve.metrics import CONTENT_TYPE, Metrics
from cutset.serve.monitor import Monitor
from cutset.serve.openapi import openapi_document
from cutset.serve.refusal import Refusal
from cutset.serve.requests import (
    MODEL_VERSION,
    InferRequest,
    check_content_type,
    decode_request,
    make_contract,
    model_metadata,
    parse_header_length,
)
from cutset.serve.responses import encode_answer
from cutset.serve.settings import ServeSettings, default_model_name
from cutset.serve.stage_times import StageTimes
from cutset.version import __version__

if TYPE_CHECKING:  # an extra of its own
    from cutset.serve.tracing import Tracing

_FILES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs.js": ("docs.js", "text/javascript"),
}
_INLINE_JSON_BYTES = 16 << 10
_INLINE_BYTES = 4 << 20
"""What is longer is read and written on a thread: others' requests do not wait for it."""

Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """Everything behind the door.

    Args:
        session: the running pipeline; the service submits to it, and nobody else may.
        settings: limits.
        on_broken: called once, when the session turns out to be over.
        make_tracing: makes what is told of every answer beside the metrics, or None.
    """

    def __init__(
        self,
        session: Session,
        settings: ServeSettings,
        on_broken: Callable[[CutsetError], None] | None = None,
        make_tracing: Callable[[StageTimes], Tracing] | None = None,
    ) -> None:
        manifest = session.bundle.manifest
        self.settings = settings
        name = settings.model_name
        self.contract = make_contract(
            manifest,
            model_name=default_model_name(session.bundle.directory) if name is None else name,
            nan_policy=settings.nan_policy,
        )
        self.batcher = Batcher(
            session,
            max_queue=settings.max_queue,
            max_delay_s=settings.max_delay_s,
            on_broken=on_broken,
        )
        self.budget = Budget(settings.max_pending_bytes)
        self.monitor = Monitor(session, self.batcher)
        self.metrics = Metrics(self.batcher, self.monitor, self.budget)
        times = StageTimes(session)
        self.tracing = make_tracing(times) if make_tracing is not None else None
        self._classifier = Classifier(manifest, self.batcher, settings, times)
        self._openapi = openapi_document(self.contract, with_token=settings.token is not None)

    def app(self) -> ASGIApp:
        """The ASGI application, door included."""
        files = [
            Route(path, _named("page", functools.partial(_file, *entry)), methods=["GET"])
            for path, entry in _FILES.items()
        ]
        starlette = Starlette(
            routes=[*files, *self._api_routes()],
            exception_handlers={
                Refusal: _on_refusal,
                HTTPException: _on_http_exception,
                ClientLeft: _on_client_left,
                ClientDisconnect: _on_client_left,
                Exception: _on_fault,
            },
            lifespan=self._lifespan,
        )
        return Door(starlette, settings=self.settings, budget=self.budget, counter=self)

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return not self.batcher.draining and self.batcher.broken is None

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Is told of every answer by the door."""
        self.metrics.answered(scope, status, seconds)
        if self.tracing is not None:
            self.tracing.answered(scope, status, seconds)

    def _api_routes(self) -> list[Route]:
        model = "/v2/models/{model}"
        routes = [
            Route("/v2", _named("metadata", self._server), methods=["GET"]),
            Route("/v2/", _named("metadata", self._server), methods=["GET"]),
            Route("/v2/health/live", _named("health", self._live), methods=["GET"]),
            Route("/v2/health/ready", _named("health", self._ready), methods=["GET"]),
            Route("/metrics", _named("metrics", self._metrics_text), methods=["GET"]),
            Route("/status", _named("status", self._status), methods=["GET"]),
            Route("/openapi.json", _named("metadata", self._document), methods=["GET"]),
            Route("/classify", _named("classify", self._classify), methods=["POST"]),
        ]
        for prefix in (model, model + "/versions/{version}"):
            routes += [
                Route(prefix, _named("metadata", self._model), methods=["GET"]),
                Route(f"{prefix}/ready", _named("health", self._model_ready), methods=["GET"]),
                Route(f"{prefix}/infer", _named("infer", self._infer), methods=["POST"]),
            ]
        return routes

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.monitor.run())]
        if self.tracing is not None:
            tasks.append(asyncio.create_task(self.tracing.run()))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            if self.tracing is not None:
                await self.tracing.flush()
            self._classifier.close()

    # --- the protocol

    async def _server(self, _request: Request) -> Response:
        return JSONResponse(
            {
                "name": "cutset",
                "version": __version__,
                "extensions": ["binary_tensor_data"],
            }
        )

    async def _live(self, _request: Request) -> Response:
        alive = self.batcher.broken is None
        return JSONResponse({"live": alive}, 200 if alive else 503)

    async def _ready(self, _request: Request) -> Response:
        return JSONResponse({"ready": self.is_ready}, 200 if self.is_ready else 503)

    async def _model(self, request: Request) -> Response:
        self._check_model(request)
        return JSONResponse(model_metadata(self.contract))

    async def _model_ready(self, request: Request) -> Response:
        self._check_model(request)
        document = {"name": self.contract.model_name, "ready": self.is_ready}
        return JSONResponse(document, 200 if self.is_ready else 503)

    async def _infer(self, request: Request) -> Response:
        self._check_model(request)
        lease, started_s = _state(request)
        parsed = await self._read_request(request, lease)
        request.scope["state"]["request_id"] = parsed.id
        request.scope["state"]["num_rows"] = parsed.num_rows
        growth = 2 if _all_binary(parsed) else 2 * JSON_GROWTH
        lease.take(self.contract.answer_bytes(parsed.num_rows) * growth)
        limit_s = min(self.settings.deadline_s, parsed.timeout_s or self.settings.deadline_s)
        self.batcher.accept(parsed.num_rows)
        ticket = self.batcher.submit(parsed.inputs, parsed.num_rows)
        request.scope["state"]["sequences"] = ticket.sequences
        outputs = await compute(request, self.batcher, ticket, started_s + limit_s)
        pieces, header_length = await self._encode(parsed, outputs)
        headers = {}
        if header_length is not None:
            headers["Inference-Header-Content-Length"] = str(header_length)
        return PiecesResponse(
            pieces,
            media_type="application/json" if header_length is None else "application/octet-stream",
            headers=headers,
        )

    async def _read_request(self, request: Request, lease: Lease) -> InferRequest:
        most = self.settings.max_json_bytes
        check_content_type(request.headers.get("content-type"))
        given_length = request.headers.get("inference-header-content-length")
        header_length = parse_header_length(given_length, declared_length(request))
        if header_length is not None and header_length > most:
            raise too_long(header_length, most)
        # All of it is JSON, which grows when it is read: one that is too long is not taken in.
        max_bytes = min(most, self.settings.max_body_bytes) if header_length is None else None
        body = await read_body(request, self.settings, lease, max_bytes=max_bytes)
        self.batcher.check_room()  # else the work of understanding it would be for nothing
        parse_header_length(given_length, len(body))
        json_bytes = len(body) if header_length is None else header_length
        lease.take(json_bytes * JSON_GROWTH)
        if json_bytes <= _INLINE_JSON_BYTES and len(body) <= _INLINE_BYTES:
            return decode_request(body, header_length, self.contract)
        return await asyncio.to_thread(decode_request, body, header_length, self.contract)

    async def _encode(
        self, parsed: InferRequest, outputs: Outputs
    ) -> tuple[list[bytes], int | None]:
        num_bytes = self.contract.answer_bytes(parsed.num_rows)
        if num_bytes <= (_INLINE_BYTES if _all_binary(parsed) else _INLINE_JSON_BYTES):
            return encode_answer(self.contract, parsed, outputs)
        return await asyncio.to_thread(encode_answer, self.contract, parsed, outputs)

    def _check_model(self, request: Request) -> None:
        name = request.path_params["model"]
        version = request.path_params.get("version", MODEL_VERSION)
        if name != self.contract.model_name or version != MODEL_VERSION:
            raise Refusal(
                f"there is no model {name[:80]!r} version {version[:20]!r} here; there is "
                f"{self.contract.model_name!r} version {MODEL_VERSION!r}",
                status=404,
                reason="unknown",
            )

    # --- for people

    async def _classify(self, request: Request) -> Response:
        lease, started_s = _state(request)
        request.scope["state"]["num_rows"] = 1
        deadline_at_s = started_s + self.settings.deadline_s
        document = await self._classifier.classify(request, lease, deadline_at_s)
        return JSONResponse({"model_name": self.contract.model_name, **document})

    async def _metrics_text(self, _request: Request) -> Response:
        return Response(self.metrics.text(), headers={"content-type": CONTENT_TYPE})

    async def _status(self, _request: Request) -> Response:
        document = self.monitor.document()
        document["model_name"] = self.contract.model_name
        return JSONResponse(document)

    async def _document(self, _request: Request) -> Response:
        return JSONResponse(self._openapi)


def _named(route: str, handler: Handler) -> Handler:
    """A handler that says for metrics under which name it runs."""

    async def handle(request: Request) -> Response:
        request.scope["state"]["route"] = route
        return await handler(request)

    return handle


def _all_binary(parsed: InferRequest) -> bool:
    return all(binary for _, binary in parsed.outputs)


def _state(request: Request) -> tuple[Lease, float]:
    state: dict[str, Any] = request.scope["state"]
    return state["lease"], state["started_s"]


async def _file(name: str, media_type: str, _request: Request) -> Response:
    text = Path(__file__).with_name("page").joinpath(name).read_bytes()
    return Response(text, media_type=media_type)


async def _on_refusal(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    headers, body = refusal_message(error)
    return Response(body, error.status, headers)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    words = {404: f"there is nothing at {request.url.path[:200]!r}; see /docs"}
    text = words.get(error.status_code, f"{request.method}: {error.detail}")
    return JSONResponse({"error": text}, error.status_code, headers=error.headers)


async def _on_fault(_request: Request, _error: Exception) -> Response:
    # Starlette raises the exception again, so that it is logged in full; clients get no traceback.
    return JSONResponse({"error": "the server failed on this request; its log says why"}, 500)


async def _on_client_left(_request: Request, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
