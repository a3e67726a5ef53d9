"""Hops between two network namespaces: ZeroMQ with and without keys, TLS, plain TCP, and gloo.

``make bench-links`` (root on Linux, iproute2, openssl); writes docs/links.md. A veth pair joins two
namespaces; for each transport a process stands in each. Rounds are interleaved: what else the
machine does meets all alike. A hop is half of the time in which a message goes there and one of the
same size comes back. Gloo is measured by the code of the last commit that had it, in a worktree:
``git worktree add /tmp/gloo 7c01f95~1`` and ``make bench-links GLOO=/tmp/gloo``.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import link_periods

_SIZES = {"1.6 MB": 1_605_632, "50 kB": 50_176}
_ROUNDS = 30
_HOPS = {"1.6 MB": 8, "50 kB": 40}
_ADDRESSES = ("10.77.1.1", "10.77.1.2")
_TIMEOUT_S = 60.0
_PAGE = Path(__file__).parents[1] / "docs" / "links.md"
_NAMES = {
    "tcp": "plain TCP, one socket",
    "gloo": "gloo, as links were before",
    "open": "ZeroMQ without keys",
    "tls": "TLS 1.3, one socket of Python's `ssl`",
    "keys": "ZeroMQ with keys (CURVE)",
}


class Transport(Protocol):
    """One end that sends to and receives from the other."""

    def send(self, data: np.ndarray) -> None:
        """Sends a message."""

    def receive(self, num_bytes: int) -> None:
        """Receives one."""


# --- the ends, each in a process of its own


def _say(**words: Any) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def _hear() -> dict[str, Any]:
    heard: dict[str, Any] = json.loads(sys.stdin.readline())
    return heard


class _Sockets:
    """A TCP connection, with TLS where there is a folder of certificates."""

    def __init__(self, address: str, folder: str, *, first: bool) -> None:
        if first:
            with socket.create_server((address, 0)) as listener:
                _say(place=listener.getsockname())
                raw, _ = listener.accept()
        else:
            raw = socket.create_connection(tuple(_hear()["place"]))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = _with_tls(raw, Path(folder), first=first) if folder else raw
        self._memory = memoryview(bytearray(max(_SIZES.values())))

    def send(self, data: np.ndarray) -> None:
        self._socket.sendall(data)

    def receive(self, num_bytes: int) -> None:
        received = 0
        while received < num_bytes:
            received += self._socket.recv_into(self._memory[received:num_bytes])


def _with_tls(raw: socket.socket, folder: Path, *, first: bool) -> ssl.SSLSocket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if first else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if first:
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        return context.wrap_socket(raw, server_side=True)
    context.load_verify_locations(folder / "certificate.pem")
    context.check_hostname = False
    return context.wrap_socket(raw)


class _Links:
    """Two links of ours, one each way."""

    def __init__(self, make: Callable[[Any, bool], Any], *, first: bool) -> None:
        from cutset.links import network
        from cutset.tensors import TensorSpec

        try:
            from cutset.links.parcels import LinkContract, Parcel
        except ModuleNotFoundError:  # as long as links were gloo
            from cutset.links.network import LinkContract, Parcel
        self._parcel = Parcel
        spec = TensorSpec(name="bytes", shape=("batch",), dtype="uint8")
        contracts = [
            LinkContract(index=i, name=str(i), specs=(spec,), max_rows=max(_SIZES.values()))
            for i in range(2)
        ]
        out = 0 if first else 1
        ends = [make(contract, contract.index == out) for contract in contracts]
        self._sender = network.Sender(ends[out], contracts[out], 1, _TIMEOUT_S)
        self._receiver = network.Receiver(
            ends[1 - out], contracts[1 - out], 1, _TIMEOUT_S, reuse=True
        )

    def send(self, data: np.ndarray) -> None:
        self._sender.send(self._parcel(sequence=0, num_rows=data.size, tensors=(data,)))

    def receive(self, num_bytes: int) -> None:
        _, parcel = self._receiver.receive()
        assert parcel.num_bytes == num_bytes
        parcel.release()


def _with_zeromq(address: str, *, first: bool, secured: bool) -> _Links:
    from cutset.engines.protocol import Address
    from cutset.links.joining import join
    from cutset.links.meeting import Meeting

    def publish(said: Address) -> None:
        _say(link=said.link, public_key=said.public_key, endpoint=said.endpoint)

    meetings = [Meeting(1, index, publish) for index in range(2)]

    def listen() -> None:
        for _ in range(2):
            told = Address(epoch=1, **_hear())
            meetings[told.link].tell(told)

    def make(contract: Any, sends: bool) -> Any:
        meeting = meetings[contract.index]
        return join(meeting, address, contract, sends=sends, secured=secured, timeout_s=_TIMEOUT_S)

    listening = threading.Thread(target=listen)
    listening.start()
    links = _Links(make, first=first)
    listening.join()
    return links


def _with_gloo(address: str, *, first: bool) -> _Links:
    from cutset.links import network

    old: Any = network
    if first:
        store = old.serve_store(address)
        _say(host=address, port=store.port)
        place = {"host": address, "port": store.port}
    else:
        store = None
        place = _hear()
    where = old.StoreAddress(**place, prefix="bench", listen_host=address)
    links = _Links(
        lambda contract, sends: old.connect(where, contract, sends=sends, timeout_s=_TIMEOUT_S),
        first=first,
    )
    links.store = store  # type: ignore[attr-defined]
    return links


def _end(transport: str, address: str, folder: str, *, first: bool) -> None:
    end: Transport
    if transport in ("tcp", "tls"):
        end = _Sockets(address, folder if transport == "tls" else "", first=first)
    elif transport == "gloo":
        end = _with_gloo(address, first=first)
    else:
        end = _with_zeromq(address, first=first, secured=transport == "keys")
    data = {name: _random(size) for name, size in _SIZES.items()}
    _say(ready=True)
    for line in sys.stdin:
        name = json.loads(line)["size"]
        times = []
        for _ in range(_HOPS[name]):
            started_s = time.perf_counter()
            if first:
                end.send(data[name])
            end.receive(_SIZES[name])
            if not first:
                end.send(data[name])
            times.append((time.perf_counter() - started_s) / 2)
        _say(times=times[1:])
    os._exit(0)


def _random(num_bytes: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, num_bytes, np.uint8)


# --- who measures


class _Pair:
    """The two processes of one transport."""

    def __init__(self, transport: str, names: tuple[str, str], folder: str, source: str) -> None:
        self._ends = [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, sys.executable, str(Path(__file__).resolve())),
                    *("--end", transport, "--address", address, "--folder", folder),
                    *(("--first",) if address == _ADDRESSES[0] else ()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
                text=True,
            )
            for name, address in zip(names, _ADDRESSES, strict=True)
        ]
        carriers = [threading.Thread(target=self._carry, args=(i,)) for i in range(2)]
        for carrier in carriers:
            carrier.start()
        for carrier in carriers:
            carrier.join(_TIMEOUT_S)

    def _carry(self, index: int) -> None:
        """Carries what one end says to the other, until it is ready."""
        while "ready" not in (said := self._heard(index)):
            self._tell(1 - index, said)

    def _heard(self, index: int) -> dict[str, Any]:
        stdout = self._ends[index].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line:
            raise SystemExit("an end is gone")
        heard: dict[str, Any] = json.loads(line)
        return heard

    def _tell(self, index: int, words: dict[str, Any]) -> None:
        stdin = self._ends[index].stdin
        assert stdin is not None
        stdin.write(json.dumps(words) + "\n")
        stdin.flush()

    def times_s(self, size: str) -> list[float]:
        """Seconds of each hop of one round."""
        for index in (1, 0):
            self._tell(index, {"size": size})
        first, _ = self._heard(0), self._heard(1)
        times: list[float] = first["times"]
        return times

    def close(self) -> None:
        for end in self._ends:
            end.kill()
            end.communicate()


@contextlib.contextmanager
def _namespaces() -> Iterator[tuple[str, str]]:
    names = (f"cutset-{os.getpid()}-a", f"cutset-{os.getpid()}-b")
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        devices = (f"cs{os.getpid() % 10**6}a", f"cs{os.getpid() % 10**6}b")
        _run("ip", "link", "add", devices[0], "type", "veth", "peer", "name", devices[1])
        for name, device, address in zip(names, devices, _ADDRESSES, strict=True):
            _run("ip", "link", "set", device, "netns", name)
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
            for each in ("lo", device):
                _run("ip", "-n", name, "link", "set", each, "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


def _make_certificate(folder: str) -> None:
    _run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-days", "2", "-subj", "/CN=bench", "-out", f"{folder}/certificate.pem"),
        *("-keyout", f"{folder}/key.pem"),
    )


def measure(gloo: Path | None) -> dict[tuple[str, str], list[float]]:
    """Seconds of hops, by transport and size; in turns."""
    here = str(Path(__file__).parents[1] / "src")
    sources = dict.fromkeys(_NAMES, here)
    if gloo is None:
        sources.pop("gloo", None)
    else:
        sources["gloo"] = str(gloo.resolve() / "src")
    times: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, _namespaces() as names:
        _make_certificate(folder)
        with contextlib.ExitStack() as opened:
            pairs = {}
            for name, source in sources.items():
                pairs[name] = _Pair(name, names, folder, source)
                opened.callback(pairs[name].close)
            for number in range(_ROUNDS):
                for size in _SIZES:
                    for name, pair in pairs.items():
                        hops = pair.times_s(size)
                        if number:  # the first warms up
                            times.setdefault((name, size), []).append(statistics.median(hops))
    return times


def _table(times: dict[tuple[str, str], list[float]]) -> list[str]:
    measured = [name for name in _NAMES if (name, "1.6 MB") in times]
    lines = [
        "| | " + " | ".join(f"hop of {size} (ms)" for size in _SIZES) + " |",
        "| --- |" + " --- |" * len(_SIZES),
    ]
    for name in measured:
        cells = []
        for size in _SIZES:
            low, middle, high = statistics.quantiles(times[name, size], n=4)
            cells.append(f"{middle * 1e3:.3f} ({low * 1e3:.3f} to {high * 1e3:.3f})")
        lines.append(f"| {_NAMES[name]} | {' | '.join(cells)} |")
    lines += ["", "| ratio | " + " | ".join(_SIZES) + " | goal |", "| --- |" + " --- |" * 3]
    for one, other in (("open", "gloo"), ("keys", "tls"), ("open", "tcp"), ("keys", "open")):
        if one in measured and other in measured:
            ratios = [_ratio(times, one, other, size) for size in _SIZES]
            goal = "at most 1.10" if (one, other) in (("open", "gloo"), ("keys", "tls")) else ""
            lines.append(f"| {_NAMES[one]} / {_NAMES[other]} | {' | '.join(ratios)} | {goal} |")
    extra = [_extra_ratio(times, size) for size in _SIZES]
    lines.append(f"| what keys cost / what TLS costs | {' | '.join(extra)} | at most 1.10 |")
    return lines


def _extra_ratio(times: dict[tuple[str, str], list[float]], size: str) -> str:
    keys, bare, tls, tcp = (times[name, size] for name in ("keys", "open", "tls", "tcp"))
    rounds = zip(keys, bare, tls, tcp, strict=True)
    return f"{statistics.median((a - b) / (c - d) for a, b, c, d in rounds):.2f}"


def _ratio(times: dict[tuple[str, str], list[float]], one: str, other: str, size: str) -> str:
    """The median of the rounds' own ratios."""
    pairs = zip(times[one, size], times[other, size], strict=True)
    return f"{statistics.median(a / b for a, b in pairs):.2f}"


