"""A link between two neighbours: headers and tensors over a two-rank gloo process group.

Each link of each epoch has a process group of its own, whose ends meet in a store of their own
(`cutset.links.meeting`). A neighbour that dies is noticed at once (its end is closed by the
system), one that is merely silent after the link's time-out; a sender with nothing to send says so
regularly. Nothing that has once failed is used again: the next epoch makes new groups.

gloo is torch's, so torch is imported here, but only where a link between hosts is made
(`need_gloo`); arrays and torch's tensors over them share their memory.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime as dt
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cutset.dtypes import empty_array
from cutset.errors import LinkTimeout
from cutset.extras import naming_extras
from cutset.links.arena import padded
from cutset.links.meeting import Meeting
from cutset.links.wire import (
    DATA,
    KEEP_ALIVE,
    Header,
    Layout,
    WireError,
    as_bytes,
    from_bytes,
    header_bytes,
    is_dense,
    layout_of,
    pack_header,
    unpack_header,
)
from cutset.tensors import TensorSpec

_HEADER_TAG = 0
_TENSOR_TAG = 1
_HEADERS_AHEAD = 4
PART_BYTES = 256 << 10
"""Tensors cross in parts of so many bytes, each of which has the link's time-out for itself: a slow
link passes whatever is large as long as it moves a part in that time.
"""
_BYTE = np.dtype(np.uint8)
_SENDER_RANK = 0
_RECEIVER_RANK = 1
_STORE_TIMEOUT = dt.timedelta(seconds=10)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class LinkContract:
    """What a link may carry.

    Attributes:
        index: 0 from the caller to the first stage, then counting up to the last, which leads
            from the last stage back to the caller.
        name: ``"caller -> stage 0"``.
        specs: the tensors of one micro-batch, in order.
        max_rows: rows of the largest micro-batch.
    """

    index: int
    name: str
    specs: tuple[TensorSpec, ...]
    max_rows: int

    @property
    def max_rank(self) -> int:
        """Most dimensions of one of its tensors."""
        return max((len(spec.shape) for spec in self.specs), default=0)

    @property
    def header_bytes(self) -> int:
        """Bytes of the header before a micro-batch's tensors."""
        return header_bytes(len(self.specs), self.max_rank)

    @property
    def max_bytes(self) -> int:
        """Bytes of the largest micro-batch's tensors."""
        return sum(spec.num_bytes(self.max_rows) for spec in self.specs)

    @property
    def slot_bytes(self) -> int:
        """Bytes that its tensors need when each begins at a multiple of 64."""
        return sum(padded(spec.num_bytes(self.max_rows)) for spec in self.specs)


@dataclasses.dataclass(slots=True)
class Parcel:
    """One micro-batch on its way.

    Attributes:
        sequence: its number within the session.
        num_rows: its rows.
        tensors: in the order of the link's contract.
        release: gives the memory of the received tensors back; call it once, when nothing reads
            them any more.
        arrived_s: monotonic time at which its header came.
        received_s: monotonic time at which its last tensor was complete.
    """

    sequence: int
    num_rows: int
    tensors: tuple[np.ndarray, ...]
    release: Callable[[], None] = lambda: None
    arrived_s: float = 0.0
    received_s: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(array.nbytes for array in self.tensors)


class LinkClosedError(Exception):
    """The neighbour closed the link, or died, or what it sent makes no sense."""


