from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import zmq

from cutset.errors import LinkTimeout
from cutset.links.arena import Arena, create_file
from cutset.links.joining import join
from cutset.links.meeting import Meeting
from cutset.links.neighbour import NeighbourSocket
from cutset.links.network import Receiver, Sender
from cutset.links.parcels import LinkClosedError, LinkContract, Parcel, UnsendableError
from cutset.links.shared_memory import HostReceiver, HostSender, can_hold_headers
from cutset.links.wire import KEEP_ALIVE
from cutset.tensors import TensorSpec

_LINK = LinkContract(
    index=1,
    name="stage 0 -> stage 1",
    specs=(
        TensorSpec(name="a", shape=("batch", 3, 4, 4), dtype="float32"),
        TensorSpec(name="b", shape=("batch",), dtype="int64"),
    ),
    max_rows=4,
)
_NUM_SLOTS = 3
_Ends = tuple[Sender | HostSender, Receiver | HostReceiver]
_MakeEnds = Callable[..., _Ends]


@pytest.fixture
def make_ends() -> Iterator[_MakeEnds]:
    """Makes both ends of `_LINK` in this process, in a fresh epoch each time."""
    epochs = iter(range(1, 100))
    made: list[Sender | HostSender | Receiver | HostReceiver] = []

    def make(*, shared: bool, idle_s: float = 20.0, reuse: bool = True) -> _Ends:
        epoch = next(epochs)
        if shared:
            file = create_file(_LINK.slot_bytes, _NUM_SLOTS)
            arenas = [Arena(file, _LINK.slot_bytes, _NUM_SLOTS) for _ in range(2)]
            os.close(file)
            pair = socket.socketpair()
            sender = HostSender(pair[0], _LINK, epoch, arenas[0], idle_s)
            receiver = HostReceiver(pair[1], _LINK, epoch, arenas[1], idle_s, reuse=reuse)
            made.extend((sender, receiver))
            return sender, receiver
        sending, receiving = joined(_LINK, epoch)
        made.extend(
            (
                Sender(sending, _LINK, epoch, idle_s),
                Receiver(receiving, _LINK, epoch, idle_s, reuse=reuse),
            )
        )
        return made[-2], made[-1]  # type: ignore[return-value]

    yield make
    for end in made:
        end.close()


def joined(
    link: LinkContract, epoch: int = 1, *, secured: bool = True
) -> tuple[NeighbourSocket, NeighbourSocket]:
    """The sender's and the receiver's end of a link, made in this process."""
    meetings: dict[bool, Meeting] = {}
    for sends in (True, False):
        meetings[sends] = Meeting(
            epoch, link.index, lambda address, other=not sends: meetings[other].tell(address)
        )

    def make(sends: bool) -> NeighbourSocket:
        return join(
            meetings[sends], "127.0.0.1", link, sends=sends, secured=secured, timeout_s=20.0
        )

    with ThreadPoolExecutor(1) as other:
        sending = other.submit(make, True)
        receiving = make(False)
        return sending.result(20), receiving


def _parcel(sequence: int, num_rows: int) -> Parcel:
    images = np.full((num_rows, 4, 4, 3), sequence, np.float32).transpose(0, 3, 1, 2)
    return Parcel(
        sequence=sequence,
        num_rows=num_rows,
        tensors=(images, np.arange(num_rows) + sequence),
    )


def _send_all(sender: Sender, parcels: list[Parcel]) -> threading.Thread:
    def work() -> None:
        for parcel in parcels:
            sender.send(parcel)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_parcels_arrive_in_order_with_their_strides(
    make_ends: _MakeEnds, shared: bool, reuse: bool
) -> None:
    sender, receiver = make_ends(shared=shared, reuse=reuse)
    parcels = [_parcel(sequence, 1 + sequence % 4) for sequence in range(12)]
    thread = _send_all(sender, parcels)
    for sent in parcels:
        _, received = receiver.receive()
        assert (received.sequence, received.num_rows) == (sent.sequence, sent.num_rows)
        for ours, theirs in zip(sent.tensors, received.tensors, strict=True):
            assert np.array_equal(ours, theirs)
            assert ours.strides == theirs.strides
            assert theirs.ctypes.data % 64 == 0
            assert theirs.flags.writeable
        received.release()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("shared", [True, False])
def test_a_parcel_that_is_kept_is_not_overwritten(make_ends: _MakeEnds, shared: bool) -> None:
    sender, receiver = make_ends(shared=shared)
    thread = _send_all(sender, [_parcel(sequence, 2) for sequence in range(6)])
    _, kept = receiver.receive()
    for _ in range(5):
        receiver.receive()[1].release()
    thread.join(20)
    assert np.array_equal(kept.tensors[0], np.zeros((2, 3, 4, 4)))


