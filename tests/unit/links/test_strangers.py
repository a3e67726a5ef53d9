"""Who may connect to a link: its neighbour, and nobody else, whatever they say or know."""

from __future__ import annotations

import contextlib
import select
import socket
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import zmq

from cutset.engines.protocol import Address
from cutset.errors import LinkTimeout
from cutset.links.joining import join
from cutset.links.meeting import Meeting
from cutset.links.neighbour import NeighbourSocket
from cutset.links.network import Receiver, Sender
from cutset.links.parcels import LinkContract, Parcel
from cutset.tensors import TensorSpec

_LINK = LinkContract(
    index=1,
    name="stage 0 -> stage 1",
    specs=(TensorSpec(name="a", shape=("batch", 100_000), dtype="float32"),),
    max_rows=1,
)
_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"
_WORDS = {
    "nothing": b"",
    "junk": b"\xff\x00GET / HTTP/1.1\r\n\r\n" * 100,
    "half a greeting": _GREETING,
    "an old protocol": b"\x01\x00",
    "no security": _GREETING + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x06\x05READY",
    "half a handshake": (
        _GREETING + b"CURVE".ljust(20, b"\0") + bytes(32) + b"\x04\xc8\x05HELLO\x01" + bytes(50)
    ),
    "a handshake of zeros": (
        _GREETING + b"CURVE".ljust(20, b"\0") + bytes(32) + b"\x04\xc8\x05HELLO\x01" + bytes(193)
    ),
    "a giant": (
        _GREETING + b"CURVE".ljust(20, b"\0") + bytes(32) + b"\x02" + b"\x7f" + bytes(7) + b"x" * 99
    ),
}


class _Pair:
    """Both ends of a link; the listening one waits until the other is let in."""

    def __init__(self, *, secured: bool = True, link: LinkContract = _LINK) -> None:
        self.listening = Future[Address]()
        self._meetings: dict[bool, Meeting] = {}
        for sends in (True, False):
            self._meetings[sends] = Meeting(1, link.index, self._carry(sends, link))
        self._link = link
        self._secured = secured
        self._threads = ThreadPoolExecutor(2)
        self._ends = {sends: self._threads.submit(self._join, sends) for sends in (True, False)}
        self.endpoint = self.listening.result(20)

    def _carry(self, sends: bool, link: LinkContract) -> Callable[[Address], None]:
        def carry(address: Address) -> None:
            if sends != link.receiver_listens:
                self.listening.set_result(address)  # and the other end waits
            else:
                self._meetings[not sends].tell(address)

        return carry

    def _join(self, sends: bool) -> NeighbourSocket:
        return join(
            self._meetings[sends],
            "127.0.0.1",
            self._link,
            sends=sends,
            secured=self._secured,
            timeout_s=20.0,
        )

    @property
    def place(self) -> tuple[str, int]:
        host, _, port = self.endpoint.endpoint.removeprefix("tcp://").rpartition(":")
        return host, int(port)

    def let_in(self) -> tuple[NeighbourSocket, NeighbourSocket]:
        """The sender's and the receiver's end."""
        self._meetings[self._link.receiver_listens].tell(self.endpoint)
        with self._threads:
            return self._ends[True].result(20), self._ends[False].result(20)


def _pass_rows(ends: tuple[NeighbourSocket, NeighbourSocket]) -> None:
    sender, receiver = (
        Sender(ends[0], _LINK, 1, 20.0),
        Receiver(ends[1], _LINK, 1, 20.0, reuse=False),
    )
    rows = np.random.default_rng(0).random((1, 100_000), np.float32)
    with ThreadPoolExecutor(1) as other:
        sent = other.submit(sender.send, Parcel(sequence=7, num_rows=1, tensors=(rows,)))
        _, parcel = receiver.receive()
        sent.result(20)
    assert parcel.sequence == 7
    assert np.array_equal(parcel.tensors[0], rows)


@pytest.fixture
def opened() -> contextlib.ExitStack:  # type: ignore[misc]
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("secured", [True, False])
@pytest.mark.parametrize("receiver_listens", [True, False])
def test_strangers_who_come_first_keep_nobody_out_and_hear_nothing(
    opened: contextlib.ExitStack, secured: bool, receiver_listens: bool
) -> None:
    link = LinkContract(
        index=1,
        name="stage 0 -> stage 1",
        specs=_LINK.specs,
        max_rows=1,
        receiver_listens=receiver_listens,
    )
    before = psutil.Process().memory_info().rss
    pair = _Pair(secured=secured, link=link)
    strangers = []
    for words in list(_WORDS.values()) * 25:
        stranger = opened.enter_context(socket.create_connection(pair.place, timeout=20))
        with contextlib.suppress(OSError):  # dropped before it had said all
            stranger.sendall(words)
        strangers.append(stranger)
    ends = pair.let_in()
    for end in ends:
        opened.callback(end.close)
    _pass_rows(ends)
    _pass_rows(ends)
    for stranger in strangers:
        stranger.setblocking(False)
        heard = b""
        with contextlib.suppress(OSError):
            heard = stranger.recv(1 << 20)
        # A greeting of 64 bytes, and the word that ends it, name a mechanism and nothing else.
        assert len(heard) <= 128
        assert pair.endpoint.public_key.encode() not in heard
    assert psutil.Process().memory_info().rss - before < 64 << 20


