"""Programs that the tests run on nodes, and how they run them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from testbed.cgroups import find_cgroups
from testbed.nodes import command_on, environment_on
from testbed.state import State

RECEIVER = """
import socket, sys, threading
def serve(connection):
    with connection:
        while data := connection.recv(1 << 20):
            if data.endswith(b"."):
                connection.sendall(b".")
server = socket.create_server((sys.argv[1], 7000))
print("up", flush=True)
while True:
    threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
"""
"""Answers ``.`` to every message that ends so."""

SENDER = """
import socket, sys, time
address, size, limit_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with socket.create_connection((address, 7000), timeout=limit_s) as connection:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.settimeout(limit_s)
    connection.sendall(b".")
    connection.recv(1)
    started = time.perf_counter()
    connection.sendall(bytes(size - 1) + b".")
    connection.recv(1)
    print(time.perf_counter() - started)
"""
"""Prints the seconds until a message of so many bytes was answered."""


def start_on(
    state: State, node: str, program: str, *arguments: str, stdin: bool = False
) -> subprocess.Popen[str]:
    """Starts a Python program on a node; the caller reads its output, and may write its input."""
    where = state.layout.node(node)
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(
        command_on(state, find_cgroups(), where, command),
        env=environment_on(state, where),
        stdin=subprocess.PIPE if stdin else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_on(
    state: State, node: str, program: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs a Python program on a node to its end."""
    process = start_on(state, node, program, *arguments)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_receiver(state: State, node: str) -> subprocess.Popen[str]:
    """Starts a receiver; it ends with the testbed."""
    receiver = start_on(state, node, RECEIVER, state.layout.node(node).address)
    assert receiver.stdout is not None
    assert receiver.stdout.readline() == "up\n"
    return receiver


def send(state: State, source: str, target: str, size: int, limit_s: float = 30.0) -> float | None:
    """Seconds to send `size` bytes to a receiver; None where it took longer than `limit_s`."""
    address = state.layout.node(target).address
    done = run_on(state, source, SENDER, address, str(size), str(limit_s))
    if done.returncode and "TimeoutError" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Collects processes that the testbed has killed."""
    for process in processes:
        process.communicate(timeout=10)
