"""A link between two neighbours on one host: headers over a socket pair, tensors in shared memory.

Between hosts each message wakes a thread of ZeroMQ's and one of ours at both ends. Over a socket
pair a header costs a small part of that. The pair has no address:
the session makes it for an epoch and hands one end to each neighbour, so nobody else can connect.
"""

from __future__ import annotations

import collections
import contextlib
import math
import select
import socket
import time
from collections.abc import Sequence

from cutset.errors import LinkTimeout
from cutset.links.arena import Arena
from cutset.links.parcels import LinkClosedError, LinkContract, Parcel, sendable, share
from cutset.links.wire import (
    DATA,
    KEEP_ALIVE,
    Header,
    WireError,
    own_copy,
    pack_header,
    unpack_header,
)

_SLOT_PAUSE_S = 0.0005
_SYSTEM_BYTES = 1024
"""What the system keeps with each message in a socket's buffer, at most."""


def can_hold_headers(connection: socket.socket, link: LinkContract, num_slots: int) -> bool:
    """Whether a header for every slot may wait in the pair, half of it, while nobody reads.

    Where not, someone must read them all the time: a sender that waits for room cannot receive.
    """
    room = connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    return 2 * num_slots * (link.header_bytes + _SYSTEM_BYTES) <= room


class HostSender:
    """The sending end of a link within a host; one thread at a time may use it.

    Args:
        connection: the sender's end of the socket pair, which it closes in the end.
        link: what it may carry.
        epoch: the epoch that every message names.
        arena: memory shared with the receiver.
        timeout_s: how long the receiver may keep all slots of the arena, or take no header.
    """

    def __init__(
        self,
        connection: socket.socket,
        link: LinkContract,
        epoch: int,
        arena: Arena,
        timeout_s: float,
    ) -> None:
        self._connection = connection
        self._link = link
        self._epoch = epoch
        self._arena = arena
        self._timeout_s = timeout_s
        self._buffer = bytearray(link.header_bytes)
        self._room = select.poll()
        self._room.register(connection, select.POLLOUT)
        connection.settimeout(timeout_s)
        arena.enter(epoch, as_sender=True)

    def send(self, parcel: Parcel) -> None:
        """Sends one micro-batch, waiting for room and a free slot if need be.

        Raises:
            LinkClosedError: the neighbour is gone.
            LinkTimeout: the neighbour took no header, or gave no slot back, in time.
            UnsendableError: a tensor is of a kind that cannot be sent. Nothing was sent.
        """
        deadline_s = time.monotonic() + self._timeout_s
        while not self.try_send(parcel):
            if time.monotonic() > deadline_s:
                raise LinkTimeout(
                    f"link {self._link.name}: the neighbour took no header and gave no slot back"
                    f" for {self._timeout_s:.1f} s",
                    link=self._link.name,
                    seconds=self._timeout_s,
                )
            if self._has_room(self._timeout_s):
                # Slots outnumber the window, so this happens only where micro-batches fail faster
                # than their slots are given back.
                time.sleep(_SLOT_PAUSE_S)

    def try_send(self, parcel: Parcel) -> bool:
        """Sends one micro-batch if that needs no waiting; says whether it did.

        Returns:
            False where no slot is free, or so many headers wait that another might not find room.

        Raises:
            LinkClosedError: the neighbour is gone.
            UnsendableError: a tensor is of a kind that cannot be sent. Nothing was sent.
        """
        if not self._has_room(0):
            return False
        arrays, layouts = sendable(parcel, self._link)
        slot = self._arena.put(self._epoch, arrays)
        if slot is None:
            return False
        self._send(
            Header(
                kind=DATA,
                epoch=self._epoch,
                sequence=parcel.sequence,
                num_rows=parcel.num_rows,
                layouts=layouts,
                slot=slot,
            )
        )
        return True

    def keep_alive(self) -> None:
        """Tells the neighbour that this end lives, unless it has much to read anyway.

        Raises:
            LinkClosedError: the neighbour is gone.
        """
        if self._has_room(0):
            self._send(Header(kind=KEEP_ALIVE, epoch=self._epoch))

    def close(self) -> None:
        """Closes this end of the pair."""
        self._connection.close()

    def _has_room(self, timeout_s: float) -> bool:
        """Whether a header finds room, or the link is closed and sending says so at once.

        The system says so while most of the pair's buffer is free, more than any header needs.
        """
        return bool(self._room.poll(1000 * timeout_s))

    def _send(self, header: Header) -> None:
        pack_header(header, self._buffer, self._link.max_rank)
        started_s = time.monotonic()
        try:
            self._connection.sendall(self._buffer)
        except OSError as error:
            raise _translated(error, self._link, started_s) from error


