"""One process's two links of one epoch: a thread that receives and a thread that sends.

The caller has a circuit too: it sends to the first stage and receives from the last. So the
whole pipeline is a ring of equal parts::

    caller --link 0--> stage 0 --link 1--> stage 1 --link 2--> caller

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
import queue
import socket
import threading
import time
from collections.abc import Callable

from cutset.engines.protocol import Address, LinkLost
from cutset.errors import LinkTimeout
from cutset.links.arena import Arena
from cutset.links.joining import join
from cutset.links.meeting import Meeting
from cutset.links.neighbour import NeighbourSocket
from cutset.links.network import Receiver, Sender
from cutset.links.parcels import LinkClosedError, LinkContract, Parcel, UnsendableError
from cutset.links.shared_memory import HostReceiver, HostSender
from cutset.links.wire import KEEP_ALIVE

_LOG = logging.getLogger(__name__)

_KEEP_ALIVES_PER_TIMEOUT = 5
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
    """The two links of one process in one epoch.

    Args:
        epoch: which epoch.
        listen_host: address on which this process listens for its neighbours, where they are not on
            this host.
        publish: brings an address of this process to the neighbour's `tell`; only between hosts.
        receive_link: the link from the neighbour before.
        send_link: the link to the neighbour after.
        connect_timeout_s: how long the neighbours may take to connect.
        link_timeout_s: how long a neighbour may be silent or not take a tensor.
        unsecured_links: numbers of the links between hosts that are made without keys.
        receive_end: this end of the link from the neighbour before, where that is on this host.
        send_end: this end of the link to the neighbour after, where that is on this host.
        reuse: parcels must be released, and their memory is used again then.
        receives_inline: no thread receives; whoever computes calls `receive`. Within a host only,
            where what waits for it is a few headers.
        on_parcel: called with every micro-batch that comes, in order, on the receiving thread.
        on_connected: called once, when both links stand.
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
        receive_link: LinkContract,
        send_link: LinkContract,
        connect_timeout_s: float,
        link_timeout_s: float,
        unsecured_links: tuple[int, ...],
        receive_end: HostEnd | None,
        send_end: HostEnd | None,
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
        self._receive_link = receive_link
        self._send_link = send_link
        self._connect_timeout_s = connect_timeout_s
        self._link_timeout_s = link_timeout_s
        self._unsecured_links = unsecured_links
        self._receive_end = receive_end
        self._send_end = send_end
        self._reuse = reuse
        self._on_parcel = on_parcel
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_failed = on_failed
        self._on_sent = on_sent
        self._outbox: queue.SimpleQueue[Parcel | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._num_connected = 0
        self._told = False
        # Held while a message is written; the number counts parcels in the outbox.
        self._sending = threading.Lock()
        self._num_queued = 0
        self._host_sender: HostSender | None = None
        self._inline_receiver: HostReceiver | None = None
        self._receives_inline = receives_inline
        self._meetings = {
            link.index: Meeting(epoch, link.index, publish)
            for link, end in ((receive_link, receive_end), (send_link, send_end))
            if end is None
        }
        targets = {"send": self._send}
        if not receives_inline:
            targets["receive"] = self.receive
        self._threads = tuple(
            threading.Thread(target=target, name=f"cutset-{what}-{epoch}", daemon=True)
            for what, target in targets.items()
        )

    def start(self) -> None:
        """Connects, and then receives and sends until the epoch is over; returns at once.

        Apart from making it, so that whoever is called back can know the circuit: within a host
        the first micro-batch may come before this returns.
        """
        if self._receives_inline:
            # Here, not in `receive`: a computation of the former epoch may take long yet.
            receiver = self._make_receiver(self._receive_link)
            assert isinstance(receiver, HostReceiver)
            self._inline_receiver = receiver
            self._connected()
        for thread in self._threads:
            thread.start()

    def tell(self, address: Address) -> None:
        """Takes the address of a neighbour; that of another epoch or link is dropped."""
        meeting = self._meetings.get(address.link)
        if address.epoch == self.epoch and meeting is not None:
            meeting.tell(address)

    def send(self, parcel: Parcel) -> None:
        """Sends a micro-batch, or hands it to the sending thread; never waits for the neighbour.

        Called by one thread at a time.
        """
        with self._sending:
            if self._sent_at_once(parcel):
                return
            self._num_queued += 1
        self._outbox.put(parcel)

    def _sent_at_once(self, parcel: Parcel) -> bool:
        if self._host_sender is None or self._num_queued or self._closed.is_set():
            return False
        started_s = time.monotonic()
        try:
            if not self._host_sender.try_send(parcel):
                return False
        except Exception:  # noqa: BLE001  # the sending thread meets the same and tells of it
            return False
        stopped_s = time.monotonic()
        parcel.release()
        self._on_sent(parcel, started_s, stopped_s)
        return True

    def close(self) -> None:
        """Ends the epoch here. What has not been sent is dropped.

        The sending end closes its link, which wakes the neighbour's receiving thread; this one's
        is woken by the neighbour before. A thread whose neighbour hangs ends with its time-out;
        nobody waits for it. One that receives inline is wanted for the next epoch and is woken.
        """
        self._closed.set()
        self._outbox.put(None)
        for meeting in self._meetings.values():
            meeting.close()
        if self._inline_receiver is not None:
            self._inline_receiver.interrupt()

    def join(self, timeout_s: float = _CLOSE_TIMEOUT_S) -> None:
        """Waits so long for each of the threads, for the sake of a tidy end."""
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join(timeout_s)

    def _connected(self) -> None:
        with self._lock:
            self._num_connected += 1
            both = self._num_connected == 2  # the two links of a circuit
        if both and not self._closed.is_set():
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
        """Receives until the epoch is over; the receiving thread's part."""
        link = self._receive_link
        try:
            receiver: Receiver | HostReceiver
            if self._inline_receiver is not None:
                receiver = self._inline_receiver
            else:
                receiver = self._make_receiver(link)
                self._connected()
            try:
                # The neighbour closes its end, as all do when an epoch is over.
                while not self._closed.is_set():
                    header, parcel = receiver.receive()
                    if header.kind != KEEP_ALIVE:
                        self._on_parcel(parcel)
            finally:
                receiver.close()
        except (LinkClosedError, LinkTimeout) as error:
            self._lost(link, error)
        except BaseException as error:
            if self._receives_inline:
                raise  # ends the process, which says more
            self._lost(link, error)
        finally:
            # Where not even a receiver was made of it.
            if self._receive_end is not None:
                self._receive_end.connection.close()

    def _make_receiver(self, link: LinkContract) -> Receiver | HostReceiver:
        end = self._receive_end
        if end is not None:
            return HostReceiver(
                end.connection,
                link,
                self.epoch,
                end.arena,
                self._link_timeout_s,
                reuse=self._reuse,
            )
        connection = self._join(link, sends=False)
        return Receiver(connection, link, self.epoch, self._link_timeout_s, reuse=self._reuse)

    def _send(self) -> None:
        link = self._send_link
        try:
            sender = self._make_sender(link)
            self._connected()
            try:
                self._pump(sender)
            finally:
                with self._sending:
                    self._host_sender = None
                    sender.close()
        except BaseException as error:  # noqa: BLE001  # no thread ends without a word
            self._lost(link, error)
        finally:
            if self._send_end is not None:
                self._send_end.connection.close()

    def _make_sender(self, link: LinkContract) -> Sender | HostSender:
        end = self._send_end
        if end is None:
            connection = self._join(link, sends=True)
            return Sender(connection, link, self.epoch, self._link_timeout_s)
        sender = HostSender(end.connection, link, self.epoch, end.arena, self._link_timeout_s)
        with self._sending:
            self._host_sender = sender
        return sender

    def _join(self, link: LinkContract, *, sends: bool) -> NeighbourSocket:
        return join(
            self._meetings[link.index],
            self._listen_host,
            link,
            sends=sends,
            secured=link.index not in self._unsecured_links,
            timeout_s=self._connect_timeout_s,
        )

    def _pump(self, sender: Sender | HostSender) -> None:
        pause_s = self._link_timeout_s / _KEEP_ALIVES_PER_TIMEOUT
        while True:
            try:
                parcel = self._outbox.get(timeout=pause_s)
            except queue.Empty:
                with self._sending:
                    sender.keep_alive()
                continue
            if parcel is None or self._closed.is_set():
                return
            failure: UnsendableError | None = None
            started_s = time.monotonic()
            try:
                sender.send(parcel)
            except UnsendableError as error:
                failure = error
            stopped_s = time.monotonic()
            with self._sending:
                self._num_queued -= 1
            parcel.release()
            if failure is None:
                self._on_sent(parcel, started_s, stopped_s)
            else:
                self._on_failed(parcel, failure)
            # While nothing is to send, nothing is held.
            del parcel, failure
