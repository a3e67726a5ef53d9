"""OpenTelemetry spans: one for each request, one below it for each stage (extra ``tracing``).

What the stages did is known only after the answer is out, so spans are made a moment later, with
the times at which things happened. Where they go is for the tracer provider to say.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import logging
import time

from opentelemetry import context, propagate, trace
from starlette.datastructures import Headers
from starlette.types import Scope

from cutset.serve.stage_times import StageTime, StageTimes, stage_times

_LOG = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_MAX_PENDING = 1024
_TRACED_ROUTES = ("infer", "classify")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Finished:
    """A request whose span is not made yet; times on the monotonic clock."""

    name: str
    parent: context.Context
    start_s: float
    stop_s: float
    attributes: dict[str, str | int]
    sequences: tuple[int, ...]


class Tracing:
    """Collects finished requests and makes their spans.

    Args:
        times: where the stages' times come from.
        provider: makes the spans; the global one where None.
    """

    def __init__(self, times: StageTimes, provider: trace.TracerProvider | None = None) -> None:
        self._times = times
        self._tracer = trace.get_tracer("cutset.serve", tracer_provider=provider)
        self._pending: collections.deque[_Finished] = collections.deque()
        self._num_lost = 0

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Notes a request that was answered."""
        state = scope["state"]
        route = state.get("route", "")
        if route not in _TRACED_ROUTES:
            return
        if len(self._pending) >= _MAX_PENDING:
            self._num_lost += 1
            return
        headers = Headers(scope=scope)
        self._pending.append(
            _Finished(
                name=f"{scope['method']} {route}",
                parent=propagate.extract({key: headers[key] for key in headers}),
                start_s=state["started_s"],
                stop_s=state["started_s"] + seconds,
                attributes={
                    "http.request.method": scope["method"],
                    "http.response.status_code": status,
                    "url.path": scope["path"],
                    "cutset.request_id": state.get("request_id", ""),
                    "cutset.num_rows": state.get("num_rows", 0),
                },
                sequences=tuple(state.get("sequences", ())),
            )
        )

    async def run(self) -> None:
        """Makes spans once a second until it is cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self.flush()

    async def flush(self) -> None:
        """Makes the spans of everything that was noted."""
        if not self._pending:
            return
        finished = tuple(self._pending)
        self._pending.clear()
        if self._num_lost:
            _LOG.warning("%d requests got no span: too many in a second", self._num_lost)
            self._num_lost = 0
        timelines = await self._times.timelines() or ()
        clock_ns = time.time_ns() - time.monotonic_ns()
        for each in finished:
            stages = stage_times(timelines, each.sequences) if timelines else None
            self._make(each, stages or (), clock_ns)

    def _make(self, each: _Finished, stages: tuple[StageTime, ...], clock_ns: int) -> None:
        def at(seconds: float) -> int:
            return clock_ns + int(seconds * 1e9)

        span = self._tracer.start_span(
            each.name,
            context=each.parent,
            kind=trace.SpanKind.SERVER,
            start_time=at(each.start_s),
            attributes=each.attributes,
        )
        below = trace.set_span_in_context(span, each.parent)
        for stage in stages:
            child = self._tracer.start_span(
                f"stage {stage.stage}",
                context=below,
                start_time=at(stage.start_s),
                attributes={"cutset.stage": stage.stage, "cutset.compute_s": stage.compute_s},
            )
            # The last stage's call that sends may return after the answer is out.
            child.end(at(min(stage.stop_s, each.stop_s)))
        if int(each.attributes["http.response.status_code"]) >= 500:
            span.set_status(trace.StatusCode.ERROR)
        span.end(at(each.stop_s))
