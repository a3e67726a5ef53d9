"""Control messages over a socket or a pair of pipes: one JSON document a line, bounded, strict.

Over a Unix socket file descriptors can go with a message; they arrive in order, not later than it.
An empty line says only that its sender is there.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import msgspec

from cutset.engines.protocol import Command, Event
from cutset.errors import EngineError
from cutset.processes import encodable

MAX_LINE_BYTES = 1 << 20
"""No control message is longer; a peer that sends a longer line is not one of ours."""

EVENTS = msgspec.json.Decoder(Event)
"""What a session receives."""

COMMANDS = msgspec.json.Decoder(Command)
"""What a worker receives."""

_READ_BYTES = 65536
MAX_FILES = 128
"""No message brings more files: a member of a group has a link to each neighbour."""

MessageT = TypeVar("MessageT")


class ControlChannel(abc.ABC, Generic[MessageT]):
    """One end of a control connection.

    Sending is thread-safe; receiving belongs to one thread.

    Attributes:
        heard_s: when something last came from the other end, on the monotonic clock.
    """

    def __init__(self, decoder: msgspec.json.Decoder[MessageT]) -> None:
        self._decoder = decoder
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._pending = bytearray()
        self.heard_s = time.monotonic()

    @abc.abstractmethod
    def _write(self, data: bytes, files: tuple[int, ...]) -> None:
        """Sends all of `data`; raises OSError where the other end is gone."""

    @abc.abstractmethod
    def _read(self) -> bytes:
        """Waits for what comes next; nothing where the other end closed."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the connection and what came and nobody took."""

    def send(self, message: msgspec.Struct, files: tuple[int, ...] = ()) -> None:
        """Sends one message.

        Args:
            message: what to say.
            files: at most 128 descriptors that go with it, over a Unix socket; the other end gets
                copies.

        Raises:
            OSError: the other end is gone.
        """
        try:
            line = self._encoder.encode(message) + b"\n"
        except UnicodeEncodeError:
            line = self._encoder.encode(encodable(msgspec.to_builtins(message))) + b"\n"
        with self._lock:
            self._write(line, files)

    def say_here(self) -> None:
        """Lets the other end know that this one is there, unless it is being told something."""
        if self._lock.acquire(blocking=False):
            try:
                self._write(b"\n", ())
            finally:
                self._lock.release()

    def take_files(self, count: int) -> tuple[int, ...]:
        """The oldest `count` descriptors that came and were not taken; the taker closes them.

        Raises:
            EngineError: fewer came.
        """
        raise EngineError(f"{count} files should have come with a message; none can come this way")

    def messages(self) -> Iterator[MessageT]:
        """Yields messages until the other end closes or dies.

        Raises:
            EngineError: a line is too long or is no message.
        """
        for line in self.lines():
            if line:
                yield self._decode(line)

    def lines(self) -> Iterator[bytes]:
        """Yields lines, empty ones too, until the other end closes or dies.

        Raises:
            EngineError: a line is too long.
        """
        while True:
            while (end := self._pending.find(b"\n")) >= 0:
                line = bytes(self._pending[:end])
                del self._pending[: end + 1]
                yield line
            if len(self._pending) > MAX_LINE_BYTES:
                raise EngineError(
                    f"a control message is longer than {MAX_LINE_BYTES} bytes; the connection"
                    " is not used any more"
                )
            if not self._read_more():
                return

    def _read_more(self) -> bool:
        try:
            data = self._read()
        except ConnectionError:
            return False
        self.heard_s = time.monotonic()
        self._pending += data
        return bool(data)

    def _decode(self, line: bytes) -> MessageT:
        try:
            return self._decoder.decode(line)
        except msgspec.DecodeError as error:
            raise EngineError(f"a control message cannot be understood: {error}") from error


class ControlSocket(ControlChannel[MessageT]):
    """A control connection over a stream socket; a Unix socket carries descriptors too."""

    def __init__(self, connection: socket.socket, decoder: msgspec.json.Decoder[MessageT]) -> None:
        super().__init__(decoder)
        self._connection = connection
        self._files: collections.deque[int] = collections.deque()

    @classmethod
    def for_session(cls, connection: socket.socket) -> ControlSocket[Event]:
        """The session's end, which receives events."""
        return ControlSocket(connection, EVENTS)

    @classmethod
    def for_worker(cls, connection: socket.socket) -> ControlSocket[Command]:
        """The worker's end, which receives commands."""
        return ControlSocket(connection, COMMANDS)

    def _write(self, data: bytes, files: tuple[int, ...]) -> None:
        if files:
            data = data[socket.send_fds(self._connection, [data], list(files)) :]
        self._connection.sendall(data)

    def _read(self) -> bytes:
        data, files, _, _ = socket.recv_fds(self._connection, _READ_BYTES, MAX_FILES)
        self._files.extend(files)
        if len(self._files) > MAX_FILES:
            raise EngineError(
                f"{len(self._files)} files came that no message spoke of; the connection is"
                " not used any more"
            )
        return data

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

    def close(self) -> None:
        """Closes the connection and files that nobody took; a thread in `messages` stops."""
        while self._files:
            os.close(self._files.popleft())
        with contextlib.suppress(OSError):  # the other end closed first
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


class ControlPipes(ControlChannel[MessageT]):
    """A control connection over two pipes, such as a program's input and output.

    Args:
        reading: descriptor of what comes.
        writing: descriptor of what goes; may be the same.
        decoder: of the messages that come.
    """

    def __init__(self, reading: int, writing: int, decoder: msgspec.json.Decoder[MessageT]) -> None:
        super().__init__(decoder)
        self._reading = reading
        self._writing = writing

    def _write(self, data: bytes, files: tuple[int, ...]) -> None:
        assert not files, "descriptors do not cross between hosts"
        view = memoryview(data)
        while view:
            view = view[os.write(self._writing, view) :]

    def _read(self) -> bytes:
        return os.read(self._reading, _READ_BYTES)

    def write_bytes(self, data: bytes) -> None:
        """Sends bytes that a message before announced.

        Raises:
            OSError: the other end is gone.
        """
        with self._lock:
            self._write(data, ())

    def take_bytes(self, count: int, take: Callable[[bytes], None]) -> bool:
        """Hands the next `count` bytes on as they come; False where the other end closed before."""
        while count:
            if not self._pending and not self._read_more():
                return False
            piece = bytes(self._pending[:count])
            del self._pending[: len(piece)]
            take(piece)
            count -= len(piece)
        return True

    def close(self) -> None:
        """Closes both ends; no thread may be in `messages` then. Sending fails from now on."""
        with self._lock:
            for descriptor in {self._reading, self._writing} - {-1}:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            self._reading = self._writing = -1
