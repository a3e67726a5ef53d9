"""One process's links of one epoch: a thread for each that receives and each that sends.

The caller has a circuit too: it sends to the first stage and receives from the last. So the
whole pipeline is a ring of equal parts::

    caller --link 0--> stage 0 --link 1--> stage 1 --link 2--> caller

Where a stage has a group, each of its members has a link to each of its neighbours; which of them
gets a micro-batch follows from its number. What comes is handed on as it comes, so that a neighbour
that is slow holds nobody else back.

Receivers always receive, or the system's buffers hold all that may come: what lies between
receiving and computing is bounded by the session's window, not by refusing to read. So a send never
waits long on a healthy link, and a send that does is a stalled link. A circuit is used for one
epoch and thrown away with it.

Between hosts a link is a connection of ZeroMQ's; on one host it is a socket pair and shared memory,
where sending is a copy and receiving is reading a header. Then the thread that has a micro-batch
sends it itself, and a worker's computing thread receives: waking another one would cost more.
"""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial

from cutset.engines.protocol import Address, LinkLost
from cutset.errors import LinkTimeout
from cutset.links.arena import Arena
from cutset.links.joining import join
from cutset.links.meeting import Meeting
from cutset.links.neighbour import NeighbourSocket
from cutset.links.network import Receiver, Sender
from cutset.links.outgoing import Outgoing
from cutset.links.parcels import LinkClosedError, LinkContract, Parcel
from cutset.links.shared_memory import HostReceiver, HostReceivers, HostSender
from cutset.links.wire import KEEP_ALIVE

_LOG = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class HostEnd:
    """One end of a link whose neighbour is on the same host.

    Attributes:
        connection: this end of the epoch's socket pair; the circuit closes it.
        arena: the memory shared with the neighbour.
    """

    connection: socket.socket
    arena: Arena


