"""Links over wires that can be listened to and slowed down: network namespaces of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "tc"))),
    reason="wires are made of network namespaces, which needs root, iproute2 and unshare",
)

_END = """
import json, sys, threading
import msgspec, numpy as np, zmq
made = []
fresh = zmq.curve_keypair
def curve_keypair():
    made.extend(fresh())
    return tuple(made[-2:])
zmq.curve_keypair = curve_keypair
from cutset.engines.protocol import Address
from cutset.links.joining import join
from cutset.links.meeting import Meeting
from cutset.links.network import Receiver, Sender
from cutset.links.parcels import LinkContract, Parcel
from cutset.tensors import TensorSpec

place, sends, secured = sys.argv[1], sys.argv[2] == "sends", sys.argv[3] == "secured"
spec = TensorSpec(name="a", shape=("batch", 300_000), dtype="uint8")
link = LinkContract(index=0, name="a link", specs=(spec,), max_rows=1)
def say(line):
    sys.stdout.write(line + "\\n")
    sys.stdout.flush()
meeting = Meeting(1, 0, lambda address: say(msgspec.json.encode(address).decode()))
def listen():
    meeting.tell(msgspec.json.decode(sys.stdin.readline(), type=Address))
threading.Thread(target=listen, daemon=True).start()
end = join(meeting, place, link, sends=sends, secured=secured, timeout_s=20)
tensor = np.random.default_rng(7).integers(0, 256, (1, 300_000), np.uint8)
if sends:
    sender = Sender(end, link, 1, 20)
    for _ in range(2):
        sender.send(Parcel(sequence=0, num_rows=1, tensors=(tensor,)))
    sender.send(Parcel(sequence=0, num_rows=1, tensors=(tensor[:, :1000],)))
else:
    receiver = Receiver(end, link, 1, 20, reuse=False)
    for _ in range(2):
        assert np.array_equal(receiver.receive()[1].tensors[0], tensor)
    receiver.receive()
say("passed " + " ".join(key.hex() for key in made))
sys.stdin.readline()
"""

_LISTEN = """
import socket, sys
heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
heard.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
print("up", flush=True)
with open(sys.argv[1], "wb") as kept:
    while True:
        kept.write(heard.recv(1 << 17))
        kept.flush()
"""


@contextlib.contextmanager
def _two_places() -> Iterator[tuple[str, str]]:
    names = (f"cutset-w{os.getpid()}a", f"cutset-w{os.getpid()}b")
    wires = (f"w{os.getpid() % 10**7}a", f"w{os.getpid() % 10**7}b")
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        command = ["ip", "link", "add", wires[0], "type", "veth", "peer", "name", wires[1]]
        subprocess.run(command, check=True)
        for number, (name, wire) in enumerate(zip(names, wires, strict=True), 1):
            for words in (
                f"link set {wire} netns {name}",
                f"-n {name} addr add 10.78.0.{number}/24 dev {wire}",
                f"-n {name} link set {wire} up",
            ):
                subprocess.run(["ip", *words.split()], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)


def _start(name: str, program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["ip", "netns", "exec", name, sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _windows(data: bytes) -> set[bytes]:
    return {data[start : start + 16] for start in range(len(data) - 15)}


@pytest.mark.parametrize("secured", [True, False])
def test_a_wire_tells_nothing_of_what_crosses_it(
    tmp_path_factory: pytest.TempPathFactory, secured: bool
) -> None:
    kept = tmp_path_factory.mktemp("wire") / "packets"
    with _two_places() as names, contextlib.ExitStack() as started:

        def start(place: int, program: str, *arguments: str) -> subprocess.Popen[str]:
            process = started.enter_context(_start(names[place], program, *arguments))
            started.callback(process.kill)
            return process

        listener = start(0, _LISTEN, str(kept))
        assert listener.stdout is not None
        assert listener.stdout.readline() == "up\n"
        security = "secured" if secured else "open"
        ends = [
            start(0, _END, "10.78.0.1", "sends", security),
            start(1, _END, "10.78.0.2", "receives", security),
        ]
        keys: list[bytes] = []

        def carry(index: int) -> None:
            ours, theirs = ends[index].stdout, ends[1 - index].stdin
            assert ours is not None
            assert theirs is not None
            for line in ours:
                if line.startswith("passed"):
                    keys.extend(map(bytes.fromhex, line.split()[1:]))
                    return
                theirs.write(line)
                theirs.flush()

        carriers = [threading.Thread(target=carry, args=(index,)) for index in range(2)]
        for carrier in carriers:
            carrier.start()
        for carrier in carriers:
            carrier.join(60)
        assert len(keys) == 4
    heard = kept.read_bytes()
    assert len(heard) > 600_000
    tensor = np.random.default_rng(7).integers(0, 256, (1, 300_000), np.uint8).tobytes()
    secret = [tensor, *keys, *(_raw(key) for key in keys)]
    seen = _windows(heard)
    found = [bool(_windows(each) & seen) for each in secret]
    assert found[0] is not secured  # where it crosses as it is, this test sees it
    if secured:
        assert not any(found)


def _raw(key: bytes) -> bytes:
    import zmq.utils.z85

    return zmq.utils.z85.decode(key)


_SLOW = """
import threading, time
import numpy as np
from cutset.links.joining import join
from cutset.links.meeting import Meeting
from cutset.links.network import Receiver, Sender
from cutset.links.parcels import LinkContract, Parcel
from cutset.tensors import TensorSpec
spec = TensorSpec(name="a", shape=("batch", 800_000), dtype="uint8")
link = LinkContract(index=0, name="a link", specs=(spec,), max_rows=1)
meetings = {}
meetings[True] = Meeting(1, 0, lambda address: meetings[False].tell(address))
meetings[False] = Meeting(1, 0, lambda address: meetings[True].tell(address))
def make(sends):
    return join(meetings[sends], "127.0.0.1", link, sends=sends, secured=True, timeout_s=20)
def send():
    sender = Sender(make(True), link, 1, 0.5)
    sender.send(Parcel(sequence=0, num_rows=1, tensors=(np.ones((1, 800_000), np.uint8),)))
    done.wait(20)
done = threading.Event()
thread = threading.Thread(target=send, daemon=True)
thread.start()
receiver = Receiver(make(False), link, 1, 0.5, reuse=False)
before = time.monotonic()
assert receiver.receive()[1].tensors[0].all()
done.set()
print("took more than a part's time-out:", time.monotonic() - before > 1.5)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts the bytes of a connection")
def test_a_part_that_takes_longer_than_the_time_out_is_no_silence() -> None:
    network = (
        "ip link set lo mtu 1500 up && tc qdisc add dev lo root tbf rate 2mbit burst 16kb limit 4mb"
        ' && exec "$0" "$@"'
    )
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", network, sys.executable, "-c", _SLOW],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "took more than a part's time-out: True\n", done.stderr
