"""The server process: listen, serve, and on SIGTERM finish what was accepted and leave."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
import types
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from cutset.errors import CutsetError
from cutset.runtime.session import Session
from cutset.serve.app import Service
from cutset.serve.connections import EventLoop, Listener, protocol_class
from cutset.serve.settings import ServeSettings
from cutset.serve.stage_times import StageTimes

if TYPE_CHECKING:  # an extra of its own
    from cutset.serve.tracing import Tracing

_LOG = logging.getLogger(__name__)

_BACKLOG = 128
_POLL_S = 0.02


def bind(settings: ServeSettings) -> socket.socket:
    """Takes the address, so that a taken port is known before any worker starts.

    Raises:
        CutsetError: the address cannot be taken, or the certificate cannot be used.
    """
    _check_certificate(settings)
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = Listener(family, kind, protocol)
        listener.limit(settings.max_connections)
    except OSError as error:
        raise CutsetError(f"host {settings.host!r} is no address to listen on: {error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise CutsetError(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; choose "
            "another with --port, or 0 for any"
        ) from error
    return listener


def _check_certificate(settings: ServeSettings) -> None:
    if settings.tls_cert is None:
        return
    try:
        # The empty password has a key that needs one fail here, instead of asking the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls_cert, settings.tls_key, password=""
        )
    except (OSError, ValueError) as error:  # ssl's own errors are OSErrors
        reason = getattr(error, "strerror", None) or str(error)
        raise CutsetError(
            f"--tls-cert {settings.tls_cert} and --tls-key {settings.tls_key} cannot be used: "
            f"{reason}; expected PEM files that belong together, the key without a password"
        ) from error


def address_of(settings: ServeSettings, listener: socket.socket) -> str:
    """The URL under which the server can be reached from where it listens."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{host}:{listener.getsockname()[1]}"


class Server(uvicorn.Server):
    """uvicorn, but its first signal only stops the taking of requests.

    Args:
        session: the running pipeline.
        settings: addresses and limits.
        make_tracing: as for `Service`.
        on_listening: called once requests are taken.
    """

    def __init__(
        self,
        session: Session,
        settings: ServeSettings,
        make_tracing: Callable[[StageTimes], Tracing] | None = None,
        on_listening: Callable[[], None] | None = None,
    ) -> None:
        self.service = Service(
            session,
            settings,
            on_broken=lambda _error: self.leave(),
            make_tracing=make_tracing,
        )
        self._settings = settings
        self._on_listening = on_listening
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: asyncio.Task[None] | None = None
        super().__init__(
            uvicorn.Config(
                self.service.app(),
                http=protocol_class(settings),
                ws="none",
                lifespan="on",
                loop=f"{EventLoop.__module__}:{EventLoop.__name__}",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                h11_max_incomplete_event_size=settings.max_header_bytes,
                timeout_keep_alive=round(settings.keep_alive_s),
                timeout_graceful_shutdown=round(settings.drain_timeout_s),
                ssl_certfile=settings.tls_cert,
                ssl_keyfile=settings.tls_key,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self._on_listening is not None:
            self._on_listening()

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:  # noqa: ARG002
        """The first signal has the server leave in good order, the second at once."""
        if self._leaving is not None or self._loop is None:
            self.should_exit = True
            self.force_exit = True
            return
        _LOG.info("signal %s: leaving", signal.Signals(sig).name)
        self._loop.call_soon_threadsafe(self.leave)

    def leave(self) -> None:
        """Stops taking requests, and ends once those that were accepted are answered."""
        if self._leaving is None:
            self.service.batcher.drain()
            self._leaving = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        batcher = self.service.batcher
        waited_s = 0.0
        while batcher.num_accepted_rows and waited_s < self._settings.drain_timeout_s:
            await asyncio.sleep(_POLL_S)
            waited_s += _POLL_S
        self.should_exit = True


def serve(
    session: Session,
    settings: ServeSettings,
    listener: socket.socket,
    *,
    make_tracing: Callable[[StageTimes], Tracing] | None = None,
    on_listening: Callable[[], None] | None = None,
    on_server: Callable[[Server], None] | None = None,
) -> None:
    """Serves a session until a signal; closes the listener, leaves the session open.

    Args:
        session: the running pipeline; only the server may submit to it.
        settings: addresses and limits.
        listener: as `bind` gives it.
        make_tracing: as for `Service`.
        on_listening: called once requests are taken.
        on_server: told of the server before it starts; its `leave` may be called on its loop.

    Raises:
        ValueError: the model has a tensor that the protocol cannot carry.
        CutsetError: the pipeline ended and could not be brought back, or the server did not start.
    """
    try:
        server = Server(session, settings, make_tracing, on_listening)
    except BaseException:
        listener.close()
        raise
    if on_server is not None:
        on_server(server)
    try:
        server.run(sockets=[listener])
    except (SystemExit, OSError) as error:  # uvicorn leaves so when its start fails
        raise CutsetError(f"the server could not start: {error}") from error
    finally:
        listener.close()
    if server.service.batcher.broken is not None:
        raise server.service.batcher.broken
