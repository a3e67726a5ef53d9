"""Links whose tensors are written by codecs: over both carriers, and against hostile peers."""

from __future__ import annotations

import dataclasses
import os
import random
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from cutset.codecs.coding import encode, round_trip
from cutset.codecs.known_codecs import CODECS
from cutset.links.arena import Arena, create_file
from cutset.links.network import Receiver, Sender
from cutset.links.parcels import LinkClosedError, LinkContract, Parcel, UnsendableError
from cutset.links.shared_memory import HostReceiver, HostSender
from cutset.links.wire import WireError
from cutset.tensors import TensorSpec

from .test_network import joined

_SPECS = (
    TensorSpec(name="a", shape=("batch", 3, 4, 4), dtype="float32"),
    TensorSpec(name="b", shape=("batch",), dtype="int64"),
    TensorSpec(name="c", shape=("batch", 5), dtype="float32"),
)
_LINK = LinkContract(
    index=1,
    name="stage 0 -> stage 1",
    specs=_SPECS,
    max_rows=4,
    codecs=("int8", "none", "fp16"),
)
_FORGER = dataclasses.replace(
    _LINK,
    codecs=(),
    specs=tuple(TensorSpec(name=n, shape=("batch*200",), dtype="float64") for n in "abc"),
)
"""What a peer believes that sends whatever it likes; its headers are as long."""


@pytest.fixture(params=[True, False], ids=["shared", "network"])
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[object, object]]:
    """A sender and a receiver of `_LINK`."""
    if request.param:
        file = create_file(_LINK.slot_bytes, 3)
        arenas = [Arena(file, _LINK.slot_bytes, 3) for _ in range(2)]
        os.close(file)
        pair = socket.socketpair()
        made = (
            HostSender(pair[0], _LINK, 1, arenas[0], 20.0),
            HostReceiver(pair[1], _LINK, 1, arenas[1], 20.0, reuse=True),
        )
    else:
        sending, receiving = joined(_LINK)
        made = Sender(sending, _LINK, 1, 20.0), Receiver(receiving, _LINK, 1, 20.0, reuse=True)
    yield made
    for end in made:
        end.close()


