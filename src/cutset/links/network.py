"""A link between two neighbours: headers and tensors over a two-rank gloo process group.

Each link of each epoch has a process group of its own, whose ends meet in a store of their own
(`cutset.links.meeting`). A neighbour that dies is noticed at once (its end is closed by the
system), one that is merely silent after the link's time-out; a sender with nothing to send says so
regularly. Nothing that has once failed is used again: the next epoch makes new groups.
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

import torch
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store, TCPStore

from cutset.data.arrays import readable
from cutset.errors import LinkTimeout
from cutset.links.arena import padded
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

# The type stubs know neither its options nor that it sends and receives.
_Gloo: Any = ProcessGroupGloo

_HEADER_TAG = 0
_TENSOR_TAG = 1
_HEADERS_AHEAD = 4
PART_BYTES = 256 << 10
"""Tensors cross in parts of so many bytes, each of which has the link's time-out for itself: a slow
link passes whatever is large as long as it moves a part in that time.
"""
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
    tensors: tuple[torch.Tensor, ...]
    release: Callable[[], None] = lambda: None
    arrived_s: float = 0.0
    received_s: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


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


def serve_store(host: str) -> TCPStore:
    """Starts a store that listens on `host` only, on a port that the system chooses.

    Raises:
        OSError: the address is not one of this machine's.
    """
    # Left alone, the store listens on every interface; so it gets a socket that is bound already.
    listener = socket.create_server((host, 0), backlog=256)
    port = listener.getsockname()[1]
    store = TCPStore(
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
    with _connecting(link):
        # A client of its own: a store's blocking get keeps other threads from the same client,
        # and two links waiting for each other's neighbours would stand still.
        store = TCPStore(
            address.host,
            address.port,
            None,
            False,
            dt.timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
        prefix = PrefixStore(f"{address.prefix}/link/{link.index}", store)
    return join(prefix, address.listen_host, link, sends=sends, timeout_s=timeout_s)


def join(
    store: Store, listen_host: str, link: LinkContract, *, sends: bool, timeout_s: float
) -> Any:
    """Makes one end of a link; the neighbour does the same at the same time.

    Args:
        store: where the two ends, and nobody else, learn each other's address.
        listen_host: address on which this process listens for its neighbour.
        link: the link to make.
        sends: True at the sender's end.
        timeout_s: how long to wait for the neighbour to connect.

    Returns:
        The link's process group, for a `Sender` or `Receiver`.

    Raises:
        LinkTimeout: the neighbour did not come.
    """
    with _connecting(link):
        options = _Gloo._Options()
        options._devices = [_Gloo.create_device(hostname=listen_host)]
        options._threads = 1
        options._timeout = dt.timedelta(seconds=timeout_s)
        return _Gloo(store, _SENDER_RANK if sends else _RECEIVER_RANK, 2, options)


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
        self._header = torch.frombuffer(self._buffer, dtype=torch.uint8)

    def send(self, parcel: Parcel) -> None:
        """Sends one micro-batch and waits until the system has taken all of it.

        Raises:
            LinkClosedError: the neighbour is gone.
            LinkTimeout: the neighbour did not take it in time.
            UnsendableError: a tensor is of a kind that cannot be sent. Nothing was sent.
        """
        tensors, layouts = sendable(parcel, self._link)
        header = Header(
            kind=DATA,
            epoch=self._epoch,
            sequence=parcel.sequence,
            num_rows=parcel.num_rows,
            layouts=layouts,
        )
        self._send(header, [as_bytes(tensor) for tensor in tensors if tensor.numel()])

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

    def _send(self, header: Header, payloads: list[torch.Tensor]) -> None:
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
        self._free: list[torch.Tensor] = []
        # Several headers are awaited at once: one that finds its receiver ready costs a third of
        # one that must announce itself first.
        self._posted: collections.deque[tuple[Any, bytearray, torch.Tensor]] = collections.deque()
        for _ in range(_HEADERS_AHEAD):
            buffer = bytearray(link.header_bytes)
            self._post(buffer, torch.frombuffer(buffer, dtype=torch.uint8))

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

    def _post(self, buffer: bytearray, memory: torch.Tensor) -> None:
        with _translated(self._link):
            work = self._group.recv([memory], _SENDER_RANK, _HEADER_TAG)
        self._posted.append((work, buffer, memory))

    def _receive_tensors(self, header: Header, parcel: Parcel) -> None:
        memory = self._take_memory(sum(padded(layout.num_bytes) for layout in header.layouts))
        tensors = []
        works = []
        offset = 0
        with _translated(self._link):
            for layout in header.layouts:
                piece = memory[offset : offset + layout.num_bytes]
                if layout.num_bytes:
                    works += [
                        self._group.recv([part], _SENDER_RANK, _TENSOR_TAG)
                        for part in _parts(piece)
                    ]
                tensors.append(from_bytes(piece, layout))
                offset += padded(layout.num_bytes)
            for work in works:
                work.wait(self._timeout)
        parcel.tensors = tuple(tensors)
        if self._reuse:
            parcel.release = lambda: self._free.append(memory)

    def _take_memory(self, num_bytes: int) -> torch.Tensor:
        if not self._reuse:
            return torch.empty(num_bytes, dtype=torch.uint8)
        try:
            # list.pop and list.append are atomic; as many buffers exist as parcels were held at
            # once, which the session's window bounds.
            return self._free.pop()
        except IndexError:
            return torch.empty(max(self._link.slot_bytes, num_bytes), dtype=torch.uint8)


def _parts(memory: torch.Tensor) -> list[torch.Tensor]:
    return [memory[start : start + PART_BYTES] for start in range(0, len(memory), PART_BYTES)]


def sendable(parcel: Parcel, link: LinkContract) -> tuple[list[torch.Tensor], tuple[Layout, ...]]:
    """A parcel's tensors as they are sent: dense, their numbers in memory as they are.

    Args:
        parcel: what to send.
        link: over which link.

    Raises:
        UnsendableError: a tensor cannot be sent, or they are more than the link carries.
    """
    try:
        tensors = [dense(tensor) for tensor in parcel.tensors]
        layouts = tuple(layout_of(tensor) for tensor in tensors)
    except Exception as error:
        # Whatever keeps a tensor from being read, want of memory included, is not the link's fault.
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
    return tensors, layouts


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a dense copy that keeps the order of its dimensions where it has gaps.

    Raises:
        ValueError: its numbers cannot be read from memory.
    """
    tensor = readable(tensor)
    if tensor.is_contiguous() or is_dense(tensor.shape, tensor.stride()):
        return tensor
    # In a caller's thread a mode of torch's may make something else of it than a tensor.
    return readable(tensor.clone(memory_format=torch.preserve_format))


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
