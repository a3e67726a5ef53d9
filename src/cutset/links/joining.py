"""How the two ends of a link between hosts find each other, and nobody else.

One end listens, on a port that the system chooses. Both make a pair of keys for this link and epoch
alone, and tell each other the public one over the engine's control connections
(`cutset.links.meeting`). The handshake is CurveZMQ's: the one that connects knows whom it reaches,
the one that listens admits nobody else (`cutset.links.doorkeeper`), and every byte is encrypted. On
a link that needs no security the two keys are words to be let in by, and bytes go as they are.

Once the neighbour is in, the door is shut: who knocks then gets no answer.
"""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import sys
import time
from collections.abc import Iterator

import zmq
from zmq.utils import z85

from cutset.engines.protocol import Address
from cutset.errors import LinkTimeout
from cutset.links.doorkeeper import doorkeeper
from cutset.links.meeting import Meeting
from cutset.links.neighbour import NeighbourSocket
from cutset.links.parcels import LinkContract
from cutset.links.socket_events import next_event

PART_BYTES = 256 << 10
"""Tensors cross in messages of so many bytes at most. The receiver decrypts one while the sender
encrypts the next. Between two network namespaces less was slower, and more with keys too.
"""

_MESSAGES_AHEAD = 8
"""So many messages wait at each end at most; then whoever sends has to."""

_WRAPPING_BYTES = 256
"""More than encryption puts around a message."""

_BACKLOG = 64
_TICK_S = 0.1
_HELLO = b"CuTs hello"
_LISTENERS_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
_REFUSALS: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the handshake was broken off",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "who answers speaks otherwise",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "who answers does not let this process in",
    zmq.EVENT_CLOSED: "nobody answers there",
    zmq.EVENT_DISCONNECTED: "the connection was closed",
}
_CONNECTERS_EVENTS = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | sum(_REFUSALS)

# Linux's numbers; a filter of one instruction, "take nothing" (linux/filter.h).
_SO_ATTACH_FILTER = 26
_TAKE_NOTHING = struct.pack("=HBBI", 6, 0, 0, 0)


def join(
    meeting: Meeting,
    listen_host: str,
    link: LinkContract,
    *,
    sends: bool,
    secured: bool,
    timeout_s: float,
) -> NeighbourSocket:
    """Makes one end of a link; the neighbour does the same at the same time.

    Args:
        meeting: where the two ends, and nobody else, learn of each other.
        listen_host: address on which this process listens for its neighbour, where it does.
        link: the link to make.
        sends: True at the sender's end.
        secured: whether bytes are encrypted; both ends say the same.
        timeout_s: how long to wait for the neighbour to connect.

    Raises:
        LinkTimeout: the neighbour did not come.
    """
    started_s = time.monotonic()
    end = _End(meeting, link, secured=secured, timeout_s=timeout_s)
    try:
        if sends != link.receiver_listens:
            return end.listen(listen_host)
        return end.connect()
    except (OSError, ValueError, zmq.ZMQError) as error:
        end.close()
        waited_s = time.monotonic() - started_s
        raise LinkTimeout(
            f"link {link.name}: the neighbour did not connect within {waited_s:.1f} s ({error})",
            link=link.name,
            seconds=waited_s,
        ) from error
    except BaseException:
        end.close()
        raise