def _field(array: np.ndarray) -> np.ndarray:
    """A field of records of five bytes: strides that end within an element."""
    records = np.zeros(array.shape, dtype=[("byte", "i1"), ("number", array.dtype)])
    records["number"] = array
    return records["number"]


def _read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


_WIDE = np.arange(192, dtype=np.float32).reshape(2, 3, 4, 8)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("array", "strides"),
    [
        (_WIDE[..., ::2], (192, 64, 16, 4)),
        (_WIDE.transpose(0, 3, 1, 2)[:, :3, :, :4], (144, 4, 48, 12)),
        (_WIDE[::-1, :, :, :4], (192, 64, 16, 4)),
        (_WIDE[:1, :, :, 7:3:-1], (192, 64, 16, 4)),
        (np.broadcast_to(_WIDE[:, :1, :, :4], (2, 3, 4, 4)), (192, 4, 48, 12)),
        (_field(_WIDE[..., :4]), (192, 64, 16, 4)),
        (_field(_WIDE[..., :4]).transpose(0, 2, 1, 3)[:, :3], None),
        (_read_only(_WIDE[..., :4]), (192, 64, 16, 4)),
        (_WIDE[:1, ..., :4].copy()[::-1], (192, 64, 16, 4)),  # one row, its stride negative
        (np.frombuffer(b"?" + _WIDE[..., :4].tobytes(), "f4", offset=1).reshape(2, 3, 4, 4), None),
    ],
)
def test_an_array_of_any_strides_arrives_dense(
    make_ends: _MakeEnds, shared: bool, array: np.ndarray, strides: tuple[int, ...] | None
) -> None:
    sender, receiver = make_ends(shared=shared)
    num_rows = len(array)
    thread = _send_all(sender, [Parcel(sequence=0, num_rows=num_rows, tensors=(array,))])
    received = receiver.receive()[1].tensors[0]
    thread.join(20)
    assert np.array_equal(received, array)
    assert strides in (None, received.strides)


@pytest.mark.parametrize("shared", [True, False])
def test_a_keep_alive_has_no_tensors(make_ends: _MakeEnds, shared: bool) -> None:
    sender, receiver = make_ends(shared=shared)
    sender.keep_alive()
    header, parcel = receiver.receive()
    assert header.kind == KEEP_ALIVE
    assert parcel.tensors == ()


@pytest.mark.parametrize("shared", [True, False])
def test_a_silent_neighbour_is_a_time_out(make_ends: _MakeEnds, shared: bool) -> None:
    sender, receiver = make_ends(shared=shared, idle_s=0.3)
    with pytest.raises(LinkTimeout, match="stage 0 -> stage 1") as caught:
        receiver.receive()
    assert caught.value.link == "stage 0 -> stage 1"
    assert 0.3 <= caught.value.seconds < 5.0
    del sender


def test_a_neighbour_that_keeps_all_slots_is_a_time_out(make_ends: _MakeEnds) -> None:
    sender, receiver = make_ends(shared=True, idle_s=0.3)
    for sequence in range(_NUM_SLOTS):
        sender.send(_parcel(sequence, 1))
    with pytest.raises(LinkTimeout, match="gave no slot back"):
        sender.send(_parcel(_NUM_SLOTS, 1))
    del receiver


@pytest.mark.parametrize("shared", [True, False])
def test_a_neighbour_that_leaves_closes_the_link(make_ends: _MakeEnds, shared: bool) -> None:
    sender, receiver = make_ends(shared=shared)
    sender.close()
    with pytest.raises(LinkClosedError, match="was closed by the neighbour"):
        receiver.receive()


def test_sending_to_a_neighbour_that_left_is_a_closed_link(make_ends: _MakeEnds) -> None:
    sender, receiver = make_ends(shared=True)
    receiver.close()
    with pytest.raises(LinkClosedError, match="was closed by the neighbour"):
        sender.send(_parcel(0, 1))


def test_a_full_arena_is_told_at_once(make_ends: _MakeEnds) -> None:
    sender, receiver = make_ends(shared=True)
    assert isinstance(sender, HostSender)
    assert all(sender.try_send(_parcel(sequence, 1)) for sequence in range(_NUM_SLOTS))
    assert not sender.try_send(_parcel(_NUM_SLOTS, 1))
    receiver.receive()[1].release()
    assert sender.try_send(_parcel(_NUM_SLOTS, 1))