class Circuit:
    """The links of one process in one epoch.

    Args:
        epoch: which epoch.
        listen_host: address on which this process listens for its neighbours, where they are not on
            this host.
        publish: brings an address of this process to the neighbour's `tell`; only between hosts.
        receive_links: the links from the neighbours before, one or more.
        send_links: the links to the neighbours after, one or more.
        next_member: which of the `LinkContract.receiver` of `send_links` gets a micro-batch, by its
            number.
        connect_timeout_s: how long the neighbours may take to connect.
        link_timeout_s: how long a neighbour may be silent or not take a tensor.
        unsecured_links: numbers of the links between hosts that are made without keys.
        ends: this process's ends of the links whose neighbours are on this host, by the links'
            numbers; all of them or none.
        reuse: parcels must be released, and their memory is used again then.
        receives_inline: no thread receives; whoever computes calls `receive`. Within a host only,
            where what waits for it is a few headers.
        on_parcel: called with every micro-batch that comes, those of a link in order, on the thread
            that receives from it.
        on_connected: called once, when all links stand.
        on_lost: called when a link fails, or the thread that serves it, at most once for each;
            never after `close`.
        on_failed: called with a parcel that could not be sent by its own fault, and why; what
            comes after it is sent. Its memory was given back.
        on_sent: called with each parcel that was sent, and the monotonic times at which sending it
            began and ended.
    """

    def __init__(  # noqa: PLR0913  # by name only, from two places: the caller and the worker
        self,
        *,
        epoch: int,
        listen_host: str,
        publish: Callable[[Address], None],
        receive_links: tuple[LinkContract, ...],
        send_links: tuple[LinkContract, ...],
        next_member: Callable[[int], int],
        connect_timeout_s: float,
        link_timeout_s: float,
        unsecured_links: tuple[int, ...],
        ends: Mapping[int, HostEnd],
        reuse: bool,
        receives_inline: bool = False,
        on_parcel: Callable[[Parcel], None],
        on_connected: Callable[[int], None],
        on_lost: Callable[[LinkLost], None],
        on_failed: Callable[[Parcel, Exception], None],
        on_sent: Callable[[Parcel, float, float], None],
    ) -> None:
        self.epoch = epoch
        self._listen_host = listen_host
        self._receive_links = receive_links
        self._next_member = next_member
        self._connect_timeout_s = connect_timeout_s
        self._link_timeout_s = link_timeout_s
        self._unsecured_links = unsecured_links
        self._ends = ends
        self._reuse = reuse
        self._on_parcel = on_parcel
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._num_unconnected = len(receive_links) + len(send_links)
        self._told = False
        self._inline: HostReceivers | None = None
        self._receives_inline = receives_inline
        self._meetings = {
            link.index: Meeting(epoch, link.index, publish)
            for link in (*receive_links, *send_links)
            if link.index not in ends
        }
        self._outgoing = {
            link.receiver: Outgoing(
                link,
                make_sender=self._make_sender,
                link_timeout_s=link_timeout_s,
                closed=self._closed,
                on_connected=self._connected,
                on_lost=self._end_sending,
                on_failed=on_failed,
                on_sent=on_sent,
            )
            for link in send_links
        }
        outgoing = tuple(self._outgoing.values())
        self._only_outgoing = outgoing[0] if len(outgoing) == 1 else None
        self._threads = self._made_threads()

    def _made_threads(self) -> tuple[threading.Thread, ...]:
        targets: list[tuple[str, Callable[[], None]]] = [
            ("send", outgoing.run) for outgoing in self._outgoing.values()
        ]
        if not self._receives_inline:
            targets += [
                ("receive", partial(self._receive_from, link)) for link in self._receive_links
            ]
        return tuple(
            threading.Thread(target=target, name=f"cutset-{what}-{self.epoch}", daemon=True)
            for what, target in targets
        )

    def start(self) -> None:
        """Connects, and then receives and sends until the epoch is over; returns at once.

        Apart from making it, so that whoever is called back can know the circuit: within a host
        the first micro-batch may come before this returns.
        """
        if self._receives_inline:
            # Here, not in `receive`: a computation of the former epoch may take long yet.
            receivers = []
            for link in self._receive_links:
                receiver = self._make_receiver(link)
                assert isinstance(receiver, HostReceiver)
                receivers.append(receiver)
            self._inline = HostReceivers(receivers, self._link_timeout_s)
            for _ in receivers:
                self._connected()
        for thread in self._threads:
            thread.start()

    def tell(self, address: Address) -> None:
        """Takes the address of a neighbour; that of another epoch or link is dropped."""
        meeting = self._meetings.get(address.link)
        if address.epoch == self.epoch and meeting is not None:
            meeting.tell(address)

    def send(self, parcel: Parcel) -> None:
        """Sends a micro-batch, or hands it to a sending thread; never waits for the neighbour.

        Called by one thread at a time.
        """
        only = self._only_outgoing
        (only or self._outgoing[self._next_member(parcel.sequence)]).send(parcel)

    def close(self) -> None:
        """Ends the epoch here. What has not been sent is dropped.

        The sending end closes its link, which wakes the neighbour's receiving thread; this one's
        is woken by the neighbour before. A thread whose neighbour hangs ends with its time-out;
        nobody waits for it. One that receives inline is wanted for the next epoch and is woken.
        """
        self._closed.set()
        for outgoing in self._outgoing.values():
            outgoing.wake()
        for meeting in self._meetings.values():
            meeting.close()
        if self._inline is not None:
            self._inline.interrupt()

    def join(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Waits so long for each of the threads, for the sake of a tidy end."""
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout_s)

    def _connected(self) -> None:
        with self._lock:
            self._num_unconnected -= 1
            stands = not self._num_unconnected
        if stands and not self._closed.is_set():
            self._on_connected(self.epoch)

    @property
    def ended(self) -> str | None:
        """Name of a thread that ended without a word though the epoch is not over, or None."""
        if self._closed.is_set() or self._told:
            return None
        return next(
            (each.name for each in self._threads if each.ident and not each.is_alive()), None
        )

    def _lost(self, link: LinkContract, error: BaseException) -> None:
        if self._closed.is_set():
            return
        seconds = error.seconds if isinstance(error, LinkTimeout) else 0.0
        reason = str(error)
        _LOG.info("epoch %d: %s", self.epoch, reason)
        if not isinstance(error, LinkClosedError | LinkTimeout):
            # What nobody foresaw. A thread's end must not go unnoticed.
            _LOG.warning("a thread of link %s failed", link.name, exc_info=error)
            reason = f"link {link.name}: its thread failed: {error!r}"
        self._on_lost(LinkLost(epoch=self.epoch, link=link.name, seconds=seconds, reason=reason))
        self._told = True

    def receive(self) -> None:
        """Receives from all neighbours until the epoch is over; the computing thread's part."""
        assert self._inline is not None
        try:
            self._hand_on(self._inline)
        except (LinkClosedError, LinkTimeout) as error:  # whatever else ends the process
            self._lost(self._inline.link, error)

    def _receive_from(self, link: LinkContract) -> None:
        """Receives over one link until the epoch is over; a receiving thread's part."""
        try:
            receiver = self._make_receiver(link)
            self._connected()
            self._hand_on(receiver)
        except BaseException as error:  # noqa: BLE001  # no thread ends without a word
            self._lost(link, error)
        finally:
            self._close_end(link)

    def _hand_on(self, receiver: Receiver | HostReceiver | HostReceivers) -> None:
        try:
            # The neighbour closes its end, as all do when an epoch is over.
            while not self._closed.is_set():
                header, parcel = receiver.receive()
                if header.kind != KEEP_ALIVE:
                    self._on_parcel(parcel)
        finally:
            receiver.close()

    def _end_sending(self, link: LinkContract, error: BaseException) -> None:
        try:
            self._lost(link, error)
        finally:
            self._close_end(link)

    def _close_end(self, link: LinkContract) -> None:
        """Closes the end of a link within a host, where not even a receiver was made of it."""
        if link.index in self._ends:
            self._ends[link.index].connection.close()

    def _make_receiver(self, link: LinkContract) -> Receiver | HostReceiver:
        end = self._ends.get(link.index)
        timeout_s = self._link_timeout_s
        if end is not None:
            return HostReceiver(
                end.connection, link, self.epoch, end.arena, timeout_s, reuse=self._reuse
            )
        connection = self._join(link, sends=False)
        return Receiver(connection, link, self.epoch, timeout_s, reuse=self._reuse)

    def _make_sender(self, link: LinkContract) -> Sender | HostSender:
        end = self._ends.get(link.index)
        if end is None:
            connection = self._join(link, sends=True)
            return Sender(connection, link, self.epoch, self._link_timeout_s)
        return HostSender(end.connection, link, self.epoch, end.arena, self._link_timeout_s)

    def _join(self, link: LinkContract, *, sends: bool) -> NeighbourSocket:
        return join(
            self._meetings[link.index],
            self._listen_host,
            link,
            sends=sends,
            secured=link.index not in self._unsecured_links,
            timeout_s=self._connect_timeout_s,
        )
