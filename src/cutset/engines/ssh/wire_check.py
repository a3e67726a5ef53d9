"""How fast two devices reach each other over plain TCP: what `cutset hosts check` asks boards.

A port is open for one connection, which has to show a token first.
"""

from __future__ import annotations

import hmac
import socket
import time
from statistics import median

from cutset.errors import EngineError

TIMEOUT_S = 10.0
SENDING_S = 0.4

_NUM_TURNS = 7
_CHUNK = bytes(64 << 10)
_ANSWER = b"."
_LENGTH_BYTES = 8


class WireEnd:
    """A board's end: it listens, or it sends."""

    def __init__(self) -> None:
        self._listener: socket.socket | None = None

    def open_port(self, host: str) -> int:
        """Listens at an address; returns the port.

        Raises:
            EngineError: the address is none of this host's.
        """
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise EngineError(f"nothing can listen at {host}: {error.strerror or error}") from error
        self._listener.settimeout(TIMEOUT_S)
        return int(self._listener.getsockname()[1])

    def serve(self, token: str) -> int:
        """Answers the one who knows the token; returns how many bytes came in bulk.

        Raises:
            EngineError: nobody came, or a stranger.
        """
        assert self._listener is not None
        try:
            with self._listener as listener:
                connection, _ = listener.accept()
            with connection:
                connection.settimeout(TIMEOUT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if not hmac.compare_digest(_exactly(connection, len(token)), token.encode()):
                    raise EngineError("a stranger connected")
                for _ in range(_NUM_TURNS):
                    _exactly(connection, 1)
                    connection.sendall(_ANSWER)
                total = 0
                while piece := connection.recv(len(_CHUNK)):
                    total += len(piece)
                connection.sendall(total.to_bytes(_LENGTH_BYTES, "big"))
                return total
        except OSError as error:
            raise EngineError(f"nobody came: {error}") from error

    def measure(self, host: str, port: int, token: str) -> tuple[float, float]:
        """Sends to who listens; returns bytes per second, and seconds of a message one way.

        Raises:
            EngineError: it cannot be reached.
        """
        try:
            with socket.create_connection((host, port), TIMEOUT_S) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(token.encode())
                latency_s = median(_turn_s(connection) for _ in range(_NUM_TURNS)) / 2
                started_s = time.perf_counter()
                while time.perf_counter() - started_s < SENDING_S:
                    connection.sendall(_CHUNK)
                connection.shutdown(socket.SHUT_WR)
                total = int.from_bytes(_exactly(connection, _LENGTH_BYTES), "big")
                return total / (time.perf_counter() - started_s), latency_s
        except OSError as error:
            raise EngineError(f"{host} cannot be reached: {error}") from error


def _turn_s(connection: socket.socket) -> float:
    started_s = time.perf_counter()
    connection.sendall(_ANSWER)
    _exactly(connection, 1)
    return time.perf_counter() - started_s


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionResetError("the other end closed")
        data += piece
    return data
