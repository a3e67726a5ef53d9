"""Measures a link in both directions, over the channel that the runtime uses between hosts.

Two such processes, one on each node, first connect like neighbours of a pipeline: link 0 leads from
the first to the second, link 1 back. One sends messages of growing size and the other answers each
with a byte; then they change places. Started as ``python -m cutset.runtime.linkprobe``; each prints
one JSON document, a `LinkResult` of what it sent.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import msgspec
import torch

from cutset.runtime.channel import (
    LinkContract,
    Parcel,
    Receiver,
    Sender,
    StoreAddress,
    connect,
)
from cutset.tensors import TensorSpec

SMALL_BYTES = 1
MAX_BYTES = 4 << 20
_LAST_BYTES = 2
_NUM_SMALL = 25
_NUM_LARGE = 5
_TARGET_S = 0.3
_TIMEOUT_S = 60.0
_FIRST_BYTES = 64 << 10


class LinkResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One direction of a link.

    Attributes:
        bandwidth_bytes_per_s: bytes of tensors in a second, without the latency.
        latency_s: what every message costs, half of a small one's way there and back.
        num_bytes: size of the large messages that were timed.
    """

    bandwidth_bytes_per_s: float
    latency_s: float
    num_bytes: int


class _End:
    """Both links of one process."""

    def __init__(self, address: StoreAddress, *, first: bool) -> None:
        contracts = tuple(
            LinkContract(
                index=index,
                name=f"probe {index}",
                specs=(TensorSpec(name="bytes", shape=("batch",), dtype="uint8"),),
                max_rows=MAX_BYTES,
            )
            for index in range(2)
        )
        out, back = contracts if first else contracts[::-1]
        groups = {}
        for contract in contracts:  # in one order at both ends
            groups[contract.index] = connect(
                address,
                contract,
                sends=contract is out,
                timeout_s=_TIMEOUT_S,
            )
        self._sender = Sender(groups[out.index], out, 1, _TIMEOUT_S)
        self._receiver = Receiver(groups[back.index], back, 1, _TIMEOUT_S, reuse=True)

    def send(self, num_bytes: int) -> None:
        parcel = Parcel(
            sequence=0,
            num_rows=num_bytes,
            tensors=(torch.zeros(num_bytes, dtype=torch.uint8),),
        )
        self._sender.send(parcel)

    def receive(self) -> int:
        _, parcel = self._receiver.receive()
        num_rows = parcel.num_rows
        parcel.release()
        return num_rows

    def round_trip_s(self, num_bytes: int) -> float:
        started_s = time.perf_counter()
        self.send(num_bytes)
        self.receive()
        return time.perf_counter() - started_s


def measure(end: _End) -> LinkResult:
    """Sends messages and times the answers; the other end runs `answer`."""
    end.round_trip_s(SMALL_BYTES)
    small_s = median(end.round_trip_s(SMALL_BYTES) for _ in range(_NUM_SMALL))
    end.round_trip_s(_FIRST_BYTES)
    first_s = max(end.round_trip_s(_FIRST_BYTES) - small_s, 1e-6)
    wanted = int(_TARGET_S * _FIRST_BYTES / first_s)
    size = min(max(wanted, _FIRST_BYTES), MAX_BYTES)
    large_s = median(end.round_trip_s(size) for _ in range(_NUM_LARGE))
    end.send(_LAST_BYTES)
    return LinkResult(
        bandwidth_bytes_per_s=size / max(large_s - small_s, 1e-9),
        latency_s=small_s / 2,
        num_bytes=size,
    )


def answer(end: _End) -> None:
    """Answers messages until one of a size of its own says that this was all."""
    while end.receive() != _LAST_BYTES:
        end.send(SMALL_BYTES)


def main() -> None:
    """Runs one end."""
    parser = argparse.ArgumentParser(description="Measures a link between two hosts.")
    parser.add_argument("--store-host", required=True)
    parser.add_argument("--store-port", type=int, required=True)
    parser.add_argument("--prefix", required=True)
    parser.add_argument("--listen-host", required=True)
    parser.add_argument("--first", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    address = StoreAddress(
        host=arguments.store_host,
        port=arguments.store_port,
        prefix=arguments.prefix,
        listen_host=arguments.listen_host,
    )
    end = _End(address, first=arguments.first)
    if arguments.first:
        result = measure(end)
        answer(end)
    else:
        answer(end)
        result = measure(end)
    print(msgspec.json.encode(result).decode(), flush=True)  # noqa: T201  # read by the probe


if __name__ == "__main__":
    main()
