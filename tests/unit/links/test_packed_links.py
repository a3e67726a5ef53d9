"""Links whose payloads are packed: they are as long as they happen to be, and never longer."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest

from cutset.codecs.coding import round_trip
from cutset.codecs.known_codecs import CODECS
from cutset.links.arena import Arena, create_file
from cutset.links.network import Receiver, Sender
from cutset.links.parcels import LinkContract, Parcel
from cutset.links.shared_memory import HostReceiver, HostSender
from cutset.links.wire import DATA, Header, Layout, WireError
from cutset.tensors import TensorSpec

from .test_network import joined

pytest.importorskip("zstandard", reason="needs zstandard: pip install 'cutset[zstd]'")

_SPECS = (
    TensorSpec(name="a", shape=("batch", 8, 16, 16), dtype="float32"),
    TensorSpec(name="b", shape=("batch", 300), dtype="int64"),
)
_LINK = LinkContract(
    index=1,
    name="stage 0 -> stage 1",
    specs=_SPECS,
    max_rows=4,
    codecs=("int8+zstd", "zstd"),
)


def _tensors(num_rows: int) -> tuple[np.ndarray, ...]:
    """Half zeros as behind a ReLU; whole numbers that repeat."""
    rng = np.random.default_rng(num_rows)
    images = rng.normal(size=(num_rows, 16, 16, 8)).astype(np.float32).transpose(0, 3, 1, 2)
    numbers = np.arange(num_rows * 300).reshape(num_rows, 300) // 7
    return np.maximum(images, 0), numbers


@pytest.mark.parametrize("shares_memory", [True, False], ids=["shared", "network"])
def test_what_arrives_is_what_the_codecs_make_of_it_in_fewer_bytes(shares_memory: bool) -> None:
    if shares_memory:
        file = create_file(_LINK.slot_bytes, 3)
        arenas = [Arena(file, _LINK.slot_bytes, 3) for _ in range(2)]
        os.close(file)
        pair = socket.socketpair()
        sender = HostSender(pair[0], _LINK, 1, arenas[0], 20.0)
        receiver = HostReceiver(pair[1], _LINK, 1, arenas[1], 20.0, reuse=True)
    else:
        sending, receiving = joined(_LINK)
        sender = Sender(sending, _LINK, 1, 20.0)
        receiver = Receiver(receiving, _LINK, 1, 20.0, reuse=True)
    for sequence, num_rows in enumerate((1, 4, 2)):
        tensors = _tensors(num_rows)
        sent = Parcel(sequence=sequence, num_rows=num_rows, tensors=tensors)
        sender.send(sent)
        _, parcel = receiver.receive()
        expected = round_trip(CODECS["int8"], tensors[0], _SPECS[0], num_rows)
        assert np.array_equal(parcel.tensors[0], expected)
        assert np.array_equal(parcel.tensors[1], tensors[1])
        assert parcel.tensors[0].strides == tensors[0].strides
        parcel.release()
        # int8 alone: 2048 a row; packed whole numbers: nearly nothing of 2400 a row.
        assert parcel.wire_bytes == sent.wire_bytes < 0.9 * num_rows * 2048
    sender.close()
    receiver.close()


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ((0, 1), "in at most 2113 bytes"),
        ((2114, 1), "in at most 2113 bytes"),
        ((1, 2466), "in at most 2465 bytes"),
        ((1 << 40, 1), "in at most 2113 bytes"),
    ],
)
def test_announced_lengths_that_no_payload_has_are_refused(
    lengths: tuple[int, int], words: str
) -> None:
    layouts = tuple(Layout(dtype="uint8", shape=(n,), strides=(1,)) for n in lengths)
    header = Header(DATA, epoch=1, sequence=0, num_rows=1, layouts=layouts)
    with pytest.raises(WireError, match=words):
        _LINK.check_payloads(header)


def test_any_length_up_to_the_most_may_be_announced() -> None:
    for lengths in ((1, 1), (2113, 2465), (900, 60)):
        layouts = tuple(Layout(dtype="uint8", shape=(n,), strides=(1,)) for n in lengths)
        _LINK.check_payloads(Header(DATA, epoch=1, sequence=0, num_rows=1, layouts=layouts))
