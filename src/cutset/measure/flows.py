"""Sends over several links at once, to see which of them share something.

One such process runs on each host, with the links that begin and end there: all connect as
neighbours of a pipeline do. What they have to tell each other for that they print, and read what
others printed, as in `cutset.measure.link_speed`. Told of a `Flood`, a process sends as fast as it
can over the links of it that begin there; who receives says how fast that was. Started as
``python -m cutset.measure.flows``.
"""

from __future__ import annotations

import argparse
import functools
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from cutset.engines.protocol import Address
from cutset.errors import EngineError
from cutset.host import usable_cores
from cutset.links.joining import join
from cutset.links.meeting import Meeting
from cutset.links.network import Receiver, Sender
from cutset.links.parcels import LinkClosedError, LinkContract, Parcel
from cutset.measure.find_wires import AtOnce, HostPair
from cutset.measure.link_speed import MAX_BYTES, Conversation
from cutset.tensors import TensorSpec

FLOOD_S = 0.5
_TIMEOUT_S = 60.0
_LAST_ROWS = 1
_LEAST_BYTES = 16 << 10
_CHUNK_S = 0.05


class Flood(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Send over these links, all at once; without links: this was all.

    Attributes:
        links: their indices.
        seconds: for how long.
        num_bytes: of each message.
    """

    links: tuple[int, ...]
    seconds: float = FLOOD_S
    num_bytes: int = MAX_BYTES


class Flow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """What one end of a link saw of a flood.

    Attributes:
        link: its index.
        num_bytes: that came after the first message; 0 from the end that sent them.
        seconds: that they took.
        busy: processor time of the process over what it could have had, 0 to about 1.
    """

    link: int
    num_bytes: int
    seconds: float
    busy: float


class _Busy:
    """Processor time of this process over the time of a core, or of its share of one."""

    def __init__(self) -> None:
        self._began_s = time.perf_counter(), time.process_time()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began_s[0]

    @property
    def share(self) -> float:
        used_s = time.process_time() - self._began_s[1]
        return used_s / max(self.seconds, 1e-9) / min(1.0, usable_cores())


def _receive(receiver: Receiver, link: int) -> None:
    """Receives until the sender is gone; after each flood it says how fast that was."""
    num_bytes, busy = 0, None
    while True:
        try:
            _, parcel = receiver.receive()
        except LinkClosedError:
            return
        num_rows = parcel.num_rows
        parcel.release()
        if busy is None:
            busy = _Busy()  # from the end of the first message on
        elif num_rows > _LAST_ROWS:
            num_bytes += num_rows
        if num_rows == _LAST_ROWS:
            _print(Flow(link=link, num_bytes=num_bytes, seconds=busy.seconds, busy=busy.share))
            num_bytes, busy = 0, None


def _send(sender: Sender, link: int, flood: Flood) -> None:
    """Sends for the time of a flood, twice at least, and an end."""
    busy, num_sent = _Busy(), 0
    while num_sent < 2 or busy.seconds < flood.seconds:
        sender.send(_parcel(flood.num_bytes))
        num_sent += 1
    sender.send(_parcel(_LAST_ROWS))
    _print(Flow(link=link, num_bytes=0, seconds=busy.seconds, busy=busy.share))


def _parcel(num_bytes: int) -> Parcel:
    return Parcel(sequence=0, num_rows=num_bytes, tensors=(np.zeros(num_bytes, np.uint8),))


_printing = threading.Lock()


def _print(message: msgspec.Struct) -> None:
    with _printing:
        sys.stdout.write(msgspec.json.encode(message).decode() + "\n")  # at once
        sys.stdout.flush()


class FlowProcesses:
    """One process of this module on each host, as their caller sees them.

    Args:
        pairs: the hosts that each link leads from and to, by its index.
        talks: with the process on each host, by name.
        limit_s: how long to wait for an answer.
    """

    def __init__(
        self,
        pairs: Sequence[HostPair],
        talks: Mapping[str, Conversation],
        *,
        limit_s: float,
    ) -> None:
        self._pairs = pairs
        self._talks = talks
        self._limit_s = limit_s

    def flood(self, pairs: Iterable[HostPair], bytes_per_s: float) -> AtOnce:
        """Sends over links at once.

        Args:
            pairs: whose links.
            bytes_per_s: about what one of them carries: how large its messages are.

        Raises:
            EngineError: a process failed, or did not answer in time.
        """
        links = tuple(self._pairs.index(pair) for pair in pairs)
        size = min(max(int(bytes_per_s * _CHUNK_S), _LEAST_BYTES), MAX_BYTES)
        for name, talk in self._talks.items():
            own = tuple(link for link in links if self._pairs[link][0] == name)
            if own:
                talk.tell(msgspec.json.encode(Flood(links=own, num_bytes=size)).decode())
        flows: list[Flow] = []
        deadline_s = time.monotonic() + self._limit_s
        while len(flows) < 2 * len(links):
            flows += self._hear()
            if time.monotonic() > deadline_s:
                raise EngineError(f"links did not carry anything within {self._limit_s:.0f} s")
        came = [flow for flow in flows if flow.num_bytes]
        return AtOnce(
            rates={self._pairs[flow.link]: flow.num_bytes / flow.seconds for flow in came},
            # A wire that all share is busy until the last of them is done.
            total=sum(flow.num_bytes for flow in came) / max(flow.seconds for flow in came),
            busy=max(flow.busy for flow in flows),
        )

    def _hear(self) -> list[Flow]:
        """What was seen, after carrying over what the processes have to tell each other."""
        found = []
        for name, talk in self._talks.items():
            for line in talk.hear():
                message = msgspec.json.decode(line, type=Address | Flow)
                if isinstance(message, Flow):
                    found.append(message)
                    continue
                (other,) = {*self._pairs[message.link]} - {name}
                self._talks[other].tell(line)
        return found

    def end(self) -> None:
        """Lets the processes end."""
        for talk in self._talks.values():
            talk.tell(msgspec.json.encode(Flood(links=())).decode())


def _contract(link: int) -> LinkContract:
    spec = TensorSpec(name="bytes", shape=("batch",), dtype="uint8")
    return LinkContract(index=link, name=f"probe {link}", specs=(spec,), max_rows=MAX_BYTES)


def main() -> None:
    """Runs the process of one host."""
    parser = argparse.ArgumentParser(description="Sends over several links at once.")
    parser.add_argument("--listen-host", required=True)
    parser.add_argument("--sends", type=int, nargs="*", default=[], help="links that begin here")
    parser.add_argument("--receives", type=int, nargs="*", default=[], help="links that end here")
    parser.add_argument("--unsecured", action="store_true", help="without keys")
    arguments = parser.parse_args()
    # All processes join their links in rising order, so that none waits for one that waits for it.
    links = sorted([*arguments.sends, *arguments.receives])
    meetings = {link: Meeting(1, link, _print) for link in links}
    ready = threading.Event()
    senders: dict[int, Sender] = {}
    ended = threading.Event()

    def flood(link: int, wanted: Flood) -> None:
        if ready.wait(_TIMEOUT_S):  # addresses are still to be read meanwhile
            _send(senders[link], link, wanted)

    def read() -> None:
        for line in sys.stdin:
            message = msgspec.json.decode(line, type=Address | Flood)
            if isinstance(message, Address):
                meetings[message.link].tell(message)
            elif not message.links:
                break
            else:
                for link in message.links:
                    threading.Thread(target=flood, args=(link, message), daemon=True).start()
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    for link in links:
        connection = join(
            meetings[link],
            arguments.listen_host,
            _contract(link),
            sends=link in arguments.sends,
            secured=not arguments.unsecured,
            timeout_s=_TIMEOUT_S,
        )
        if link in arguments.sends:
            senders[link] = Sender(connection, _contract(link), 1, _TIMEOUT_S)
        else:
            receiver = Receiver(connection, _contract(link), 1, _TIMEOUT_S, reuse=True)
            receive = functools.partial(_receive, receiver, link)
            threading.Thread(target=receive, daemon=True).start()
    ready.set()
    ended.wait()


if __name__ == "__main__":
    main()
