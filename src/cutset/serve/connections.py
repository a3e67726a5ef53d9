"""HTTP connections with limits that uvicorn lacks.

How many there may be, how long they may take to say a word, and to take what they are given.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import weakref
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
_LONG_HEADERS = _closing_response(
    "431 Request Header Fields Too Large", "the request line and headers are too long"
)
_BLANK_LINE = re.compile(rb"\n\r?\n")
_SPARE_CONNECTIONS = 32
_HANDSHAKE_TIMEOUT_S = 10.0


class EventLoop(asyncio.SelectorEventLoop):
    """asyncio's, with a limit on TLS handshakes that uvicorn has no setting for."""

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        """As asyncio's."""
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", _HANDSHAKE_TIMEOUT_S)
        return await super().create_server(*args, **options)


class Listener(socket.socket):
    """A listening socket that hangs up at once on connections far too many.

    `GuardedProtocol` tells a connection too many why it is closed. It only sees those whose TLS
    handshake is over; this sees all of them, those included that are closing and still have bytes
    to be taken.

    Attributes:
        max_open: most connections that are open at once.
    """

    max_open = 0

    def limit(self, max_connections: int) -> None:
        """Sets how many connections there may be, and a few more that are told why not."""
        self.max_open = max_connections + _SPARE_CONNECTIONS
        self._open: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            BlockingIOError: there is none, or it was one too many.
        """
        connection, address = super().accept()
        if sum(each.fileno() >= 0 for each in self._open) >= self.max_open:
            connection.close()
            raise BlockingIOError
        self._open.add(connection)
        return connection, address


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
        self._take_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None
        self._was_closing = False
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses a connection too many, else starts the clock for the first request."""
        self.transport = transport
        self._look_for_close()
        if len(self.connections) >= self.settings.max_connections:
            self._refused = True
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
        for timer in (self._take_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        if not self._refused:
            super().connection_lost(exc)

    def handle_events(self) -> None:
        """Reads what came, unless it is the beginning of headers without an end."""
        # h11 looks at the length only while they are incomplete, so all in one packet would pass.
        if self._is_between_requests():
            limit = self.settings.max_header_bytes
            data, _ = self.conn.trailing_data
            if len(data) > limit and _BLANK_LINE.search(data, 0, limit + 1) is None:
                self._stop_clock()
                self.transport.write(_LONG_HEADERS)
                self.transport.close()
                return
        super().handle_events()

    def pause_writing(self) -> None:
        """Starts the clock for a client that does not take its answer."""
        super().pause_writing()
        self._take_timer = self.loop.call_later(self.settings.body_timeout_s, self._on_not_taken)

    def resume_writing(self) -> None:
        """Stops it again."""
        if self._take_timer is not None:
            self._take_timer.cancel()
        super().resume_writing()

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

    def _on_not_taken(self) -> None:
        _LOG.warning("a client did not take its answer and was left")
        self.transport.abort()

    def _look_for_close(self) -> None:
        """Ends a connection that was closed, and whose client does not take the last bytes."""
        if self.transport.is_closing() and self._was_closing:
            self.transport.abort()
            return
        self._was_closing = self.transport.is_closing()
        self._close_timer = self.loop.call_later(self.settings.body_timeout_s, self._look_for_close)


def protocol_class(limits: ServeSettings) -> type[GuardedProtocol]:
    """The class of connections with some settings; uvicorn passes none to them."""

    class Protocol(GuardedProtocol):
        settings = limits

    return Protocol
