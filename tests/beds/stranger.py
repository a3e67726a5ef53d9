"""Runs on a node: knocks at the ports of its neighbours and says what none of them says.

    python stranger.py NUM_CONNECTIONS NUM_PORTS

Reads lines ``ADDRESS PORT``, as they are told; knocks in turn at all that it knows, each time with
other words. Of the connections that it opens, those count for which it knew so many ports; after
NUM_CONNECTIONS of them it says ``done`` with what it heard. A door that is shut gives no answer:
those connections are given up when too many are open.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import select
import socket
import sys

import zmq

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"
_CURVE = _GREETING + b"CURVE".ljust(20, b"\0") + bytes(32)
WORDS = (
    b"",
    b"\xff\x00GET / HTTP/1.1\r\n\r\n" * 100,
    os.urandom(4096),
    _GREETING,
    b"\x01\x00",
    _GREETING + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x06\x05READY",
    _CURVE + b"\x04\xc8\x05HELLO\x01" + bytes(50),
    _CURVE + b"\x04\xc8\x05HELLO\x01" + bytes(193),
    _CURVE + b"\x02\x7f" + bytes(7) + b"x" * 99,
    b"SSH-2.0-OpenSSH_9.2\r\n" + os.urandom(64),
)
"""Nothing, junk, old protocols, half handshakes and broken ones; every so often a whole client."""

_MOST_OPEN = 200
_CLIENT_EVERY = 20


def _wrong_key(address: str, port: int, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """A client with ZeroMQ and keys of its own; leaves a message for whoever lets it in."""
    client = context.socket(zmq.PAIR)
    client.setsockopt(zmq.LINGER, 0)
    client.setsockopt(zmq.HANDSHAKE_IVL, 500)
    client.curve_serverkey, _ = zmq.curve_keypair()
    client.curve_publickey, client.curve_secretkey = zmq.curve_keypair()
    client.connect(f"tcp://{address}:{port}")
    with contextlib.suppress(zmq.Again):
        client.send(b"let me in", zmq.DONTWAIT)
    client.poll(20)
    client.close(0)


def _knock(address: str, port: int, words: bytes) -> socket.socket:
    knocking = socket.socket()
    knocking.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        knocking.connect((address, port))
    _, writable, _ = select.select([], [knocking], [], 0.005)
    if writable:
        with contextlib.suppress(OSError):
            knocking.send(words)
    return knocking


def main() -> None:
    num_connections, num_ports = map(int, sys.argv[1:])
    known: list[tuple[str, int]] = []
    said = ""
    opened = collections.deque[socket.socket]()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    num_answered = num_taken = num_counted = 0
    os.set_blocking(0, False)
    for number in itertools.count():
        num_counted += len(known) >= num_ports
        if num_counted > num_connections:
            break
        while not known or number % 50 == 0:
            with contextlib.suppress(BlockingIOError):
                said += os.read(0, 1 << 16).decode()
            *lines, said = said.split("\n")
            known += [(line.split()[0], int(line.split()[1])) for line in lines]
            if known:
                break
            select.select([0], [], [], 1.0)
        address, port = known[number % len(known)]
        if number % _CLIENT_EVERY == 0:
            _wrong_key(address, port, context)
            continue
        opened.append(_knock(address, port, WORDS[number % len(WORDS)]))
        if len(opened) > _MOST_OPEN:
            with opened.popleft() as oldest, contextlib.suppress(OSError):
                oldest.getpeername()
                num_taken += 1
                num_answered += bool(oldest.recv(1 << 16))
    context.destroy(0)
    counts = {"connections": number, "taken": num_taken, "answered": num_answered}
    print("done", json.dumps(counts | {"ports": len(known)}), flush=True)


if __name__ == "__main__":
    main()
