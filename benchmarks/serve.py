"""What serving costs: a server of ResNet18 over two local workers, and a client beside it.

    python benchmarks/serve.py [--bundle DIR] [--seconds 6] [--rounds 3]

In turns, so that a busy machine is unfair to both alike: the session alone, as ``cutset bench``
measures it; the server with 16 clients. Then requests at three times that rate, whoever waits.
Prints the numbers beside their targets.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import contextlib
import dataclasses
import json
import multiprocessing
import platform
import queue
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from cutset.backends.base import random_inputs
from cutset.runtime.bench import measure_throughput
from cutset.runtime.session import open_session
from cutset.serve.command import serve_bundle
from cutset.serve.settings import ServeSettings
from cutset.shards.load import Bundle, open_bundle
from cutset.workflow import plan_stages, prepare_model, split_model

CONCURRENCY = 16
OVERLOAD = 3.0
MAX_QUEUE = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """One request: its status, and seconds from its first byte to the last of its answer.

    Attributes:
        at_s: when the answer was there, on the clock of `time.perf_counter`.
    """

    status: int
    seconds: float
    at_s: float


class Connection:
    """One connection that asks the same thing again and again."""

    def __init__(self, host: str, port: int, message: bytes) -> None:
        self._host, self._port, self._message = host, port, message
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> Answered:
        """Sends the request and reads the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        started_s = time.perf_counter()
        writer.write(self._message)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("\r\ncontent-length: ")[2].partition("\r\n")[0])
        await reader.readexactly(length)
        if "connection: close" in head:
            await self.close()
        at_s = time.perf_counter()
        return Answered(status=int(head.split()[1]), seconds=at_s - started_s, at_s=at_s)

    async def close(self) -> None:
        """Ends the connection; the next question opens another."""
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def request_message(bundle: Bundle) -> bytes:
    """An inference request of one row, in binary."""
    spec = bundle.manifest.graph.inputs[0]
    row = random_inputs(bundle.manifest.stages[0], 1)[0]
    raw = row.numpy().tobytes()
    tensor = {
        "name": spec.name,
        "shape": list(row.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    parameters = {"binary_data_output": True}
    text = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    head = (
        f"POST /v2/models/bench/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\n"
        f"Content-Length: {len(text) + len(raw)}\r\n\r\n"
    )
    return head.encode() + text + raw


async def closed_loop(
    host: str, port: int, message: bytes, *, concurrency: int, seconds: float
) -> float:
    """Answers per second of so many clients, each asking when it has its answer."""
    end_s = time.perf_counter() + seconds
    num_answered = 0

    async def client() -> None:
        nonlocal num_answered
        connection = Connection(host, port, message)
        while time.perf_counter() < end_s:
            answered = await connection.ask()
            assert answered.status == 200, answered
            num_answered += 1
        await connection.close()

    started_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    return num_answered / (time.perf_counter() - started_s)


async def open_loop(
    host: str, port: int, message: bytes, *, rate: float, seconds: float
) -> list[Answered]:
    """Asks at a fixed rate, whatever the answers do."""
    idle: list[Connection] = []
    answers: list[Answered] = []

    async def ask() -> None:
        connection = idle.pop() if idle else Connection(host, port, message)
        answers.append(await connection.ask())
        idle.append(connection)

    started_s = time.perf_counter()
    asking = set()
    for index in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started_s + index / rate - time.perf_counter()))
        task = asyncio.create_task(ask())
        asking.add(task)
        task.add_done_callback(asking.discard)
    await asyncio.gather(*asking)
    for connection in idle:
        await connection.close()
    return answers


def serve(bundle: str, backend: str, said: multiprocessing.Queue[str]) -> None:
    """The server's process."""
    settings = ServeSettings(port=0, model_name="bench", max_queue=MAX_QUEUE)
    serve_bundle(Path(bundle), settings, backend=backend, on_listening=said.put)


