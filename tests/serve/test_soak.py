"""Random clients while workers are killed, eleven times, or for CUTSET_SOAK_S seconds.

What lasts for seconds is no part of the suite: ``CUTSET_SOAK_S=600 pytest tests/serve/test_soak.py
-m soak``.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from distributed.bundles import SmallNet

from .running import INFER, until

LAUNCH = Path(__file__).with_name("launch.py")
NUM_CLIENTS = 6
PATIENCE_S = 240.0
SECONDS = float(os.environ.get("CUTSET_SOAK_S", "0"))
NUM_KILLS = 11


@dataclasses.dataclass
class _Launched:
    process: subprocess.Popen[str]
    address: str
    log: Path

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            return connection.getresponse().read()

    def worker_pids(self) -> list[int]:
        return [stage["pid"] for stage in json.loads(self.get("/status"))["stages"]]


@contextlib.contextmanager
def _launched(bundle: Path, tmp_path: Path, **settings: object) -> Iterator[_Launched]:
    log = tmp_path / "log.jsonl"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(LAUNCH), str(bundle), json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url, log.read_text()
        launched = _Launched(process, url.partition("//")[2], log)
        yield launched
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


class _Client:
    """Asks at random, and checks every answer."""

    def __init__(
        self, launched: _Launched, model: SmallNet, seed: int, stop: threading.Event
    ) -> None:
        self._address = launched.address
        self._model = model
        self._random = random.Random(seed)
        self._torch = torch.Generator().manual_seed(seed)
        self._stop = stop
        self.counts: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []

    def run(self) -> None:
        kinds = (self._infer, self._infer, self._infer, self._broken, self._leave)
        while not self._stop.is_set():
            try:
                self._random.choice(kinds)()
            except Exception as error:  # noqa: BLE001, PERF203  # shown by the test
                self.problems.append(f"{type(error).__name__}: {error}")

    def _request(self, binary: bool) -> tuple[bytes, dict[str, str], torch.Tensor, str]:
        rows = torch.randn(self._random.randint(1, 9), 3, 16, 16, generator=self._torch)
        name = str(self._random.random())
        tensor: dict[str, object] = {"name": "x", "shape": list(rows.shape), "datatype": "FP32"}
        raw = rows.numpy().tobytes() if binary else b""
        if binary:
            tensor["parameters"] = {"binary_data_size": len(raw)}
        else:
            tensor["data"] = rows.flatten().tolist()
        text = json.dumps({"id": name, "inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))} if binary else {}
        return text + raw, headers, rows, name

    def _infer(self) -> None:
        body, headers, rows, name = self._request(binary=self._random.random() < 0.7)
        connection = http.client.HTTPConnection(self._address, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("POST", INFER, body, headers)
            answer = connection.getresponse()
            document = json.loads(answer.read())
        if answer.status == 503 and "queue is full" in document["error"]:
            self.counts["refused"] += 1
            return
        if answer.status != 200:
            self.problems.append(f"{answer.status}: {document}")
            return
        with torch.inference_mode():
            expected = self._model(rows)
        given = torch.tensor(document["outputs"][0]["data"]).reshape(expected.shape)
        if document["id"] != name or not torch.allclose(given, expected, rtol=1e-4, atol=1e-5):
            self.problems.append(f"a wrong answer to {name}")
        self.counts["answered"] += 1

    def _broken(self) -> None:
        body, headers, _, _ = self._request(binary=True)
        damaged = bytearray(body)
        damaged[self._random.randrange(60)] ^= 0xFF  # within the JSON
        connection = http.client.HTTPConnection(self._address, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("POST", INFER, bytes(damaged), headers)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status not in (400, 503):
            self.problems.append(f"a broken request: {answer.status} {text[:200]!r}")
        self.counts["broken"] += 1

    def _leave(self) -> None:
        body, headers, _, _ = self._request(binary=True)
        lines = [f"POST {INFER} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode()
        host, port = self._address.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            message = head + body
            with contextlib.suppress(ConnectionError):
                connection.sendall(message[: self._random.randrange(1, len(message) + 1)])
        self.counts["left"] += 1


def _handles(process: psutil.Process) -> int:
    return process.num_fds()


@pytest.mark.timeout(SECONDS + 600)
def test_nothing_wrong_lost_or_leaked(bundle: Path, model: SmallNet, tmp_path: Path) -> None:
    # The deadline is long: how fast a worker is replaced is for the machine to say.
    settings = {"backend": "onnxruntime", "max_queue": 16, "deadline_s": PATIENCE_S}
    with _launched(bundle, tmp_path, **settings) as launched:
        server = psutil.Process(launched.process.pid)
        stop = threading.Event()
        clients = [_Client(launched, model, seed, stop) for seed in range(NUM_CLIENTS)]
        _kill_one(launched, random.Random(0))  # the first recovery opens what all others reuse
        until(lambda: all(launched.worker_pids()))
        clients[0]._infer()
        num_processes = len(server.children(recursive=True))
        num_handles = _handles(server)
        memory_bytes = server.memory_info().rss
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        chance = random.Random(1)
        num_kills = 0
        end_s = time.monotonic() + SECONDS
        while num_kills < NUM_KILLS or time.monotonic() < end_s:
            if chance.random() < 0.75:  # else while a worker is being replaced
                _wait_for_answers(clients, chance.randint(20, 100))
            num_kills += _kill_one(launched, chance)
        _wait_for_answers(clients, 1)
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        counts = sum((client.counts for client in clients), collections.Counter())
        problems = [problem for client in clients for problem in client.problems]
        grown = server.memory_info().rss / memory_bytes - 1
        print(f"soak: {dict(counts)}, {num_kills} kills, {len(problems)} problems")
        print(f"soak: {num_handles} handles before, resident memory grew by {grown:.1%}")
        assert problems == []
        assert counts["answered"] > 0
        until(lambda: all(launched.worker_pids()))
        status = json.loads(launched.get("/status"))
        assert status["num_accepted_rows"] == 0
        assert status["epoch"] > 1
        until(lambda: len(server.children(recursive=True)) == num_processes)
        # Connections close a moment after their answer.
        until(lambda: _handles(server) <= num_handles)
        children = server.children(recursive=True)
        launched.process.send_signal(signal.SIGTERM)
        assert launched.process.wait(60) == 0
        assert psutil.wait_procs(children, timeout=10)[1] == []
        faults = [line for line in launched.log.read_text().splitlines() if "Traceback" in line]
        assert faults == []


def _wait_for_answers(clients: list[_Client], number: int) -> None:
    """Until so many more requests have been answered."""

    def answered() -> int:
        return sum(client.counts["answered"] for client in clients)

    wanted = answered() + number
    until(lambda: answered() >= wanted, PATIENCE_S)


def _kill_one(launched: _Launched, chance: random.Random) -> bool:
    pid = chance.choice(launched.worker_pids())
    if not pid:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True


if SECONDS:
    test_nothing_wrong_lost_or_leaked = pytest.mark.soak(test_nothing_wrong_lost_or_leaked)


def test_sigterm_answers_what_was_accepted(bundle: Path, tmp_path: Path) -> None:
    """A real signal to a real process: the answers come, the exit code is 0, nothing stays."""
    body = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "shape": [2, 3, 16, 16],
                    "datatype": "FP32",
                    "data": [0.5] * 1536,
                }
            ]
        }
    ).encode()
    # Rows wait ten minutes for company, unless the server is told to leave.
    with _launched(bundle, tmp_path, backend="onnxruntime", max_delay_s=600.0) as launched:
        children = psutil.Process(launched.process.pid).children(recursive=True)
        connection = http.client.HTTPConnection(launched.address, timeout=60)
        connection.request("POST", INFER, body)
        until(lambda: json.loads(launched.get("/status"))["num_accepted_rows"] == 2)
        launched.process.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        assert answer.status == 200
        assert len(json.loads(answer.read())["outputs"][0]["data"]) == 20
        connection.close()
        assert launched.process.wait(30) == 0
        assert psutil.wait_procs(children, timeout=10)[1] == []
        # Libraries below Python write to stderr as well; the server's own lines are JSON.
        lines = launched.log.read_text().splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{")]
    served = [each for each in records if each.get("path") == INFER]
    assert [(each["status"], each["num_rows"], each["logger"]) for each in served] == [
        (200, 2, "cutset.serve.access")
    ]


STORM_BYTES = 24 << 20
NUM_IN_STORM = 12
KEPT_BYTES = STORM_BYTES
"""What the allocator may keep of storms, in pieces: 4 MiB as a rule, now and then 11 or more; no
more after 80 of them. 24 bodies that stay are 70 MiB and more. The size of the process says
nothing: that of one without torch is small."""


def test_a_storm_of_long_bodies_leaves_no_memory_behind(bundle: Path, tmp_path: Path) -> None:
    """Many long bodies at once hold what was said, and afterwards nothing."""
    budget = 4 * STORM_BYTES
    settings = {
        "backend": "onnxruntime",
        "max_pending_bytes": budget,
        "max_json_bytes": budget // 30,
    }
    with _launched(bundle, tmp_path, **settings) as launched:
        server = psutil.Process(launched.process.pid)
        for kind, most in (("binary", budget), ("json", budget), ("json too long", 0)):
            _long_bodies(launched, kind, 1)  # what is made for the first of its kind stays
            before = server.memory_info().rss
            peaks = [before]
            for _ in range(2):
                threads = _long_bodies(launched, kind, NUM_IN_STORM, wait=False)
                while any(thread.is_alive() for thread in threads):
                    peaks.append(server.memory_info().rss)
                    threading.Event().wait(0.005)
            print(f"storm of {kind}: {(max(peaks) - before) / 2**20:.0f} MiB at most")
            # What one storm keeps for the next, as below, comes on top of what that one may hold.
            assert max(peaks) - before <= 1.15 * most + KEPT_BYTES, kind
            until(lambda: server.memory_info().rss <= before + KEPT_BYTES)  # noqa: B023


def _long_bodies(
    launched: _Launched, kind: str, num_clients: int, *, wait: bool = True
) -> list[threading.Thread]:
    """Clients that send a long body each; where they are refused meanwhile, they leave."""
    if kind == "binary":
        num_rows = STORM_BYTES // (3 * 16 * 16 * 4)
        tensor = {
            "name": "x",
            "shape": [num_rows, 3, 16, 16],
            "datatype": "FP32",
            "parameters": {"binary_data_size": num_rows * 3072},
        }
        document = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        headers = {"Inference-Header-Content-Length": str(len(document))}
        body = document.encode() + bytes(num_rows * 3072)
    else:
        num_values = STORM_BYTES // 2 if kind == "json too long" else 4 * STORM_BYTES // 31 // 2
        start = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[{num_values}],"data":['
        headers = {}
        body = start.encode() + b"1," * (num_values - 1) + b"1]}]}"

    def send() -> None:
        connection = http.client.HTTPConnection(launched.address, timeout=120)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("POST", INFER, body, headers)
            connection.getresponse().read()

    threads = [threading.Thread(target=send) for _ in range(num_clients)]
    for thread in threads:
        thread.start()
        if wait:
            thread.join(120)
    return threads