_PAGE_TEXT = """\
# What a link between hosts costs

A message of the size of an activation goes from one network namespace of a machine to another over
a veth pair, and one of the same size comes back; half of that time is a hop. The median of the
rounds' medians, and in brackets their quartiles. The rounds of all transports are interleaved, and
a ratio is the median of the rounds' own ratios. What keys cost is the hop with them less the hop
without; what TLS costs is its hop less that of plain TCP.

`{command}`, {day}, {machine} with {cores} cores, load {load:.1f} at the end; {rounds} rounds.

{table}

On this wire nothing limits but the processor. On one of 100 Mbit/s the larger message takes 128 ms;
what encryption then costs is the processor's time, which `cutset probe` measures into `send_cost`
and `receive_cost` of each link. What a link promises besides:
[links between hosts](runtime.md#links-between-hosts).

## What keys cost a pipeline

Three stages on a testbed's nodes of one core, a half and a half, which stand twice, once with keys
and once without; rows go through the one and the other in turn.

{begin}
{periods}
{end}
"""


def _page(lines: list[str], gloo: Path | None) -> str:
    return _PAGE_TEXT.format(
        command="make bench-links" + (f" GLOO={gloo}" if gloo else ""),
        day=dt.datetime.now(tz=dt.timezone.utc).date().isoformat(),
        machine=platform.machine(),
        cores=os.cpu_count(),
        load=os.getloadavg()[0],
        rounds=_ROUNDS - 1,
        table="\n".join(lines),
        begin=link_periods.BEGIN,
        periods=link_periods.report(),
        end=link_periods.END,
    )


def main() -> None:
    """Measures, prints, writes the page; or is one end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gloo", type=Path, help="a worktree of the last commit with gloo")
    parser.add_argument("--end", choices=list(_NAMES), help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument("--first", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.end:
        _end(arguments.end, arguments.address, arguments.folder, first=arguments.first)
    lines = _table(measure(arguments.gloo))
    print("\n".join(lines))
    _PAGE.write_text(_page(lines, arguments.gloo), encoding="utf-8")


if __name__ == "__main__":
    main()