def _knock(
    opened: contextlib.ExitStack, pair: _Pair, show: Callable[[zmq.Socket[bytes]], None]
) -> zmq.Socket[bytes]:
    """A stranger with ZeroMQ of its own."""
    context = zmq.Context()
    knocking = context.socket(zmq.PAIR)
    opened.callback(context.destroy, 0)
    opened.callback(knocking.close, 0)
    show(knocking)
    knocking.connect(pair.endpoint.endpoint)
    return knocking


def _with_no_key(knocking: zmq.Socket[bytes]) -> None:
    pass


def _with_words(knocking: zmq.Socket[bytes]) -> None:
    knocking.plain_username = b"admin"
    knocking.plain_password = b"admin"


@pytest.mark.parametrize("secured", [True, False])
def test_who_has_the_wrong_key_gets_no_byte(opened: contextlib.ExitStack, secured: bool) -> None:
    pair = _Pair(secured=secured)

    def with_a_key_of_its_own(knocking: zmq.Socket[bytes]) -> None:
        # It knows more than any stranger should: the key of whom it wants to reach.
        knocking.curve_serverkey = pair.endpoint.public_key.encode()
        knocking.curve_publickey, knocking.curve_secretkey = zmq.curve_keypair()

    def with_half_the_words(knocking: zmq.Socket[bytes]) -> None:
        knocking.plain_username = b"admin"
        knocking.plain_password = pair.endpoint.public_key.encode()

    ways = (_with_no_key, _with_words, with_a_key_of_its_own, with_half_the_words)
    strangers = [_knock(opened, pair, show) for show in ways for _ in range(3)]
    ends = pair.let_in()
    for end in ends:
        opened.callback(end.close)
    _pass_rows(ends)
    _pass_rows(ends)
    for stranger in strangers:
        assert not stranger.poll(0)
        with pytest.raises(zmq.Again):  # there is nobody to send to, either
            _send_much(stranger)


def _send_much(stranger: zmq.Socket[bytes]) -> None:
    for _ in range(2000):  # more than any queue holds
        stranger.send(b"me", zmq.DONTWAIT)


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere strangers are turned away one by one"
)
def test_the_door_is_shut_once_the_neighbour_is_in(opened: contextlib.ExitStack) -> None:
    pair = _Pair()
    ends = pair.let_in()
    for end in ends:
        opened.callback(end.close)
    late = opened.enter_context(socket.socket())
    late.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        late.connect(pair.place)
    assert select.select([], [late], [], 0.2) == ([], [], [])
    _pass_rows(ends)


def _alone(told: Address, *, sends: bool, secured: bool = True) -> NeighbourSocket:
    meeting = Meeting(1, 1, lambda address: None)
    meeting.tell(told)
    return join(meeting, "127.0.0.1", _LINK, sends=sends, secured=secured, timeout_s=20.0)


def test_an_end_with_another_key_than_it_said_is_turned_away() -> None:
    pair = _Pair()
    with pytest.raises(LinkTimeout, match="does not let this process in"):
        _alone(pair.endpoint, sends=True)
    for end in pair.let_in():
        end.close()


def test_who_listens_with_another_key_than_the_neighbours_is_not_talked_to() -> None:
    pair = _Pair()
    told = Address(
        epoch=1, link=1, public_key=zmq.curve_keypair()[0].decode(), endpoint=pair.endpoint.endpoint
    )
    with pytest.raises(LinkTimeout, match="did not connect"):
        _alone(told, sends=True)
    for end in pair.let_in():
        end.close()


def test_ends_that_disagree_on_security_do_not_talk() -> None:
    pair = _Pair(secured=True)
    with pytest.raises(LinkTimeout, match="did not connect"):
        _alone(pair.endpoint, sends=True, secured=False)
    for end in pair.let_in():
        end.close()


@pytest.mark.parametrize(
    "endpoint", ["", "ipc:///tmp/x", "inproc://x", "tcp://", "tcp://nowhere:x"]
)
def test_an_address_that_is_none_is_not_connected_to(endpoint: str) -> None:
    told = Address(epoch=1, link=1, public_key=zmq.curve_keypair()[0].decode(), endpoint=endpoint)
    with pytest.raises(LinkTimeout, match="did not connect within"):
        _alone(told, sends=True)


def test_nobody_at_an_address_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    told = Address(
        epoch=1,
        link=1,
        public_key=zmq.curve_keypair()[0].decode(),
        endpoint=f"tcp://127.0.0.1:{port}",
    )
    with pytest.raises(LinkTimeout, match="nobody answers there"):
        _alone(told, sends=True)


def test_an_address_that_is_not_of_this_machine_is_not_listened_on() -> None:
    meeting = Meeting(1, 1, lambda address: None)
    meeting.tell(Address(epoch=1, link=1, public_key=zmq.curve_keypair()[0].decode()))
    with pytest.raises(LinkTimeout, match="did not connect"):
        join(meeting, "192.0.2.1", _LINK, sends=False, secured=True, timeout_s=20.0)
