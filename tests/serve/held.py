"""A session that answers when the test says so: for tests of queues and deadlines."""

from __future__ import annotations

import types
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from cutset.data.images import Preprocessing
from cutset.errors import CutsetError
from cutset.graph.ir import Graph
from cutset.runtime.status import SessionStatus, StageStats, StageStatus
from cutset.tensors import TensorSpec
from distributed.bundles import hand_plan

WIDTH = 3
INPUT = TensorSpec(name="x", shape=("batch", WIDTH), dtype="float32")
OUTPUT = TensorSpec(name="y", shape=("batch", WIDTH), dtype="float32")


class HeldSession:
    """Doubles what it is given, once `answer` is called; all its answers wait until then.

    Args:
        micro_batch: rows of a micro-batch.
        window: most micro-batches in flight.
        at_once: answer without being told.
        micro_batch_only: as in the manifest.
        takes_pixels: as in the manifest; images are of 2 x 2 pixels.
    """

    def __init__(
        self,
        *,
        micro_batch: int = 4,
        window: int = 2,
        at_once: bool = False,
        micro_batch_only: int | None = None,
        input_spec: TensorSpec = INPUT,
        output_spec: TensorSpec = OUTPUT,
        takes_pixels: bool = False,
    ) -> None:
        self.micro_batch = micro_batch
        self.window = window
        self.at_once = at_once
        self.over: CutsetError | None = None
        self.sent: list[np.ndarray] = []
        self.held: list[tuple[np.ndarray, Future[object]]] = []
        self.worker_pids = (1,)
        self.epoch = 1
        graph = Graph(
            model_class="Held", inputs=(input_spec,), operations=(), outputs=("y",), parameters=()
        )
        plan = hand_plan(types.SimpleNamespace(graph=_OneOperation()), (), micro_batch)  # type: ignore[arg-type]
        stage = types.SimpleNamespace(
            inputs=(input_spec,), outputs=(output_spec,), units=(), weight_bytes=0
        )
        self.bundle = types.SimpleNamespace(
            directory=Path("held.cutset"),
            manifest=types.SimpleNamespace(
                micro_batch_only=micro_batch_only,
                takes_pixels=takes_pixels,
                part=None,
                model="held",
                graph=graph,
                outputs=(output_spec,),
                output_names=("0",),
                plan=plan,
                stages=(stage,),
                preprocessing=Preprocessing(
                    resize=2, crop=(2, 2), interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1)
                ),
                labels=None,
            ),
        )

    def submit(self, rows: np.ndarray) -> Future[object]:
        if self.over is not None:
            raise self.over
        future: Future[object] = Future()
        future.set_running_or_notify_cancel()
        self.sent.append(rows)
        if self.at_once:
            future.set_result(rows * 2)
        else:
            self.held.append((rows, future))
        return future

    def answer(self, error: CutsetError | None = None) -> None:
        """Answers the oldest micro-batch."""
        rows, future = self.held.pop(0)
        if error is None:
            future.set_result(rows * 2)
        else:
            future.set_exception(error)

    def stats(self) -> SessionStatus:
        stage = StageStatus(
            index=0,
            device="cpu",
            backend="held",
            pid=1,
            num_restarts=0,
            load_s=0,
            stats=StageStats(),
        )
        return SessionStatus(
            epoch=1, num_settled=0, num_in_flight=0, num_waiting=0, stages=(stage,)
        )

    def timeline(self) -> tuple[()]:
        return ()


class _OneOperation:
    operations = (types.SimpleNamespace(name="y", bytes_per_sample=4 * WIDTH),)
