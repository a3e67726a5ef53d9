"""A connection between two hosts that stands: a ZeroMQ socket with one neighbour, and its monitor.

ZeroMQ would connect again in silence. Here it may not: the socket's monitor tells that the
connection is gone, and that is the end of it: the next epoch makes another
(`cutset.links.joining`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

import zmq
from zmq.utils.monitor import recv_monitor_message

from cutset.errors import LinkTimeout
from cutset.links.parcels import LinkClosedError, LinkContract

ResultT = TypeVar("ResultT")


class NeighbourSocket:
    """One end; belongs to one thread.

    Args:
        socket: handshake done.
        monitor: tells what happens to it.
        descriptor: of the neighbour's connection, as the monitor calls it.
        link: what goes over it.
    """

    def __init__(
        self,
        socket: zmq.Socket[bytes],
        monitor: zmq.Socket[bytes],
        descriptor: int,
        link: LinkContract,
    ) -> None:
        self.socket = socket
        self._monitor = monitor
        self._descriptor = descriptor
        self._link = link
        self._gone = False
        self._pollers = {int(flag): zmq.Poller() for flag in (zmq.POLLIN, zmq.POLLOUT)}
        for flag, poller in self._pollers.items():
            poller.register(socket, flag)
            poller.register(monitor, zmq.POLLIN)

    def retried(self, call: Callable[[], ResultT], flag: int, timeout_s: float) -> ResultT:
        """What `call` returns, once the socket is ready for it; raises what `wait` does."""
        while True:
            try:
                return call()
            except zmq.Again:  # noqa: PERF203  # it is another attempt
                self.wait(flag, timeout_s)

    def wait(self, flag: int, timeout_s: float) -> None:
        """Waits until there is something to read (``zmq.POLLIN``), or room (``zmq.POLLOUT``).

        Raises:
            LinkClosedError: the neighbour is gone, and all that came of it was read.
            LinkTimeout: it did not come to that in time.
        """
        started_s = time.monotonic()
        while True:
            waited_s = time.monotonic() - started_s
            left_ms = max(0, math.ceil(1000 * (timeout_s - waited_s)))
            ready = dict(self._pollers[flag].poll(left_ms))
            if self.socket in ready:
                return
            if ready and self._hears_of_end() and not self.socket.poll(0, flag):
                raise self.closed_error()
            if not ready and waited_s >= timeout_s:
                raise self.timeout_error(waited_s)

    def require_neighbour(self) -> None:
        """Raises LinkClosedError where the neighbour is gone."""
        if self._hears_of_end():
            raise self.closed_error()

    def closed_error(self) -> LinkClosedError:
        """What to raise where the neighbour is gone."""
        return LinkClosedError(f"link {self._link.name} was closed by the neighbour")

    def timeout_error(self, waited_s: float) -> LinkTimeout:
        """What to raise where the neighbour is silent, or takes nothing."""
        return LinkTimeout(
            f"link {self._link.name}: the neighbour was silent for {waited_s:.1f} s; it is frozen,"
            " or the network between them is down",
            link=self._link.name,
            seconds=waited_s,
        )

    def _hears_of_end(self) -> bool:
        while not self._gone and self._monitor.poll(0):
            message = recv_monitor_message(self._monitor)
            # Strangers come and go too.
            self._gone = (
                message["event"] == zmq.EVENT_DISCONNECTED and message["value"] == self._descriptor
            )
        return self._gone

    def close(self) -> None:
        """Closes this end. What the system has not taken yet is dropped."""
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)
