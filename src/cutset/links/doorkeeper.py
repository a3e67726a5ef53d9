"""This process's part of ZeroMQ: its one context, and who may connect to its sockets.

ZeroMQ asks before it lets anyone in whose handshake is right so far (RFC 27, ZAP). The answer is
no, unless who connects shows what the one neighbour that is awaited there was told. Until then
nothing that comes reaches a socket, and nothing is sent.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import zmq

_LOG = logging.getLogger(__name__)

_ASKED_AT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_NUM_FIELDS = 6
_IO_THREADS = 2
"""One encrypts what is sent while another decrypts what is received."""

_DESCRIPTORS = 32
"""More than ZeroMQ and its binding open for a context; lacking one, they end the process."""


class Doorkeeper:
    """Holds the context and answers for it; made once by `doorkeeper`.

    Raises:
        OSError: too few descriptors are left.
        RuntimeError: no thread is left.
    """

    def __init__(self) -> None:
        _require_descriptors(_DESCRIPTORS)
        self.context = zmq.Context(io_threads=_IO_THREADS)
        self._lock = threading.Lock()
        self._awaited: dict[bytes, tuple[bytes, ...]] = {}
        self._asked = self.context.socket(zmq.REP)
        self._asked.bind(_ASKED_AT)
        threading.Thread(target=self._answer, name="cutset-doorkeeper", daemon=True).start()

    @contextlib.contextmanager
    def awaiting(self, credentials: tuple[bytes, ...]) -> Iterator[bytes]:
        """Admits who shows `credentials`, as long as the block lasts.

        Yields:
            The domain in which they count, for the socket.
        """
        domain = secrets.token_hex(16).encode()
        with self._lock:
            self._awaited[domain] = credentials
        try:
            yield domain
        finally:
            with self._lock:
                del self._awaited[domain]

    def _answer(self) -> None:
        while True:
            request = self._asked.recv_multipart()
            code, text = (b"200", b"OK") if self._admits(request) else (b"400", b"No")
            number = request[1] if len(request) > 1 else b""
            self._asked.send_multipart([_VERSION, number, code, text, b"", b""])

    def _admits(self, request: list[bytes]) -> bool:
        if len(request) < _NUM_FIELDS or request[0] != _VERSION:
            return False
        _, _, domain, address, _, mechanism, *credentials = request
        with self._lock:
            awaited = self._awaited.get(domain)
        if awaited is not None and hmac.compare_digest(
            b"\0".join(credentials), b"\0".join(awaited)
        ):
            return True
        _LOG.info("turned away: %r with %r", address, mechanism)
        return False


def _require_descriptors(count: int) -> None:
    """Raises OSError where fewer are left."""
    with contextlib.ExitStack() as opened:
        for _ in range(count):
            opened.enter_context(Path(os.devnull).open("rb"))


_lock = threading.Lock()
_keepers: dict[int, Doorkeeper] = {}


def doorkeeper() -> Doorkeeper:
    """This process's doorkeeper, made where there is none yet.

    Where links between hosts will be wanted, this is called beforehand: ZeroMQ ends a process that
    has no thread, descriptor or memory left when it begins.

    Raises:
        OSError: too few descriptors are left.
        RuntimeError: no thread is left.
    """
    with _lock:
        process = os.getpid()  # a fork has none of its parent's threads
        if process not in _keepers:
            _keepers[process] = Doorkeeper()
        return _keepers[process]
