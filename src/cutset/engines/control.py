"""Control messages over a stream socket: one JSON document a line, bounded, strictly decoded.

Over a Unix socket file descriptors can go with a message; they arrive in order, not later than it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from cutset.engines.protocol import Command, Event
from cutset.errors import EngineError
from cutset.processes import encodable

MAX_LINE_BYTES = 1 << 20
"""No control message is longer; a peer that sends a longer line is not one of ours."""

_MAX_FILES = 8
"""No message brings more files."""

MessageT = TypeVar("MessageT")


class ControlSocket(Generic[MessageT]):
    """One end of a control connection.

    Sending is thread-safe; receiving belongs to one thread.
    """

    def __init__(self, connection: socket.socket, decoder: msgspec.json.Decoder[MessageT]) -> None:
        self._connection = connection
        self._decoder = decoder
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._files: collections.deque[int] = collections.deque()

    @classmethod
    def for_session(cls, connection: socket.socket) -> ControlSocket[Event]:
        """The session's end, which receives events."""
        return ControlSocket(connection, msgspec.json.Decoder(Event))

    @classmethod
    def for_worker(cls, connection: socket.socket) -> ControlSocket[Command]:
        """The worker's end, which receives commands."""
        return ControlSocket(connection, msgspec.json.Decoder(Command))

    def send(self, message: msgspec.Struct, files: tuple[int, ...] = ()) -> None:
        """Sends one message.

        Args:
            message: what to say.
            files: at most 8 descriptors that go with it; the other end gets copies.

        Raises:
            OSError: the other end is gone.
        """
        try:
            line = self._encoder.encode(message) + b"\n"
        except UnicodeEncodeError:
            line = self._encoder.encode(encodable(msgspec.to_builtins(message))) + b"\n"
        with self._lock:
            if files:
                line = line[socket.send_fds(self._connection, [line], list(files)) :]
            self._connection.sendall(line)

    def take_files(self, count: int) -> tuple[int, ...]:
        """The oldest `count` descriptors that came and were not taken; the taker closes them.

        Raises:
            EngineError: fewer came.
        """
        if len(self._files) < count:
            raise EngineError(
                f"{count} files should have come with a message, not {len(self._files)}"
            )
        return tuple(self._files.popleft() for _ in range(count))

    def messages(self) -> Iterator[MessageT]:
        """Yields messages until the other end closes or dies.

        Raises:
            EngineError: a line is too long or is no message.
        """
        pending = bytearray()
        while True:
            try:
                data, files, _, _ = socket.recv_fds(self._connection, 65536, _MAX_FILES)
            except ConnectionError:
                return
            self._files.extend(files)
            if len(self._files) > _MAX_FILES:
                raise EngineError(
                    f"{len(self._files)} files came that no message spoke of; the connection is"
                    " not used any more"
                )
            if not data:
                return
            pending += data
            *lines, rest = pending.split(b"\n")
            pending = bytearray(rest)
            for line in lines:
                yield self._decode(bytes(line))
            if len(pending) > MAX_LINE_BYTES:
                raise EngineError(
                    f"a control message is longer than {MAX_LINE_BYTES} bytes; the connection"
                    " is not used any more"
                )

    def _decode(self, line: bytes) -> MessageT:
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise EngineError(f"a control message cannot be understood: {error}") from error

    def close(self) -> None:
        """Closes the connection and files that nobody took; a thread in `messages` stops."""
        while self._files:
            os.close(self._files.popleft())
        with contextlib.suppress(OSError):  # the other end closed first
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