@contextlib.contextmanager
def served(bundle: Path, backend: str) -> Iterator[tuple[str, int, psutil.Process]]:
    """Host, port and process of a server."""
    context = multiprocessing.get_context("spawn")
    said: multiprocessing.Queue[str] = context.Queue()
    process = context.Process(target=serve, args=(str(bundle), backend, said))
    process.start()
    try:
        while True:
            try:
                host, port = said.get(timeout=1).removeprefix("http://").split(":")
                break
            except queue.Empty:
                if not process.is_alive():
                    raise SystemExit("the server did not start") from None
        asyncio.run(wait_for_port(host, int(port)))
        yield host, int(port), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join(30)


async def wait_for_port(host: str, port: int) -> None:
    """Waits until the server listens."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return
        await asyncio.sleep(0.05)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def measure(bundle: Path, *, backend: str, seconds: float, rounds: int) -> dict[str, Any]:
    """All numbers."""
    opened = open_bundle(bundle)
    message = request_message(opened)
    inputs = random_inputs(opened.manifest.stages[0], opened.manifest.plan.micro_batch)
    alone, over_http = [], []
    with served(bundle, backend) as (host, port, process):
        asyncio.run(closed_loop(host, port, message, concurrency=CONCURRENCY, seconds=1.0))
        with open_session(opened, backend=backend) as session:
            measure_throughput(session, inputs, 0.5)
            for _ in range(rounds):
                num_rows, elapsed_s = measure_throughput(session, inputs, seconds)
                alone.append(num_rows * opened.manifest.plan.micro_batch / elapsed_s)
                over_http.append(
                    asyncio.run(
                        closed_loop(host, port, message, concurrency=CONCURRENCY, seconds=seconds)
                    )
                )
        capacity = statistics.median(over_http)
        warm = open_loop(host, port, message, rate=OVERLOAD * capacity, seconds=2.0)
        asyncio.run(warm)
        before_bytes = process.memory_info().rss
        answers = asyncio.run(
            open_loop(host, port, message, rate=OVERLOAD * capacity, seconds=2 * seconds)
        )
        after_bytes = process.memory_info().rss
    accepted = [each.seconds for each in answers if each.status == 200]
    refused = [each.seconds for each in answers if each.status == 503]
    moments = sorted(each.at_s for each in answers if each.status == 200)
    period_s = (moments[-1] - moments[0]) / (len(moments) - 1)
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "load_average": psutil.getloadavg()[0],
        "torch": torch.__version__,
        "backend": backend,
        "session_rows_per_s": statistics.median(alone),
        "served_rows_per_s": capacity,
        "served_over_session": statistics.median(
            served / direct for served, direct in zip(over_http, alone, strict=True)
        ),
        "overload_offered_per_s": OVERLOAD * capacity,
        "overload_answered_per_s": 1 / period_s,
        "accepted_p50_s": quantile(accepted, 0.5),
        "accepted_p99_s": quantile(accepted, 0.99),
        "accepted_p99_limit_s": (MAX_QUEUE + 2) * period_s,
        # The same in answers of others that came meanwhile: what a machine that is shared with
        # other work, and so changes its pace, cannot blur.
        "accepted_p99_answers": quantile(
            [
                bisect.bisect_right(moments, each.at_s)
                - bisect.bisect_right(moments, each.at_s - each.seconds)
                for each in answers
                if each.status == 200
            ],
            0.99,
        ),
        "accepted_p99_limit_answers": MAX_QUEUE + 2,
        "num_refused": len(refused),
        "refused_p50_s": quantile(refused, 0.5),
        "refused_p99_s": quantile(refused, 0.99),
        "refused_max_s": max(refused, default=float("nan")),
        "num_other": len(answers) - len(accepted) - len(refused),
        "rss_before_bytes": before_bytes,
        "rss_after_bytes": after_bytes,
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = options.bundle
        if bundle is None:
            prepared = prepare_model("resnet18", weights="random:0")
            plan = plan_stages(prepared, num_stages=2)
            bundle, _ = split_model(prepared, plan, Path(folder) / "resnet18.cutset")
        found = measure(
            bundle, backend=options.backend, seconds=options.seconds, rounds=options.rounds
        )
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
