"""What a message between two neighbours on this host costs their processors."""

from __future__ import annotations

import functools
import os
import socket

import numpy as np

from cutset.links.arena import Arena, create_file
from cutset.links.parcels import LinkContract, Parcel
from cutset.links.shared_memory import HostReceiver, HostSender
from cutset.measure.stream_seconds import median_in_stream, timed
from cutset.tensors import TensorSpec

_NUM_WARM_UP = 5
_NUM_HOPS = 50
_NUM_SLOTS = 4
_TIMEOUT_S = 10.0


def measure_hop(num_bytes: int) -> float:
    """Seconds of processor time that one message costs, both ends together, without waking anyone.

    A sender and a receiver in one thread: the copy into shared memory, the headers, the calls of
    the system.

    Args:
        num_bytes: of its tensors.
    """
    spec = TensorSpec(name="hop", shape=("batch", max(1, num_bytes)), dtype="uint8")
    link = LinkContract(index=0, name="hop", specs=(spec,), max_rows=1)
    file = create_file(link.slot_bytes, _NUM_SLOTS)
    ours, theirs = socket.socketpair()
    try:
        ends = [Arena(file, link.slot_bytes, _NUM_SLOTS) for _ in range(2)]
        array = np.zeros(spec.concrete_shape(1), np.uint8)
        sender = HostSender(ours, link, 1, ends[0], _TIMEOUT_S)
        receiver = HostReceiver(theirs, link, 1, ends[1], _TIMEOUT_S, reuse=True)

        def hop(sequence: int) -> None:
            sender.send(Parcel(sequence=sequence, num_rows=1, tensors=(array,)))
            _, parcel = receiver.receive()
            parcel.release()

        samples = [
            timed(functools.partial(hop, sequence))[1]
            for sequence in range(_NUM_WARM_UP + _NUM_HOPS)
        ]
    finally:
        ours.close()
        theirs.close()
        os.close(file)
    return median_in_stream(samples[_NUM_WARM_UP:])
