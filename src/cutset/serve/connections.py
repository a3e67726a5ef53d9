"""HTTP connections with limits that uvicorn lacks: how many, and how long until they say a word."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from cutset.serve.settings import ServeSettings

_LOG = logging.getLogger(__name__)


def _closing_response(status: str, text: str, extra: str = "") -> bytes:
    body = json.dumps({"error": text})
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        f"{extra}connection: close\r\n\r\n{body}"
    ).encode()


_FULL = _closing_response(
    "503 Service Unavailable", "the server has as many connections as it may", "retry-after: 1\r\n"
)
_SLOW = _closing_response("408 Request Timeout", "the request did not arrive in time")


class GuardedProtocol(H11Protocol):
    """One connection; uvicorn makes it, see `protocol_class`."""

    settings: ServeSettings

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._header_timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses a connection too many, else starts the clock for the first request."""
        if len(self.connections) >= self.settings.max_connections:
            self._refused = True
            self.transport = transport
            transport.write(_FULL)
            transport.close()
            return
        super().connection_made(transport)
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        """Takes bytes; those of a request whose headers are not complete keep the clock running."""
        if self._refused:
            return
        if self._header_timer is None and self._is_between_requests():
            self._start_clock()
        super().data_received(data)
        if not self._is_between_requests():
            self._stop_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._stop_clock()
        if not self._refused:
            super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP in the form of all other errors."""
        self._stop_clock()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_closing_response("400 Bad Request", msg))
        self.transport.close()

    def _is_between_requests(self) -> bool:
        """Whether no request is under way: its headers did not come yet, or not all of them."""
        return self.conn.their_state in (h11.IDLE, h11.DONE) and (
            self.cycle is None or self.cycle.response_complete
        )

    def _start_clock(self) -> None:
        self._header_timer = self.loop.call_later(self.settings.header_timeout_s, self._on_timeout)

    def _stop_clock(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _on_timeout(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing() and self._is_between_requests():
            self.transport.write(_SLOW)
            self.transport.close()


def protocol_class(limits: ServeSettings) -> type[GuardedProtocol]:
    """The class of connections with some settings; uvicorn passes none to them."""

    class Protocol(GuardedProtocol):
        settings = limits

    return Protocol