def test_that_a_neighbour_reads_no_header_is_told_at_once() -> None:
    ours, theirs = socket.socketpair()
    num_slots = 2000  # headers enough to fill the pair's buffer
    file = create_file(_LINK.slot_bytes, num_slots)
    arena = Arena(file, _LINK.slot_bytes, num_slots)
    os.close(file)
    with ours, theirs:
        sender = HostSender(ours, _LINK, 1, arena, 0.3)
        sent = list(iter(lambda: sender.try_send(_parcel(0, 1)), False))
        assert 10 < len(sent) < num_slots
        with pytest.raises(LinkTimeout, match="took no header"):
            sender.send(_parcel(0, 1))


def test_a_neighbour_with_much_to_read_is_not_waited_for(make_ends: _MakeEnds) -> None:
    sender, receiver = make_ends(shared=True)
    for _ in range(2000):  # more than a socket pair holds
        sender.keep_alive()
    assert receiver.receive()[0].kind == KEEP_ALIVE


def test_who_waits_for_a_message_can_be_called_away(make_ends: _MakeEnds) -> None:
    _, receiver = make_ends(shared=True)
    assert isinstance(receiver, HostReceiver)
    waiting = threading.Thread(target=receiver.interrupt)
    waiting.start()
    with pytest.raises(LinkClosedError):
        receiver.receive()
    waiting.join()
    receiver.close()
    receiver.interrupt()  # too late, and no matter


def test_headers_of_few_slots_fit_a_socket_pair_and_of_many_do_not() -> None:
    first, second = socket.socketpair()
    with first, second:
        assert can_hold_headers(first, _LINK, 3)
        most = next(n for n in itertools.count(1) if not can_hold_headers(first, _LINK, n))
        first.setblocking(False)
        for _ in range(most):
            assert first.send(bytes(_LINK.header_bytes)) == _LINK.header_bytes


def test_more_rows_than_the_link_carries_end_it(make_ends: _MakeEnds) -> None:
    sender, receiver = make_ends(shared=True)
    small = np.zeros((1, 3, 4, 4), np.float32), np.zeros(1, np.int64)
    sender._link = dataclasses.replace(_LINK, max_rows=5)  # a neighbour that believes otherwise
    sender.send(Parcel(sequence=0, num_rows=5, tensors=small))
    with pytest.raises(LinkClosedError, match="5 rows announced"):
        receiver.receive()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(
    ("parcel", "words"),
    [
        ((np.zeros((2, 3, 4, 4), np.uint16),), "uint16"),
        ((np.zeros((2, 3, 4, 4), ">f4"),), "foreign byte order"),
        ((np.zeros((2, 3, 4, 4), object),), "object"),
        ((np.zeros((2, 3, 4, 4, 1), np.float32),), "do not fit link stage 0 -> stage 1"),
        ((np.zeros((9, 3, 4, 4), np.float32),), "carries at most 832 bytes of 4 rows"),
        ((np.zeros(1), np.zeros(1), np.zeros(1)), "do not fit link"),
        ((None,), "NoneType"),
    ],
)
def test_what_cannot_be_sent_is_told_and_leaves_the_link_whole(
    make_ends: _MakeEnds, shared: bool, parcel: tuple[np.ndarray, ...], words: str
) -> None:
    sender, receiver = make_ends(shared=shared)
    with pytest.raises(UnsendableError, match=words):
        sender.send(Parcel(sequence=7, num_rows=2, tensors=parcel))
    thread = _send_all(sender, [_parcel(8, 2)])
    assert receiver.receive()[1].sequence == 8
    thread.join(20)


@pytest.mark.parametrize("sends", [True, False])
def test_nobody_at_the_other_end_is_a_time_out(sends: bool) -> None:
    meeting = Meeting(1, 1, lambda address: None)
    with pytest.raises(LinkTimeout, match="did not connect"):
        join(meeting, "127.0.0.1", _LINK, sends=sends, secured=True, timeout_s=0.3)


_WIDE_LINK = LinkContract(
    index=1,
    name="stage 0 -> stage 1",
    specs=(
        TensorSpec(name="a", shape=("batch", 600_000), dtype="uint8"),
        TensorSpec(name="b", shape=("batch", 600_000), dtype="uint8"),
    ),
    max_rows=100,
)


@contextlib.contextmanager
def _wide_ends(
    *, secured: bool = True, timeout_s: float = 20.0
) -> Iterator[tuple[Sender, Receiver]]:
    sending, receiving = joined(_WIDE_LINK, secured=secured)
    with contextlib.closing(sending), contextlib.closing(receiving):
        yield (
            Sender(sending, _WIDE_LINK, 1, timeout_s),
            Receiver(receiving, _WIDE_LINK, 1, timeout_s, reuse=True),
        )


def _wide(*sizes: int) -> Parcel:
    generator = np.random.default_rng(sum(sizes))
    tensors = tuple(generator.integers(0, 256, size, np.uint8) for size in sizes)
    return Parcel(sequence=sum(sizes), num_rows=1, tensors=tensors)


