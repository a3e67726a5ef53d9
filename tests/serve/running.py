"""A server in a thread of the test's process, on a port that the system chose."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from cutset.bundles.write.export import export_bundle
from cutset.capture.torch_export import capture_model
from cutset.data.images import Preprocessing
from cutset.runtime.session import Session, open_session
from cutset.serve.server import Server, address_of, bind, serve
from cutset.serve.settings import ServeSettings
from distributed.bundles import SmallNet, hand_plan

INFER = "/v2/models/small/infer"
LABELS = tuple(f"class {index}" for index in range(10))
PREPROCESSING = Preprocessing(
    resize=16, crop=(16, 16), interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)


def write_image_bundle(
    model: SmallNet, folder: Path, micro_batch: int = 4, input_codec: str = "none"
) -> Path:
    """`SmallNet` in two stages, with preprocessing and labels."""
    captured = capture_model(model, (torch.randn(2, 3, 16, 16),))
    plan = hand_plan(captured, (3,), micro_batch)
    return export_bundle(
        model,
        msgspec.structs.replace(plan, input_codec=input_codec),
        folder,
        captured=captured,
        preprocessing=PREPROCESSING,
        labels=LABELS,
    )


class TwoInTwoOut(nn.Module):
    """Two inputs of several dtypes, outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        mixed = self.first(x) + ids.to(torch.float32)
        scores = self.second(torch.relu(mixed))
        return {"scores": scores, "best": scores.argmax(dim=1)}


@dataclasses.dataclass
class Running:
    """A server that runs.

    Attributes:
        url: its root.
        address: host and port.
        server: to look inside.
        session: the pipeline behind it.
    """

    url: str
    address: str
    server: Server
    session: Session

    def leave(self) -> None:
        """What SIGTERM does."""
        loop = self.server._loop
        assert loop is not None
        loop.call_soon_threadsafe(self.server.leave)


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Waits for something that other threads or processes do."""
    pause, end_s = threading.Event(), time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        pause.wait(0.01)


def ask(
    running: Running,
    method: str = "POST",
    path: str = INFER,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case, and body of an answer."""
    connection = http.client.HTTPConnection(running.address, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {key.lower(): v for key, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@contextlib.contextmanager
def running_server(
    session: Session, *, make_tracing: Any = None, **changes: Any
) -> Iterator[Running]:
    """Serves a session; at the end the server must have left by itself within 30 s."""
    settings = ServeSettings(**{"port": 0, "model_name": "small", **changes})
    listener = bind(settings)
    url = address_of(settings, listener)
    found: list[Server] = []
    listening = threading.Event()
    failed: list[BaseException] = []

    def target() -> None:
        try:
            serve(
                session,
                settings,
                listener,
                make_tracing=make_tracing,
                on_listening=listening.set,
                on_server=found.append,
            )
        except BaseException as error:  # noqa: BLE001  # shown to the test below
            failed.append(error)
        finally:
            listening.set()

    thread = threading.Thread(target=target, name="server")
    thread.start()
    assert listening.wait(30)
    assert not failed, failed
    running = Running(url=url, address=url.partition("//")[2], server=found[0], session=session)
    try:
        yield running
    finally:
        if thread.is_alive():
            running.leave()
        thread.join(30)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving(bundle: Path, *, backend: str = "torch", **changes: Any) -> Iterator[Running]:
    """Opens a bundle and serves it; `changes` as for `running_server`."""
    with (
        open_session(bundle, backend=backend, num_spans=64) as session,
        running_server(session, **changes) as running,
    ):
        yield running