class HostReceiver:
    """The receiving end of a link within a host; belongs to one thread.

    Args:
        connection: the receiver's end of the socket pair, which it closes in the end.
        link: what it may carry.
        epoch: the epoch that every message must name.
        arena: memory shared with the sender.
        timeout_s: how long the sender may be silent.
        reuse: hand out the shared memory itself, which is used again once the parcel is released;
            otherwise a copy, which needs no release.
    """

    def __init__(
        self,
        connection: socket.socket,
        link: LinkContract,
        epoch: int,
        arena: Arena,
        timeout_s: float,
        *,
        reuse: bool,
    ) -> None:
        self._connection = connection
        self.link = link
        self._epoch = epoch
        self._arena = arena
        self._reuse = reuse
        self._buffer = bytearray(link.header_bytes)
        connection.settimeout(timeout_s)
        arena.enter(epoch, as_sender=False)

    def receive(self) -> tuple[Header, Parcel]:
        """Waits for one message and finds its tensors.

        Returns:
            The header, and the parcel; a keep-alive has no tensors.

        Raises:
            LinkClosedError: the neighbour is gone, or sent what no neighbour sends.
            LinkTimeout: nothing came in time, not even a keep-alive.
        """
        self._read()
        arrived_s = time.monotonic()
        try:
            header = unpack_header(
                self._buffer,
                epoch=self._epoch,
                max_rank=self.link.max_rank,
                max_rows=self.link.max_rows,
                max_bytes=self.link.max_bytes,
                num_slots=self._arena.num_slots,
            )
            if header.kind == DATA and header.slot < 0:
                raise WireError("tensors announced that are not in the shared memory")
            parcel = Parcel(
                sequence=header.sequence, num_rows=header.num_rows, tensors=(), arrived_s=arrived_s
            )
            if header.kind == DATA:
                self._pick_up(header, parcel)
                parcel.received_s = time.monotonic()
        except WireError as error:
            raise LinkClosedError(f"link {self.link.name}: {error}") from error
        return header, parcel

    def fileno(self) -> int:
        """Descriptor of this end of the pair."""
        return self._connection.fileno()

    def close(self) -> None:
        """Closes this end of the pair."""
        self._connection.close()

    def interrupt(self) -> None:
        """Has a `receive` that waits, or the next one, find the link closed; from any thread."""
        with contextlib.suppress(OSError):  # closed meanwhile
            self._connection.shutdown(socket.SHUT_RDWR)

    def _read(self) -> None:
        view = memoryview(self._buffer)
        started_s = time.monotonic()
        while view:
            try:
                num_read = self._connection.recv_into(view)
            except OSError as error:
                raise _translated(error, self.link, started_s) from error
            if not num_read:
                raise LinkClosedError(f"link {self.link.name} was closed by the neighbour")
            view = view[num_read:]

    def _pick_up(self, header: Header, parcel: Parcel) -> None:
        self.link.check_payloads(header)
        arrays = self._arena.get(header.slot, header.layouts)
        parcel.wire_bytes = sum(layout.num_bytes for layout in header.layouts)
        tensors = self.link.decoded(arrays, header.num_rows)
        if self._reuse and share(tensors, arrays):
            parcel.tensors = tensors
            parcel.release = lambda: self._arena.release(self._epoch, header.slot)
            return
        parcel.tensors = tuple(
            own_copy(tensor) if tensor is array else tensor
            for tensor, array in zip(tensors, arrays, strict=True)
        )
        self._arena.release(self._epoch, header.slot)


class HostReceivers:
    """The receiving ends of several links within a host; belongs to one thread.

    Args:
        receivers: of links with one epoch; one or more.
        timeout_s: how long a sender may be silent.

    Attributes:
        link: over which something came last, or failed to.
    """

    def __init__(self, receivers: Sequence[HostReceiver], timeout_s: float) -> None:
        self._receivers = tuple(receivers)
        self._timeout_s = timeout_s
        self._ready: collections.deque[HostReceiver] = collections.deque()
        self._heard_s = dict.fromkeys(self._receivers, time.monotonic())
        self._descriptors = {receiver.fileno(): receiver for receiver in self._receivers}
        self._arrivals = select.poll()
        for descriptor in self._descriptors:
            self._arrivals.register(descriptor, select.POLLIN)
        self.link = self._receivers[0].link

    def receive(self) -> tuple[Header, Parcel]:
        """Waits for a message over any of the links, each in turn; as `HostReceiver.receive`."""
        if len(self._receivers) == 1:  # which waits itself
            return self._receivers[0].receive()
        while not self._ready:
            self._await()
        receiver = self._ready.popleft()
        self.link = receiver.link
        return receiver.receive()

    def _await(self) -> None:
        """Waits until something can be read.

        Raises:
            LinkTimeout: a sender was silent for too long.
        """
        longest_s = time.monotonic() - min(self._heard_s.values())
        left_s = max(0.0, self._timeout_s - longest_s)
        found = self._arrivals.poll(math.ceil(1000 * left_s))
        now_s = time.monotonic()
        for descriptor, _ in found:
            receiver = self._descriptors[descriptor]
            self._heard_s[receiver] = now_s
            self._ready.append(receiver)
        for receiver, heard_s in self._heard_s.items():
            if now_s - heard_s > self._timeout_s:
                self.link = receiver.link
                raise _silent(self.link, now_s - heard_s)

    def close(self) -> None:
        """Closes these ends of the pairs."""
        for receiver in self._receivers:
            receiver.close()

    def interrupt(self) -> None:
        """Has a `receive` that waits, or the next one, find the links closed; from any thread."""
        for receiver in self._receivers:
            receiver.interrupt()


def _silent(link: LinkContract, waited_s: float) -> LinkTimeout:
    return LinkTimeout(
        f"link {link.name}: the neighbour was silent for {waited_s:.1f} s; it is frozen",
        link=link.name,
        seconds=waited_s,
    )


def _translated(
    error: OSError, link: LinkContract, started_s: float
) -> LinkTimeout | LinkClosedError:
    """Our error for the socket's."""
    if isinstance(error, TimeoutError):
        return _silent(link, time.monotonic() - started_s)
    return LinkClosedError(f"link {link.name} was closed by the neighbour ({error.strerror})")