class _End:
    """One end while it is being made."""

    def __init__(
        self, meeting: Meeting, link: LinkContract, *, secured: bool, timeout_s: float
    ) -> None:
        self._meeting = meeting
        self._link = link
        self._secured = secured
        self._deadline_s = time.monotonic() + timeout_s
        self._public_key, self._secret_key = zmq.curve_keypair()
        self._monitor: zmq.Socket[bytes] | None = None
        self._socket = doorkeeper().context.socket(zmq.PAIR)
        for option, value in {
            zmq.LINGER: 0,
            zmq.SNDHWM: _MESSAGES_AHEAD,
            zmq.RCVHWM: _MESSAGES_AHEAD,
            zmq.MAXMSGSIZE: link.header_bytes + PART_BYTES + _WRAPPING_BYTES,
            zmq.HANDSHAKE_IVL: round(1000 * timeout_s),
            zmq.CONNECT_TIMEOUT: round(1000 * timeout_s),
            zmq.RECONNECT_IVL: -1,
            zmq.IMMEDIATE: 1,
            zmq.TCP_KEEPALIVE: 1,
        }.items():
            self._socket.setsockopt(option, value)

    def close(self) -> None:
        """Gives up what was made."""
        if self._monitor is not None:
            self._socket.disable_monitor()
            self._monitor.close(0)
        self._socket.close(0)

    def listen(self, host: str) -> NeighbourSocket:
        """Waits for the neighbour, and only for it.

        Raises:
            OSError: it did not come, or the address is none of this machine's.
            ValueError: who came is none of ours.
            zmq.ZMQError: ZeroMQ refuses.
        """
        neighbour = self._meeting.wait(self._left_s())
        with (
            _listener(host) as listener,
            doorkeeper().awaiting(self._credentials(neighbour)) as domain,
        ):
            self._lock_door(domain)
            monitor = self._watch(_LISTENERS_EVENTS)
            self._bind(listener)
            self._meeting.publish(
                self._public_key.decode(), self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
            )
            while self._event(monitor)[0] != zmq.EVENT_HANDSHAKE_SUCCEEDED:
                pass  # strangers leave
            _shut_door(listener)
        # Which connection is the neighbour's, only a message of its own tells.
        self._await(self._socket)
        hello = self._socket.recv(copy=False)
        if hello.bytes != _HELLO:
            raise ValueError("it began with what no neighbour says")
        return NeighbourSocket(self._socket, monitor, int(hello.get(zmq.SRCFD)), self._link)

    def connect(self) -> NeighbourSocket:
        """Connects to the neighbour.

        Raises:
            OSError: it is not there, or turns this end away.
            ValueError: its address is none.
            zmq.ZMQError: ZeroMQ refuses.
        """
        self._meeting.publish(self._public_key.decode())
        neighbour = self._meeting.wait(self._left_s())
        if not neighbour.endpoint.startswith("tcp://"):
            raise ValueError(f"{neighbour.endpoint!r} is no address of a neighbour")
        self._show_key(neighbour)
        monitor = self._watch(_CONNECTERS_EVENTS)
        self._socket.setsockopt(zmq.IPV6, "[" in neighbour.endpoint)
        self._socket.connect(neighbour.endpoint)
        descriptor = -1
        event, value = self._event(monitor)
        while event != zmq.EVENT_HANDSHAKE_SUCCEEDED:
            if event in _REFUSALS:
                raise ConnectionError(f"at {neighbour.endpoint} {_REFUSALS[event]}")
            descriptor = value
            event, value = self._event(monitor)
        self._await(self._socket, zmq.POLLOUT)
        self._socket.send(_HELLO)
        return NeighbourSocket(self._socket, monitor, descriptor, self._link)

    # --- keys

    def _credentials(self, neighbour: Address) -> tuple[bytes, ...]:
        """What the neighbour shows to be let in."""
        key = neighbour.public_key.encode()
        return (z85.decode(key),) if self._secured else (key, self._public_key)

    def _lock_door(self, domain: bytes) -> None:
        self._socket.setsockopt(zmq.ZAP_DOMAIN, domain)
        self._socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        if self._secured:
            self._socket.curve_server = True
            self._socket.curve_publickey = self._public_key
            self._socket.curve_secretkey = self._secret_key
        else:
            self._socket.plain_server = True

    def _show_key(self, neighbour: Address) -> None:
        if self._secured:
            self._socket.curve_serverkey = neighbour.public_key.encode()
            self._socket.curve_publickey = self._public_key
            self._socket.curve_secretkey = self._secret_key
        else:
            self._socket.plain_username = self._public_key
            self._socket.plain_password = neighbour.public_key.encode()

    # --- waiting

    def _left_s(self) -> float:
        return max(0.0, self._deadline_s - time.monotonic())

    def _watch(self, events: int) -> zmq.Socket[bytes]:
        self._monitor = self._socket.get_monitor_socket(events)
        return self._monitor

    def _await(self, awaited: zmq.Socket[bytes], flag: int = zmq.POLLIN) -> None:
        """Raises OSError where the socket is not ready in time, or the epoch is over."""
        while not awaited.poll(min(round(1000 * self._left_s()), round(1000 * _TICK_S)), flag):
            if self._meeting.closed:
                raise ConnectionAbortedError("the epoch is over")
            if not self._left_s():
                raise TimeoutError("nobody came with the right key")

    def _event(self, monitor: zmq.Socket[bytes]) -> tuple[int, int]:
        self._await(monitor)
        return next_event(monitor)

    def _bind(self, listener: socket.socket) -> None:
        theirs = listener.dup()  # ours shuts the door, in the end
        try:
            host, port = theirs.getsockname()[:2]
            self._socket.setsockopt(zmq.USE_FD, theirs.fileno())
            if ":" in host:
                self._socket.setsockopt(zmq.IPV6, 1)
                host = f"[{host}]"
            self._socket.bind(f"tcp://{host}:{port}")
        except BaseException:
            theirs.close()
            raise
        theirs.detach()


@contextlib.contextmanager
def _listener(host: str) -> Iterator[socket.socket]:
    """A socket that listens on `host` alone, on a port that the system chooses."""
    family, *_, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.create_server(address[:2], family=family, backlog=_BACKLOG) as listener:
        listener.setblocking(False)
        yield listener


def _shut_door(listener: socket.socket) -> None:
    """Has the system drop whatever comes for a listening socket, which ZeroMQ keeps open.

    To stop listening would close the connection that was accepted. Linux only: elsewhere those who
    connect late are turned away one by one.
    """
    if sys.platform == "linux":
        filter_ = ctypes.create_string_buffer(_TAKE_NOTHING)
        program = struct.pack("HL", 1, ctypes.addressof(filter_))
        with contextlib.suppress(OSError):  # a sandbox that knows no filters
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