@pytest.mark.parametrize("secured", [True, False])
def test_tensors_of_any_size_arrive_whole(secured: bool) -> None:
    sizes = [
        0,
        1,
        63,
        65_535,
        65_536,
        65_537,
        131_071,
        131_072,
        131_073,
        262_143,
        262_144,
        262_145,
        524_288,
        600_000,
    ]
    parcels = [_wide(first, second) for first, second in itertools.pairwise(sizes)]
    parcels += [_wide(second, first) for first, second in itertools.pairwise(sizes)]
    parcels += [_wide(32_768, 32_768), _wide(32_768, 32_769), _wide(0, 0), _wide()]
    with _wide_ends(secured=secured) as (sender, receiver):
        thread = _send_all(sender, parcels)
        for sent in parcels:
            _, received = receiver.receive()
            assert received.sequence == sent.sequence
            for ours, theirs in zip(sent.tensors, received.tensors, strict=True):
                assert np.array_equal(ours, theirs)
            received.release()
        thread.join(20)


def test_a_neighbour_that_reads_nothing_is_a_time_out_and_takes_no_memory() -> None:
    array = np.ones(60_000_000, np.uint8)
    before = psutil.Process().memory_info().rss
    with (
        _wide_ends(timeout_s=0.5) as (sender, _),
        pytest.raises(LinkTimeout, match="was silent for"),
    ):
        sender.send(Parcel(sequence=0, num_rows=100, tensors=(array,)))
    assert psutil.Process().memory_info().rss - before < 16 << 20


def test_keep_alives_that_nobody_reads_are_a_time_out_without_waiting() -> None:
    class Full:
        def send(self, *_: object) -> None:
            raise zmq.Again

    with _wide_ends(timeout_s=0.0) as (sender, _):
        healthy, sender._connection.socket = sender._connection.socket, Full()  # type: ignore[assignment]
        sender.keep_alive()
        with pytest.raises(LinkTimeout, match="was silent"):
            sender.keep_alive()
        sender._connection.socket = healthy
        sender.keep_alive()
        assert sender._stuck_since_s is None


def test_sending_to_a_neighbour_that_dies_ends_at_once() -> None:
    array = np.ones(60_000_000, np.uint8)
    with _wide_ends(timeout_s=60.0) as (sender, receiver), ThreadPoolExecutor(1) as other:
        # Waits: nobody reads.
        sent = other.submit(sender.send, Parcel(sequence=0, num_rows=100, tensors=(array,)))
        assert receiver._connection.socket.poll(20_000)
        receiver.close()
        with pytest.raises(LinkClosedError, match="was closed by the neighbour"):
            sent.result(20)
        with pytest.raises(LinkClosedError, match="was closed by the neighbour"):
            sender.keep_alive()


def _messages(parcel: Parcel) -> list[bytes]:
    """What a sender sends of a parcel."""

    class Ours(Sender):
        def _put(self, message: bytes | bytearray | memoryview) -> None:
            sent.append(bytes(message))

        def _await(self, tracker: object) -> None:
            pass

    class Nobody:
        def require_neighbour(self) -> None:
            pass

    sent: list[bytes] = []
    Ours(Nobody(), _WIDE_LINK, 1, 1.0).send(parcel)  # type: ignore[arg-type]
    return sent


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda messages: [b""], "0 bytes in the place of a header"),
        (lambda messages: [messages[0][:-1]], "bytes in the place of a header"),
        (lambda messages: [bytes(len(messages[0]))], "instead of b'CuTs'"),
        (lambda messages: [messages[0] + b"x"], "1 bytes after a header that announces 500000"),
        (lambda messages: [messages[0], messages[1][:-1]], "262143 bytes of a tensor"),
        (lambda messages: [messages[0], messages[1], messages[1]], "262144 bytes of a tensor"),
        (lambda messages: [messages[0], b"x" * (1 << 20)], "was closed by the neighbour"),
    ],
)
def test_messages_that_no_neighbour_sends_end_the_link(
    spoil: Callable[[list[bytes]], list[bytes]], words: str
) -> None:
    with _wide_ends() as (sender, receiver):
        for message in spoil(_messages(_wide(500_000))):
            sender._connection.socket.send(message)
        with pytest.raises(LinkClosedError, match=words):
            receiver.receive()


def test_a_small_parcel_whose_tensors_are_missing_ends_the_link() -> None:
    with _wide_ends() as (sender, receiver):
        (message,) = _messages(_wide(1000))
        sender._connection.socket.send(message[:-1])
        with pytest.raises(LinkClosedError, match="999 bytes after a header that announces 1000"):
            receiver.receive()
