"""Measures a link in both directions, over the channel that the runtime uses between hosts.

Two such processes, one on each node, first connect like neighbours of a pipeline: link 0 leads from
the first to the second, link 1 back. What they have to tell each other for that they print, and
read what the other printed; `exchange` carries it over. One sends messages of growing size and the
other answers each with a byte. Then it sends large ones without a pause, while bystanders at both
ends lose what a stage would lose to them. Then they change places. Started as
``python -m cutset.measure.link_speed``; each prints one JSON document in the end, a `LinkResult`:
what it sent and received.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from statistics import median
from typing import Protocol

import msgspec
import numpy as np

from cutset.cluster.devices import Link
from cutset.engines.protocol import Address
from cutset.errors import EngineError
from cutset.links.joining import join
from cutset.links.meeting import Meeting
from cutset.links.neighbour import NeighbourSocket
from cutset.links.network import Receiver, Sender
from cutset.links.parcels import LinkClosedError, LinkContract, Parcel
from cutset.measure.bystander import Bystanders
from cutset.tensors import TensorSpec

SMALL_BYTES = 1
MAX_BYTES = 4 << 20
_NUM_SMALL = 25
_NUM_LARGE = 5
_TARGET_S = 0.3
_TIMEOUT_S = 60.0
_FIRST_BYTES = 64 << 10
_NUM_ROUNDS = 3
_QUIET_S = 0.7
_BUSY_S = 0.7
# Messages of these sizes say what comes next.
_QUIET_BYTES = 2
_BUSY_BYTES = 3
_DONE_BYTES = 4
_LAST_BYTES = 5


class LinkResult(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """One end of a link: what it sent, and what the bytes cost it.

    Attributes:
        bandwidth_bytes_per_s: bytes of tensors in a second, without the latency.
        latency_s: what every message costs, half of a small one's way there and back.
        num_bytes: size of the large messages that were timed.
        sending_s_per_byte: seconds of computing that this end loses for each byte that it sends.
        receiving_s_per_byte: the same for each byte that it receives.
    """

    bandwidth_bytes_per_s: float
    latency_s: float
    num_bytes: int
    sending_s_per_byte: float
    receiving_s_per_byte: float


def links_of(first: LinkResult, second: LinkResult) -> tuple[Link, Link]:
    """The link from the first end to the second, and the one back."""
    there, back = (
        Link(
            bandwidth_bytes_per_s=sender.bandwidth_bytes_per_s,
            latency_s=sender.latency_s,
            send_s_per_byte=sender.sending_s_per_byte,
            receive_s_per_byte=receiver.receiving_s_per_byte,
        )
        for sender, receiver in ((first, second), (second, first))
    )
    return there, back


class _Watch:
    """What bystanders get done while it is quiet, and lose while bytes come or go."""

    def __init__(self, num_threads: int) -> None:
        self._bystanders = Bystanders(num_threads)
        self._mark = (0.0, 0)
        self._quiet_per_s = 0.0
        self._lost_s_per_byte: list[float] = []

    def begin(self) -> None:
        """Begins a span of time."""
        self._mark = time.perf_counter(), self._bystanders.work

    def quiet(self) -> None:
        """Ends a span in which nothing was sent."""
        self._quiet_per_s = self._rate()[0]

    def busy(self, num_bytes: int) -> None:
        """Ends a span in which `num_bytes` were sent or received."""
        per_s, seconds = self._rate()
        lost = max(0.0, 1 - per_s / self._quiet_per_s)
        self._lost_s_per_byte.append(lost * seconds / num_bytes)

    def _rate(self) -> tuple[float, float]:
        started_s, done = self._mark
        seconds = time.perf_counter() - started_s
        return (self._bystanders.work - done) / seconds, seconds

    def end(self) -> float:
        """Ends the bystanders; the median of what was lost for each byte."""
        self._bystanders.close()
        return median(self._lost_s_per_byte)


class _End:
    """Both links of one process."""

    def __init__(self, listen_host: str, *, first: bool, secured: bool) -> None:
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
        meetings = tuple(Meeting(1, index, _print) for index in range(2))
        threading.Thread(target=_read_addresses, args=(meetings,), daemon=True).start()

        def joined(contract: LinkContract) -> NeighbourSocket:
            return join(
                meetings[contract.index],
                listen_host,
                contract,
                sends=contract is out,
                secured=secured,
                timeout_s=_TIMEOUT_S,
            )

        connections = [joined(contract) for contract in contracts]  # in one order at both ends
        self._sender = Sender(connections[out.index], out, 1, _TIMEOUT_S)
        self._receiver = Receiver(connections[back.index], back, 1, _TIMEOUT_S, reuse=True)

    def close(self, *, first: bool) -> None:
        """Ends it; the first goes when it has heard that this was all, the other sees it go."""
        if not first:
            with contextlib.suppress(LinkClosedError):
                self.receive()
        self._sender.close()
        self._receiver.close()

    def send(self, num_bytes: int) -> None:
        parcel = Parcel(
            sequence=0,
            num_rows=num_bytes,
            tensors=(np.zeros(num_bytes, np.uint8),),
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


def measure(end: _End, num_threads: int) -> tuple[float, float, int, float]:
    """Sends messages and times the answers; the other end runs `answer`.

    Returns:
        Bandwidth, latency, size of the large messages, and what sending a byte costs this end.
    """
    end.round_trip_s(SMALL_BYTES)
    small_s = median(end.round_trip_s(SMALL_BYTES) for _ in range(_NUM_SMALL))
    end.round_trip_s(_FIRST_BYTES)
    first_s = max(end.round_trip_s(_FIRST_BYTES) - small_s, 1e-6)
    wanted = int(_TARGET_S * _FIRST_BYTES / first_s)
    size = min(max(wanted, _FIRST_BYTES), MAX_BYTES)
    large_s = median(end.round_trip_s(size) for _ in range(_NUM_LARGE))
    watch = _Watch(num_threads)
    for _ in range(_NUM_ROUNDS):
        end.round_trip_s(_QUIET_BYTES)
        watch.begin()
        time.sleep(_QUIET_S)
        watch.quiet()
        end.send(_BUSY_BYTES)
        watch.begin()
        sent, started_s = 0, time.perf_counter()
        while time.perf_counter() - started_s < _BUSY_S:
            end.send(size)
            sent += size
        end.round_trip_s(_DONE_BYTES)  # until the last byte is there
        watch.busy(sent)
    end.send(_LAST_BYTES)
    return size / max(large_s - small_s, 1e-9), small_s / 2, size, watch.end()


def answer(end: _End, num_threads: int) -> float:
    """Answers messages until one says that this was all.

    Returns:
        What receiving a byte costs this end.
    """
    watch: _Watch | None = None
    received: int | None = None  # None while messages are answered
    while (num_bytes := end.receive()) != _LAST_BYTES:
        if num_bytes == _BUSY_BYTES and watch is not None:
            watch.quiet()
            watch.begin()
            received = 0
        elif num_bytes == _DONE_BYTES and watch is not None and received is not None:
            watch.busy(received)
            received = None
            end.send(SMALL_BYTES)
        elif received is not None:
            received += num_bytes
        else:
            if num_bytes == _QUIET_BYTES:
                watch = watch or _Watch(num_threads)
            end.send(SMALL_BYTES)
            if watch is not None:
                watch.begin()
    return watch.end() if watch is not None else 0.0


def _print(message: msgspec.Struct) -> None:
    sys.stdout.write(msgspec.json.encode(message).decode() + "\n")  # at once, for `exchange`
    sys.stdout.flush()


def _read_addresses(meetings: tuple[Meeting, ...]) -> None:
    for line in sys.stdin:
        address = msgspec.json.decode(line, type=Address)
        meetings[address.link].tell(address)


class Conversation(Protocol):
    """A running process of this module, as the one that started it sees it."""

    def hear(self) -> list[str]:
        """The lines that it printed since the last call; waits a little where there are none.

        Raises:
            EngineError: it failed.
        """

    def tell(self, line: str) -> None:
        """Gives the process a line to read."""


def exchange(
    first: Conversation, second: Conversation, *, limit_s: float
) -> tuple[LinkResult, LinkResult]:
    """Carries over what the two ends tell each other, until both have measured.

    Raises:
        EngineError: one failed, or they were not ready in time.
    """
    deadline_s = time.monotonic() + limit_s
    ends = (first, second)
    results: dict[int, LinkResult] = {}
    while len(results) < len(ends):
        for index, end in enumerate(ends):
            if index in results:
                continue
            for line in end.hear():
                message = msgspec.json.decode(line, type=Address | LinkResult)
                if isinstance(message, LinkResult):
                    results[index] = message
                else:
                    ends[1 - index].tell(line)
        if time.monotonic() > deadline_s:
            raise EngineError(f"the measurement of a link did not end within {limit_s:.0f} s")
    return results[0], results[1]


def main() -> None:
    """Runs one end."""
    parser = argparse.ArgumentParser(description="Measures a link between two hosts.")
    parser.add_argument("--listen-host", required=True)
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--unsecured", action="store_true", help="without keys")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    end = _End(arguments.listen_host, first=arguments.first, secured=not arguments.unsecured)
    receiving = None if arguments.first else answer(end, arguments.threads)
    bandwidth, latency, size, sending = measure(end, arguments.threads)
    result = LinkResult(
        bandwidth_bytes_per_s=bandwidth,
        latency_s=latency,
        num_bytes=size,
        sending_s_per_byte=sending,
        receiving_s_per_byte=answer(end, arguments.threads) if receiving is None else receiving,
    )
    end.close(first=arguments.first)
    _print(result)


if __name__ == "__main__":
    main()
