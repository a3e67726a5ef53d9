"""A link between two hosts: headers and tensors as messages of a ZeroMQ connection.

A micro-batch whose tensors are small is one message, the header and after it their bytes. Else the
header is a message of its own, and the bytes of each tensor follow in messages of at most
`PART_BYTES`. What a message may hold is known before it comes; what waits in queues is bounded.

A neighbour that dies is noticed at once, one that is merely silent after the link's time-out; a
sender with nothing to send says so regularly. Nothing that has once failed is used again.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator

import numpy as np
import zmq

from cutset.dtypes import empty_array
from cutset.links.arena import padded
from cutset.links.joining import PART_BYTES
from cutset.links.neighbour import NeighbourSocket
from cutset.links.parcels import LinkClosedError, LinkContract, Parcel, sendable, share
from cutset.links.wire import (
    DATA,
    KEEP_ALIVE,
    Header,
    WireError,
    as_bytes,
    from_bytes,
    pack_header,
    unpack_header,
)

_INLINE_BYTES = 64 << 10
"""Tensors of so many bytes together go with their header: a copy costs less than a message."""
_BYTE = np.dtype(np.uint8)


class Sender:
    """The sending end of a link; belongs to one thread.

    Args:
        connection: to the neighbour; closed by `close`.
        link: what it may carry.
        epoch: the epoch that every message names.
        timeout_s: how long the neighbour may take to receive a message.
    """

    def __init__(
        self, connection: NeighbourSocket, link: LinkContract, epoch: int, timeout_s: float
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._link = link
        self._epoch = epoch
        self._stuck_since_s: float | None = None

    def send(self, parcel: Parcel) -> None:
        """Sends one micro-batch and waits until its tensors are not read any more.

        Raises:
            LinkClosedError: the neighbour is gone.
            LinkTimeout: the neighbour did not take it in time.
            UnsendableError: a tensor is of a kind that cannot be sent. Nothing was sent.
        """
        arrays, layouts = sendable(parcel, self._link)
        header = Header(
            kind=DATA,
            epoch=self._epoch,
            sequence=parcel.sequence,
            num_rows=parcel.num_rows,
            layouts=layouts,
        )
        self._send(header, [as_bytes(array) for array in arrays])

    def keep_alive(self) -> None:
        """Tells the neighbour that this end lives, unless it has much to read anyway.

        Raises:
            LinkClosedError: the neighbour is gone.
            LinkTimeout: the neighbour has taken nothing for too long.
        """
        self._connection.require_neighbour()
        try:
            self._connection.socket.send(
                self._packed(Header(kind=KEEP_ALIVE, epoch=self._epoch)), zmq.DONTWAIT
            )
        except zmq.Again:
            now_s = time.monotonic()
            self._stuck_since_s = self._stuck_since_s or now_s
            if now_s - self._stuck_since_s > self._timeout_s:
                raise self._connection.timeout_error(now_s - self._stuck_since_s) from None
        else:
            self._stuck_since_s = None

    def close(self) -> None:
        """Closes the link at this end; what the system has not taken yet is dropped."""
        self._connection.close()

    def _packed(self, header: Header) -> bytearray:
        buffer = bytearray(self._link.header_bytes)
        pack_header(header, buffer, self._link.max_rank)
        return buffer

    def _send(self, header: Header, payloads: list[np.ndarray]) -> None:
        packed = self._packed(header)
        if sum(data.size for data in payloads) <= _INLINE_BYTES:
            self._put(b"".join((packed, *(data.data for data in payloads))))
        else:
            self._put(packed)
            trackers = [self._put(part.data) for data in payloads for part in _parts(data)]
            for tracker in trackers:
                self._await(tracker)
        self._connection.require_neighbour()

    def _put(self, message: bytes | bytearray | memoryview) -> zmq.MessageTracker | None:
        """Hands one message to ZeroMQ, which reads large ones where they are."""
        return self._connection.retried(
            lambda: self._connection.socket.send(message, zmq.DONTWAIT, copy=False, track=True),
            zmq.POLLOUT,
            self._timeout_s,
        )

    def _await(self, tracker: zmq.MessageTracker | None) -> None:
        """Waits until ZeroMQ does not read a message's memory any more."""
        assert tracker is not None

        def glance(seconds: float) -> bool:
            with contextlib.suppress(zmq.NotDone):
                tracker.wait(seconds)
            return tracker.done

        self._connection.until(glance, self._timeout_s)