class UnsendableError(Exception):
    """A micro-batch is of a kind that cannot be sent: its own fault, never the link's."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StoreAddress:
    """Where a measurement's store is, and under which prefix it keeps its links.

    Attributes:
        host: address of the store.
        port: its port.
        prefix: of the measurement.
        listen_host: address on which this process listens for its neighbours.
    """

    host: str
    port: int
    prefix: str
    listen_host: str


def need_gloo() -> Any:
    """Torch's module of stores and process groups; imports torch where nobody has yet.

    That takes a second or more, so whoever will make links between hosts calls it beforehand.

    Raises:
        MissingExtra: torch is not installed.
    """
    with naming_extras("a link between hosts"):
        import torch._C._distributed_c10d

    # The type stubs know neither gloo's options nor that it sends and receives.
    return torch._C._distributed_c10d


def serve_store(host: str) -> Any:
    """Starts a store that listens on `host` only, on a port that the system chooses.

    Raises:
        OSError: the address is not one of this machine's.
    """
    # Left alone, the store listens on every interface; so it gets a socket that is bound already.
    listener = socket.create_server((host, 0), backlog=256)
    port = listener.getsockname()[1]
    store = need_gloo().TCPStore(
        host,
        port,
        None,
        True,
        _STORE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=listener.fileno(),
    )
    listener.detach()  # the store closes it
    return store


def connect(address: StoreAddress, link: LinkContract, *, sends: bool, timeout_s: float) -> Any:
    """`join` over a store that listens at an address; for measurements, which no session carries.

    Raises:
        LinkTimeout: the neighbour did not come.
    """
    gloo = need_gloo()
    with _connecting(link):
        # A client of its own: a store's blocking get keeps other threads from the same client,
        # and two links waiting for each other's neighbours would stand still.
        store = gloo.TCPStore(
            address.host,
            address.port,
            None,
            False,
            dt.timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
        prefix = gloo.PrefixStore(f"{address.prefix}/link/{link.index}", store)
    return _group(prefix, address.listen_host, link, sends=sends, timeout_s=timeout_s)


def join(
    meeting: Meeting, listen_host: str, link: LinkContract, *, sends: bool, timeout_s: float
) -> Any:
    """Makes one end of a link; the neighbour does the same at the same time.

    Args:
        meeting: where the two ends, and nobody else, learn each other's address.
        listen_host: address on which this process listens for its neighbour.
        link: the link to make.
        sends: True at the sender's end.
        timeout_s: how long to wait for the neighbour to connect.

    Returns:
        The link's process group, for a `Sender` or `Receiver`.

    Raises:
        LinkTimeout: the neighbour did not come.
    """
    return _group(_store_of(meeting), listen_host, link, sends=sends, timeout_s=timeout_s)


def _group(
    store: Any, listen_host: str, link: LinkContract, *, sends: bool, timeout_s: float
) -> Any:
    gloo = need_gloo().ProcessGroupGloo
    with _connecting(link):
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=listen_host)]
        options._threads = 1
        options._timeout = dt.timedelta(seconds=timeout_s)
        return gloo(store, _SENDER_RANK if sends else _RECEIVER_RANK, 2, options)


def _store_of(meeting: Meeting) -> Any:
    """A meeting as the store that gloo asks."""

    class MeetingStore(need_gloo().Store):  # type: ignore[misc]  # known when torch is imported
        set = staticmethod(meeting.set)
        get = staticmethod(meeting.get)
        wait = staticmethod(meeting.wait)

    return MeetingStore()


@contextlib.contextmanager
def _connecting(link: LinkContract) -> Iterator[None]:
    """Turns what torch and gloo raise while they connect into ours."""
    started = time.monotonic()
    try:
        yield
    # torch's DistError and its kin; and what comes of an address that is none.
    except (RuntimeError, ValueError, MemoryError) as error:
        waited_s = time.monotonic() - started
        raise LinkTimeout(
            f"link {link.name}: the neighbour did not connect within {waited_s:.1f} s ({error})",
            link=link.name,
            seconds=waited_s,
        ) from error


class Sender:
    """The sending end of a link; belongs to one thread.

    Args:
        group: the link's process group.
        link: what it may carry.
        epoch: the epoch that every message names.
        timeout_s: how long the neighbour may take to receive a header, or a part of a tensor.
    """

    def __init__(self, group: Any, link: LinkContract, epoch: int, timeout_s: float) -> None:
        self._group = group
        # Left alone, gloo waits for as long as the group was given to connect.
        self._timeout = dt.timedelta(seconds=timeout_s)
        self._link = link
        self._epoch = epoch
        self._buffer = bytearray(link.header_bytes)
        self._header = _tensor_over(np.frombuffer(self._buffer, np.uint8))

    def send(self, parcel: Parcel) -> None:
        """Sends one micro-batch and waits until the system has taken all of it.

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
        self._send(header, [_tensor_over(as_bytes(array)) for array in arrays if array.size])

    def keep_alive(self) -> None:
        """Tells the neighbour that this end lives.

        Raises:
            LinkClosedError: the neighbour is gone.
            LinkTimeout: the neighbour did not take it in time.
        """
        self._send(Header(kind=KEEP_ALIVE, epoch=self._epoch), [])

    def close(self) -> None:
        """Closes the link at this end."""
        self._group = None

    def _send(self, header: Header, payloads: list[Any]) -> None:
        pack_header(header, self._buffer, self._link.max_rank)
        with _translated(self._link):
            works = [self._group.send([self._header], _RECEIVER_RANK, _HEADER_TAG)]
            works += [
                self._group.send([part], _RECEIVER_RANK, _TENSOR_TAG)
                for data in payloads
                for part in _parts(data)
            ]
            for work in works:
                work.wait(self._timeout)


