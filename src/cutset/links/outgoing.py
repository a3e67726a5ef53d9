"""The sending half of a link in one epoch: a queue, a thread, and whoever may send at once.

Within a host the thread that has a micro-batch sends it itself, where that needs no waiting and
nothing is queued: waking another one would cost more.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from cutset.links.network import Sender
from cutset.links.parcels import LinkContract, Parcel, UnsendableError
from cutset.links.shared_memory import HostSender

_KEEP_ALIVES_PER_TIMEOUT = 5


class Outgoing:
    """What goes over one link.

    Args:
        link: which link.
        make_sender: makes its end, on the thread that runs `run`.
        link_timeout_s: how long the neighbour may be without a sign of life.
        closed: set when the epoch is over here.
        on_connected: called when the link stands.
        on_lost: called with the link and the error when it fails.
        on_failed: called with a parcel that could not be sent by its own fault, and why.
        on_sent: called with each parcel that was sent, and when sending it began and ended.
    """

    def __init__(
        self,
        link: LinkContract,
        *,
        make_sender: Callable[[LinkContract], Sender | HostSender],
        link_timeout_s: float,
        closed: threading.Event,
        on_connected: Callable[[], None],
        on_lost: Callable[[LinkContract, BaseException], None],
        on_failed: Callable[[Parcel, Exception], None],
        on_sent: Callable[[Parcel, float, float], None],
    ) -> None:
        self._link = link
        self._make_sender = make_sender
        self._link_timeout_s = link_timeout_s
        self._closed = closed
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_failed = on_failed
        self._on_sent = on_sent
        self._outbox: queue.SimpleQueue[Parcel | None] = queue.SimpleQueue()
        # Held while a message is written; the number counts parcels in the outbox.
        self._sending = threading.Lock()
        self._num_queued = 0
        self._host_sender: HostSender | None = None

    def send(self, parcel: Parcel) -> None:
        """Sends a micro-batch, or hands it to the sending thread; never waits for the neighbour.

        Called by one thread at a time.
        """
        with self._sending:
            if self._sent_at_once(parcel):
                return
            self._num_queued += 1
        self._outbox.put(parcel)

    def wake(self) -> None:
        """Has the thread look whether the epoch is over."""
        self._outbox.put(None)

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

    def run(self) -> None:
        """Connects and sends until the epoch is over; the sending thread's part."""
        try:
            sender = self._make_sender(self._link)
            with self._sending:
                self._host_sender = sender if isinstance(sender, HostSender) else None
            self._on_connected()
            try:
                self._pump(sender)
            finally:
                with self._sending:
                    self._host_sender = None
                    sender.close()
        except BaseException as error:  # noqa: BLE001  # no thread ends without a word
            self._on_lost(self._link, error)

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