class Receiver:
    """The receiving end of a link; belongs to one thread.

    Args:
        connection: to the neighbour; closed by `close`.
        link: what it may carry.
        epoch: the epoch that every message must name.
        timeout_s: how long the neighbour may be silent, or take to send a part of a tensor.
        reuse: hand out memory that is used again once the parcel is released; otherwise each
            parcel has memory of its own, which needs no release.
    """

    def __init__(
        self,
        connection: NeighbourSocket,
        link: LinkContract,
        epoch: int,
        timeout_s: float,
        *,
        reuse: bool,
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._link = link
        self._epoch = epoch
        self._reuse = reuse
        self._free: list[np.ndarray] = []

    def receive(self) -> tuple[Header, Parcel]:
        """Waits for one message and receives its tensors.

        Returns:
            The header, and the parcel; a keep-alive has no tensors.

        Raises:
            LinkClosedError: the neighbour is gone, or sent what no neighbour sends.
            LinkTimeout: nothing came in time, not even a keep-alive.
        """
        message = self._await_header()
        arrived_s = time.monotonic()
        try:
            header = self._read_header(message)
            parcel = Parcel(
                sequence=header.sequence, num_rows=header.num_rows, tensors=(), arrived_s=arrived_s
            )
            if header.kind == DATA:
                self._receive_tensors(header, parcel, message[self._link.header_bytes :])
                parcel.received_s = time.monotonic()
        except WireError as error:
            raise LinkClosedError(f"link {self._link.name}: {error}") from error
        return header, parcel

    def close(self) -> None:
        """Closes the link at this end."""
        self._connection.close()

    def _await_header(self) -> np.ndarray:
        frame = self._connection.retried(
            lambda: self._connection.socket.recv(zmq.DONTWAIT, copy=False),
            zmq.POLLIN,
            self._timeout_s,
        )
        return np.frombuffer(frame.buffer, np.uint8)

    def _read_header(self, message: np.ndarray) -> Header:
        header_bytes = self._link.header_bytes
        if message.size < header_bytes:
            raise WireError(f"a message of {message.size} bytes in the place of a header")
        header = unpack_header(
            message[:header_bytes].tobytes(),
            epoch=self._epoch,
            max_rank=self._link.max_rank,
            max_rows=self._link.max_rows,
            max_bytes=self._link.max_bytes,
            num_slots=0,
        )
        if header.kind == DATA:
            self._link.check_payloads(header)
        num_bytes = sum(layout.num_bytes for layout in header.layouts)
        inline_bytes = num_bytes if num_bytes <= _INLINE_BYTES else 0
        if message.size != header_bytes + inline_bytes:
            raise WireError(
                f"{message.size - header_bytes} bytes after a header that announces {num_bytes}"
            )
        return header

    def _receive_tensors(self, header: Header, parcel: Parcel, inline: np.ndarray) -> None:
        memory = self._take_memory(sum(padded(layout.num_bytes) for layout in header.layouts))
        arrays = []
        offset = begun = 0
        for layout in header.layouts:
            piece = memory[offset : offset + layout.num_bytes]
            if inline.size:
                piece[:] = inline[begun : begun + piece.size]
                begun += piece.size
            else:
                self._fill(piece)
            arrays.append(from_bytes(piece, layout))
            offset += padded(layout.num_bytes)
        parcel.tensors = self._link.decoded(tuple(arrays), header.num_rows)
        parcel.wire_bytes = sum(layout.num_bytes for layout in header.layouts)
        if not self._reuse:
            return
        if share(parcel.tensors, arrays):
            parcel.release = lambda: self._free.append(memory)
        else:
            self._free.append(memory)

    def _fill(self, piece: np.ndarray) -> None:
        """Receives the messages that make up one tensor."""
        for part in _parts(piece):
            num_bytes = self._connection.retried(
                functools.partial(self._connection.socket.recv_into, part.data, flags=zmq.DONTWAIT),
                zmq.POLLIN,
                self._timeout_s,
            )
            if num_bytes != part.size:
                raise WireError(f"{num_bytes} bytes of a tensor in the place of {part.size}")

    def _take_memory(self, num_bytes: int) -> np.ndarray:
        if not self._reuse:
            return empty_array((num_bytes,), _BYTE)
        try:
            # list.pop and list.append are atomic; as many buffers exist as parcels were held at
            # once, which the session's window bounds.
            return self._free.pop()
        except IndexError:
            return empty_array((max(self._link.slot_bytes, num_bytes),), _BYTE)


def _parts(memory: np.ndarray) -> Iterator[np.ndarray]:
    return (memory[start : start + PART_BYTES] for start in range(0, len(memory), PART_BYTES))