class Receiver:
    """The receiving end of a link; belongs to one thread.

    Args:
        group: the link's process group.
        link: what it may carry.
        epoch: the epoch that every message must name.
        timeout_s: how long the neighbour may be silent, or take to send a part of a tensor.
        reuse: hand out memory that is used again once the parcel is released; otherwise each
            parcel has memory of its own, which needs no release.
    """

    def __init__(
        self, group: Any, link: LinkContract, epoch: int, timeout_s: float, *, reuse: bool
    ) -> None:
        self._group = group
        self._timeout = dt.timedelta(seconds=timeout_s)
        self._link = link
        self._epoch = epoch
        self._reuse = reuse
        self._free: list[np.ndarray] = []
        # Several headers are awaited at once: one that finds its receiver ready costs a third of
        # one that must announce itself first.
        self._posted: collections.deque[tuple[Any, bytearray, Any]] = collections.deque()
        for _ in range(_HEADERS_AHEAD):
            buffer = bytearray(link.header_bytes)
            self._post(buffer, _tensor_over(np.frombuffer(buffer, np.uint8)))

    def receive(self) -> tuple[Header, Parcel]:
        """Waits for one message and receives its tensors.

        Returns:
            The header, and the parcel; a keep-alive has no tensors.

        Raises:
            LinkClosedError: the neighbour is gone, or sent what no neighbour sends.
            LinkTimeout: nothing came in time, not even a keep-alive.
        """
        work, buffer, memory = self._posted.popleft()
        with _translated(self._link):
            work.wait(self._timeout)
        arrived_s = time.monotonic()
        try:
            header = unpack_header(
                buffer,
                epoch=self._epoch,
                max_rank=self._link.max_rank,
                max_rows=self._link.max_rows,
                max_bytes=self._link.max_bytes,
                num_slots=0,
            )
        except WireError as error:
            raise LinkClosedError(f"link {self._link.name}: {error}") from error
        self._post(buffer, memory)
        parcel = Parcel(
            sequence=header.sequence, num_rows=header.num_rows, tensors=(), arrived_s=arrived_s
        )
        if header.kind == DATA:
            self._receive_tensors(header, parcel)
            parcel.received_s = time.monotonic()
        return header, parcel

    def close(self) -> None:
        """Closes the link at this end."""
        self._posted.clear()
        self._group = None

    def _post(self, buffer: bytearray, memory: Any) -> None:
        with _translated(self._link):
            work = self._group.recv([memory], _SENDER_RANK, _HEADER_TAG)
        self._posted.append((work, buffer, memory))

    def _receive_tensors(self, header: Header, parcel: Parcel) -> None:
        memory = self._take_memory(sum(padded(layout.num_bytes) for layout in header.layouts))
        arrays = []
        works = []
        offset = 0
        with _translated(self._link):
            for layout in header.layouts:
                piece = memory[offset : offset + layout.num_bytes]
                if layout.num_bytes:
                    works += [
                        self._group.recv([part], _SENDER_RANK, _TENSOR_TAG)
                        for part in _parts(_tensor_over(piece))
                    ]
                arrays.append(from_bytes(piece, layout))
                offset += padded(layout.num_bytes)
            for work in works:
                work.wait(self._timeout)
        parcel.tensors = tuple(arrays)
        if self._reuse:
            parcel.release = lambda: self._free.append(memory)

    def _take_memory(self, num_bytes: int) -> np.ndarray:
        if not self._reuse:
            return empty_array((num_bytes,), _BYTE)
        try:
            # list.pop and list.append are atomic; as many buffers exist as parcels were held at
            # once, which the session's window bounds.
            return self._free.pop()
        except IndexError:
            return empty_array((max(self._link.slot_bytes, num_bytes),), _BYTE)


def _tensor_over(memory: np.ndarray) -> Any:
    """Bytes as the tensor that gloo takes, without a copy; with one where they are read-only.

    gloo writes only to memory of ours, but torch knows no tensors that must not be written.
    """
    import torch

    return torch.from_numpy(memory if memory.flags.writeable else memory.copy())


def _parts(memory: Any) -> list[Any]:
    return [memory[start : start + PART_BYTES] for start in range(0, len(memory), PART_BYTES)]


def sendable(parcel: Parcel, link: LinkContract) -> tuple[list[np.ndarray], tuple[Layout, ...]]:
    """A parcel's tensors as they are sent: dense.

    Args:
        parcel: what to send.
        link: over which link.

    Raises:
        UnsendableError: a tensor cannot be sent, or they are more than the link carries.
    """
    try:
        arrays = [dense(array) for array in parcel.tensors]
        layouts = tuple(layout_of(array) for array in arrays)
    except Exception as error:
        # Whatever keeps an array from being read, want of memory included, is not the link's fault.
        raise UnsendableError(str(error) or type(error).__name__) from error
    num_bytes = sum(padded(layout.num_bytes) for layout in layouts)
    ranks = [len(layout.shape) for layout in layouts]
    if len(layouts) > len(link.specs) or max(ranks, default=0) > link.max_rank:
        raise UnsendableError(f"{', '.join(map(str, layouts))} do not fit link {link.name}")
    if num_bytes > link.slot_bytes or not 1 <= parcel.num_rows <= link.max_rows:
        raise UnsendableError(
            f"{num_bytes} bytes of {parcel.num_rows} rows; link {link.name} carries at most"
            f" {link.slot_bytes} bytes of {link.max_rows} rows"
        )
    return arrays, layouts


def dense(array: np.ndarray) -> np.ndarray:
    """`array`, or a dense copy that keeps the order of its dimensions where it has gaps."""
    if is_dense(array.shape, array.strides, array.itemsize):
        return array
    return np.array(array, order="K")


@contextlib.contextmanager
def _translated(link: LinkContract) -> Iterator[None]:
    """Turns gloo's RuntimeErrors into ours."""
    started = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        waited_s = time.monotonic() - started
        text = str(error).splitlines()[0]
        if "imed out" in text:
            raise LinkTimeout(
                f"link {link.name}: the neighbour was silent for {waited_s:.1f} s; it is frozen,"
                " or the network between them is down",
                link=link.name,
                seconds=waited_s,
            ) from error
        raise LinkClosedError(f"link {link.name} was closed by the neighbour ({text})") from error