def _tensors(num_rows: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(num_rows)
    images = rng.normal(size=(num_rows, 4, 4, 3)).astype(np.float32).transpose(0, 3, 1, 2)
    return images, np.arange(num_rows), rng.normal(size=(num_rows, 5)).astype(np.float32)


@pytest.mark.parametrize("num_rows", [1, 2, 4])
def test_what_arrives_is_what_the_codecs_make_of_it(ends, num_rows: int) -> None:
    sender, receiver = ends
    tensors = _tensors(num_rows)
    sent = Parcel(sequence=7, num_rows=num_rows, tensors=tensors)
    sender.send(sent)
    _, parcel = receiver.receive()
    images, numbers, vectors = parcel.tensors
    assert np.array_equal(images, round_trip(CODECS["int8"], tensors[0], _SPECS[0], num_rows))
    assert np.array_equal(numbers, tensors[1])
    assert np.array_equal(vectors, tensors[2].astype(np.float16))
    assert images.strides == tensors[0].strides
    parcel.release()
    assert sent.wire_bytes == parcel.wire_bytes
    # Of each row 48 numbers and 8 bytes and 5 half numbers; headers of codecs fill 64 bytes each.
    assert parcel.wire_bytes == num_rows * (48 + 8 + 10) + 64 + 64


def test_what_a_codec_read_is_given_back_at_once() -> None:
    """Held are tensors alone: the plan counts no payloads beside them."""
    link = dataclasses.replace(_LINK, specs=_SPECS[:1], codecs=_LINK.codecs[:1])
    images = _tensors(2)[:1]
    sending, receiving = joined(link)
    sender, receiver = (
        Sender(sending, link, 1, 20.0),
        Receiver(receiving, link, 1, 20.0, reuse=True),
    )
    sender.send(Parcel(sequence=0, num_rows=2, tensors=images))
    receiver.receive()
    assert len(receiver._free) == 1
    sender.close()
    receiver.close()
    file = create_file(link.slot_bytes, 1)
    arenas = [Arena(file, link.slot_bytes, 1) for _ in range(2)]
    os.close(file)
    pair = socket.socketpair()
    ends = (
        HostSender(pair[0], link, 1, arenas[0], 20.0),
        HostReceiver(pair[1], link, 1, arenas[1], 20.0, reuse=True),
    )
    for sequence in range(3):  # with one slot, none of which is released
        ends[0].send(Parcel(sequence=sequence, num_rows=2, tensors=images))
        assert ends[1].receive()[1].sequence == sequence
    for end in ends:
        end.close()


def test_numbers_that_a_codec_refuses_leave_the_link_whole(ends) -> None:
    sender, receiver = ends
    good = _tensors(2)
    bad = (good[0], good[1], np.full((2, 5), 1e6, np.float32))
    with pytest.raises(UnsendableError, match="codec fp16: it writes numbers up to 65504; 10 of"):
        sender.send(Parcel(sequence=0, num_rows=2, tensors=bad))
    with pytest.raises(UnsendableError):
        sender.send(Parcel(sequence=0, num_rows=2, tensors=good[:2]))
    with pytest.raises(UnsendableError, match="at most 4"):
        sender.send(Parcel(sequence=0, num_rows=5, tensors=_tensors(5)))
    sender.send(Parcel(sequence=1, num_rows=2, tensors=good))
    assert receiver.receive()[1].sequence == 1


def _payloads(num_rows: int) -> list[np.ndarray]:
    """What a link carries of `_tensors`."""
    images, numbers, vectors = _tensors(num_rows)
    return [
        encode(CODECS["int8"], images, _SPECS[0], num_rows),
        numbers,
        encode(CODECS["fp16"], vectors, _SPECS[2], num_rows),
    ]


def _send_forged(sender, arrays: list[np.ndarray]) -> None:
    assert _FORGER.header_bytes == _LINK.header_bytes
    sender._link = _FORGER
    sender.send(Parcel(sequence=0, num_rows=2, tensors=tuple(arrays)))


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (lambda a, b, c: [a[:-1], b, c], "announced in the place of 'a'"),
        (lambda a, b, c: [np.append(a, a[:1]), b, c], "announced in the place of 'a'"),
        (lambda a, b, c: [a.view(np.int8), b, c], r"int8\[160\] announced"),
        (lambda a, b, c: [a, b, a], "announced in the place of 'c', which codec fp16 writes in 84"),
        (lambda a, b, c: [a, b], "2 tensors announced in the place of 3"),
    ],
    ids=["short", "long", "another dtype", "another codec's", "too few"],
)
def test_payloads_of_another_size_are_refused_before_memory_is_taken(
    ends, monkeypatch: pytest.MonkeyPatch, forge, words: str
) -> None:
    sender, receiver = ends
    if isinstance(receiver, Receiver):
        monkeypatch.setattr(receiver, "_take_memory", lambda _: pytest.fail("memory was taken"))
    _send_forged(sender, forge(*_payloads(2)))
    with pytest.raises(LinkClosedError, match=words):
        receiver.receive()


def test_bytes_that_no_codec_writes_close_the_link(ends) -> None:
    sender, receiver = ends
    images, numbers, vectors = _payloads(2)
    images[4:8] = np.array([np.nan], "<f4").view(np.uint8)
    _send_forged(sender, [images, numbers, vectors])
    with pytest.raises(LinkClosedError, match="stage 0 -> stage 1: codec int8: a scale of nan"):
        receiver.receive()


def test_any_payloads_arrive_or_close_the_link() -> None:
    drawn = random.Random(0)
    for _ in range(200):
        payloads = tuple(array.copy() for array in _payloads(2))
        for _ in range(drawn.randint(1, 8)):
            payload = payloads[drawn.choice((0, 2))]
            payload[drawn.randrange(64 if drawn.random() < 0.7 else len(payload))] = (
                drawn.randrange(256)
            )
        try:
            tensors = _LINK.decoded(payloads, 2)
        except WireError:
            continue
        assert [t.shape for t in tensors] == [(2, 3, 4, 4), (2,), (2, 5)]
