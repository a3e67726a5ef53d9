"""A client that asks one thing again and again: the load of ``benchmarks/serve.py``.

    python benchmarks/serve_load.py HOST PORT REQUEST_FILE SECONDS [--concurrency N | --rate R]

A process of its own, with nothing in it that could slow it down or take the cores from the server:
only the standard library, no garbage collection. Prints a JSON list of answers, each
``[status, seconds from the request's first byte to the answer's last, moment of the latter]``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import sys
import time
from pathlib import Path

Answer = tuple[int, float, float]


class Connection:
    """One connection that asks the same thing again and again."""

    def __init__(self, host: str, port: int, message: bytes) -> None:
        self._host, self._port, self._message = host, port, message
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> Answer:
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
        at_s = time.perf_counter()
        if "connection: close" in head:
            await self.close()
        return int(head.split()[1]), at_s - started_s, at_s

    async def close(self) -> None:
        """Ends the connection; the next question opens another."""
        if self._streams is not None:
            writer = self._streams[1]
            self._streams = None
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def closed_loop(
    host: str, port: int, message: bytes, *, concurrency: int, seconds: float
) -> list[Answer]:
    """So many clients, each asking again when it has its answer."""
    end_s = time.perf_counter() + seconds
    answers: list[Answer] = []

    async def client() -> None:
        connection = Connection(host, port, message)
        while time.perf_counter() < end_s:
            answers.append(await connection.ask())
        await connection.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return answers


async def open_loop(
    host: str, port: int, message: bytes, *, rate: float, seconds: float
) -> list[Answer]:
    """Asks at a fixed rate, whatever the answers do."""
    idle: list[Connection] = []
    answers: list[Answer] = []

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


def main() -> None:
    """Loads and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("request_file", type=Path)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rate", type=float)
    options = parser.parse_args()
    message = options.request_file.read_bytes()
    where = (options.host, options.port, message)
    gc.disable()
    if options.rate is None:
        asking = closed_loop(*where, concurrency=options.concurrency, seconds=options.seconds)
    else:
        asking = open_loop(*where, rate=options.rate, seconds=options.seconds)
    json.dump(asyncio.run(asking), sys.stdout)


if __name__ == "__main__":
    main()
