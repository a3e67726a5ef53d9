"""What ZeroMQ's monitor tells of a socket.

`zmq.utils.monitor` reads the same, but imports asyncio, 9 MB of every worker.
"""

from __future__ import annotations

import struct

import zmq

_EVENT = struct.Struct("=Hi")


def next_event(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """The next event, one of ``zmq.EVENT_...``, and its value, as zmq_socket_monitor(3) has them.

    Args:
        monitor: has one, or this waits.
    """
    event, _ = monitor.recv_multipart()
    return _EVENT.unpack(event)
