"""One process's two links of one epoch: a thread that receives and a thread that sends.

The caller has a circuit too: it sends to the first stage and receives from the last. So the
whole pipeline is a ring of equal parts::

    caller --link 0--> stage 0 --link 1--> stage 1 --link 2--> caller

Receivers always receive: what lies between receiving and computing is bounded by the session's
window, not by refusing to read. So a send never waits long on a healthy link, and a send that does
is a stalled link. A circuit is used for one epoch and thrown away with it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from cutset.engines.base import LinkLost
from cutset.errors import LinkTimeout
from cutset.runtime.arena import Arena
from cutset.runtime.channel import (
    LinkClosedError,
    LinkContract,
    Parcel,
    Receiver,
    Sender,
    StoreAddress,
    connect,
)
from cutset.runtime.wire import KEEP_ALIVE, WireError

_LOG = logging.getLogger(__name__)

_KEEP_ALIVES_PER_TIMEOUT = 5
_CLOSE_TIMEOUT_S = 1.0


class Circuit:
    """The two links of one process in one epoch.

    Args:
        epoch: which epoch.
        address: where the session's store is.
        receive_link: the link from the neighbour before.
        send_link: the link to the neighbour after.
        connect_timeout_s: how long the neighbours may take to connect.
        link_timeout_s: how long a neighbour may be silent or not take a tensor.
        arenas: memory shared with the neighbour before and with the one after, where there is any.
        reuse: parcels must be released, and their memory is used again then.
        on_parcel: called with every micro-batch that comes, in order, on the receiving thread.
        on_connected: called once, when both links stand.
        on_lost: called when a link fails, at most once for each; never after `close`.
        on_sent: called with each parcel that was sent, and the monotonic times at which sending it
            began and ended.
    """

    def __init__(
        self,
        *,
        epoch: int,
        address: StoreAddress,
        receive_link: LinkContract,
        send_link: LinkContract,
        connect_timeout_s: float,
        link_timeout_s: float,
        arenas: tuple[Arena | None, Arena | None],
        reuse: bool,
        on_parcel: Callable[[Parcel], None],
        on_connected: Callable[[int], None],
        on_lost: Callable[[LinkLost], None],
        on_sent: Callable[[Parcel, float, float], None],
    ) -> None:
        self.epoch = epoch
        self._address = address
        self._receive_link = receive_link
        self._send_link = send_link
        self._connect_timeout_s = connect_timeout_s
        self._link_timeout_s = link_timeout_s
        self._receive_arena, self._send_arena = arenas
        self._reuse = reuse
        self._on_parcel = on_parcel
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_sent = on_sent
        self._outbox: queue.SimpleQueue[Parcel | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._num_connected = 0
        self._threads = tuple(
            threading.Thread(target=target, name=f"cutset-{what}-{epoch}", daemon=True)
            for what, target in (("receive", self._receive), ("send", self._send))
        )
        for thread in self._threads:
            thread.start()

    def send(self, parcel: Parcel) -> None:
        """Hands a micro-batch to the sending thread; returns at once."""
        self._outbox.put(parcel)

    def close(self) -> None:
        """Ends the epoch here. What has not been sent is dropped.

        The sending end closes its link, which wakes the neighbour's receiving thread; this one's
        is woken by the neighbour before. A thread whose neighbour hangs ends with its time-out;
        nobody waits for it.
        """
        self._closed.set()
        self._outbox.put(None)

    def join(self) -> None:
        """Waits a second for the threads, for the sake of a tidy end."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_TIMEOUT_S)

    def _connected(self) -> None:
        with self._lock:
            self._num_connected += 1
            both = self._num_connected == 2  # the two links of a circuit
        if both and not self._closed.is_set():
            self._on_connected(self.epoch)

    def _lost(self, link: LinkContract, error: Exception) -> None:
        if self._closed.is_set():
            return
        _LOG.info("epoch %d: %s", self.epoch, error)
        seconds = error.seconds if isinstance(error, LinkTimeout) else 0.0
        self._on_lost(
            LinkLost(epoch=self.epoch, link=link.name, seconds=seconds, reason=str(error))
        )

    def _receive(self) -> None:
        link = self._receive_link
        try:
            group = connect(
                self._address,
                link,
                sends=False,
                timeout_s=self._connect_timeout_s,
                idle_s=self._link_timeout_s,
            )
            receiver = Receiver(group, link, self.epoch, self._receive_arena, reuse=self._reuse)
            del group
            self._connected()
            while True:  # until the neighbour closes its end, as all do when an epoch is over
                header, parcel = receiver.receive()
                if header.kind != KEEP_ALIVE:
                    self._on_parcel(parcel)
        except (LinkClosedError, LinkTimeout) as error:
            self._lost(link, error)

    def _send(self) -> None:
        link = self._send_link
        try:
            group = connect(
                self._address,
                link,
                sends=True,
                timeout_s=self._connect_timeout_s,
                idle_s=self._link_timeout_s,
            )
            sender = Sender(group, link, self.epoch, self._send_arena, self._link_timeout_s)
            del group
            self._connected()
            self._pump(sender)
        except (LinkClosedError, LinkTimeout, WireError) as error:
            self._lost(link, error)

    def _pump(self, sender: Sender) -> None:
        pause_s = self._link_timeout_s / _KEEP_ALIVES_PER_TIMEOUT
        while True:
            try:
                parcel = self._outbox.get(timeout=pause_s)
            except queue.Empty:
                sender.keep_alive()
                continue
            if parcel is None or self._closed.is_set():
                return
            started_s = time.monotonic()
            sender.send(parcel)
            stopped_s = time.monotonic()
            parcel.release()
            self._on_sent(parcel, started_s, stopped_s)
