"""A connection between two hosts that stands: a ZeroMQ socket with one neighbour, and its monitor.

ZeroMQ would connect again in silence. Here it may not: the socket's monitor tells that the
connection is gone, and that is the end of it: the next epoch makes another
(`cutset.links.joining`).
"""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import zmq

from cutset.errors import LinkTimeout
from cutset.links.parcels import LinkClosedError, LinkContract
from cutset.links.socket_events import next_event

ResultT = TypeVar("ResultT")

_GLANCES = 4
"""So many times within a time-out is asked whether bytes moved."""

_COUNTED_BYTES = slice(120, 136)
"""Where ``struct tcp_info`` has ``tcpi_bytes_acked`` and ``tcpi_bytes_received`` (linux/tcp.h)."""


class NeighbourSocket:
    """One end; belongs to one thread.

    Args:
        zmq_socket: handshake done.
        monitor: tells what happens to it.
        descriptor: of the neighbour's connection, as the monitor calls it.
        link: what goes over it.
    """

    def __init__(
        self,
        zmq_socket: zmq.Socket[bytes],
        monitor: zmq.Socket[bytes],
        descriptor: int,
        link: LinkContract,
    ) -> None:
        self.socket = zmq_socket
        self._monitor = monitor
        self._descriptor = descriptor
        self._link = link
        self._gone = False
        self._pollers = {int(flag): zmq.Poller() for flag in (zmq.POLLIN, zmq.POLLOUT)}
        for flag, poller in self._pollers.items():
            poller.register(zmq_socket, flag)
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
            LinkTimeout: no byte moved for so long.
        """

        def glance(seconds: float) -> bool:
            ready = dict(self._pollers[flag].poll(math.ceil(1000 * seconds)))
            if self.socket in ready:
                return True
            if ready and self._hears_of_end():
                if self.socket.poll(0, flag):
                    return True
                raise self.closed_error()
            return False

        self.until(glance, timeout_s)

    def until(self, glance: Callable[[float], bool], timeout_s: float) -> None:
        """Calls `glance` with seconds to wait, until it says that what was waited for is there.

        Where the system counts the bytes of a connection (Linux), a message on its way is no
        silence: what is large may take as long as its wire needs.

        Raises:
            LinkTimeout: no byte moved for `timeout_s`.
        """
        moved_s = time.monotonic()
        counted: bytes | None = None
        while True:
            left_s = moved_s + timeout_s - time.monotonic()
            if glance(max(0.0, min(left_s, timeout_s / _GLANCES))):
                return
            count = self._moved_bytes()
            now_s = time.monotonic()
            if counted not in (None, count):
                moved_s = now_s
            counted = count
            if now_s >= moved_s + timeout_s:
                raise self.timeout_error(now_s - moved_s)

    def _moved_bytes(self) -> bytes | None:
        """What the system counts of bytes that the neighbour acknowledged and sent, packed."""
        if sys.platform != "linux" or self._hears_of_end():
            return None
        try:
            with socket.socket(fileno=os.dup(self._descriptor)) as looked_at:
                info = looked_at.getsockopt(
                    socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTED_BYTES.stop
                )
        except OSError:  # closed a moment ago
            return None
        return info[_COUNTED_BYTES]

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
            # Strangers come and go too.
            self._gone = next_event(self._monitor) == (zmq.EVENT_DISCONNECTED, self._descriptor)
        return self._gone

    def close(self) -> None:
        """Closes this end. What the system has not taken yet is dropped."""
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)
