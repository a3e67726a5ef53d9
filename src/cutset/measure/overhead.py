"""Measures what receiving, sending and the caller take from a stage's computing on this machine.

A pipeline of one stage that computes next to nothing answers one message after the other, over the
channel that the runtime uses between hosts. Bystanders compute meanwhile, as a stage would. What
they get done less, for each micro-batch, a stage would lose: nothing where other cores have the
time, all of it where there is one core or a fraction of one, and whatever lies between. It is
divided between worker and caller by their processor time.

Started as ``python -m cutset.measure.overhead --bytes N --threads T``, it prints one JSON
document, an `Overhead`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import msgspec
import numpy as np
import onnx
import psutil

from cutset.backends.onnxruntime import OnnxruntimeBackend
from cutset.bundles.write.export import export_bundle
from cutset.capture.onnx.onnx_file import OnnxModule
from cutset.capture.onnx.onnx_graph import capture_onnx
from cutset.costs.cost_model import costs_from_flops
from cutset.engines.local import LocalEngine
from cutset.graph.cuts import find_cut_points
from cutset.measure.bystander import Bystanders
from cutset.planning import PlanRequest, make_plan
from cutset.runtime.session import Session, open_session

TYPICAL_ROW_BYTES = 3 * 224 * 224 * 4
"""Bytes of the message to the stage, for each row: a picture as most image models take it."""

_NUM_ROUNDS = 3
ROUND_S = 1.0
_NUM_WARM_UP = 20
_ANSWER_VALUES = 1000


class Overhead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is lost for each micro-batch.

    Attributes:
        stage_s: seconds that a stage cannot compute because of its own two messages.
        caller_s: seconds that it cannot compute because the caller works on the same device.
        num_bytes: of the message to the stage; the answer is small.
    """

    stage_s: float
    caller_s: float
    num_bytes: int


def _touch(num_values: int) -> OnnxModule:
    """Answers with a few of its rows' values, and computes next to nothing."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    numbers = {"start": [0], "end": [_ANSWER_VALUES], "axis": [1]}
    stored = [onnx.numpy_helper.from_array(np.array(v), name) for name, v in numbers.items()]
    stored.append(onnx.numpy_helper.from_array(np.float32(1), "one"))
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["x", *numbers], ["few"]),
            helper.make_node("Add", ["few", "one"], ["y"]),
        ],
        "touch",
        [helper.make_tensor_value_info("x", kind, ["rows", num_values])],
        [helper.make_tensor_value_info("y", kind, ["rows", _ANSWER_VALUES])],
        stored,
    )
    opsets = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return OnnxModule(model, Path(), "touch")


def measure_overhead(num_bytes: int, *, num_threads: int = 1, round_s: float = ROUND_S) -> Overhead:
    """Measures what messages cost here; takes six times `round_s` and some seconds more.

    Args:
        num_bytes: of the message to the stage.
        num_threads: threads of the stages that lose something.
        round_s: seconds for each of three rounds, without messages and with them.

    Raises:
        EngineError: the pipeline does not come up.
    """
    values = max(_ANSWER_VALUES, num_bytes // 4)
    rows = np.zeros((1, values), np.float32)
    captured = capture_onnx(_touch(values))
    graph, cuts = captured.graph, find_cut_points(captured.graph)
    plan = make_plan(graph, cuts, costs_from_flops(graph, cuts), PlanRequest(num_stages=1))
    with tempfile.TemporaryDirectory(prefix="cutset-overhead-") as folder:
        bundle = export_bundle(
            captured.module, plan, Path(folder) / "touch.cutset", captured=captured
        )
        engine = LocalEngine(("here",), num_threads=1, shares_memory=False)
        with (
            open_session(
                bundle, engine=engine, backend=OnnxruntimeBackend.name, micro_batch=1
            ) as session,
            Bystanders(num_threads) as bystanders,
        ):
            return _measure(session, rows, bystanders, round_s)


def _measure(
    session: Session, rows: np.ndarray, bystanders: Bystanders, round_s: float
) -> Overhead:
    (worker_pid,) = session.worker_pids
    worker, caller = psutil.Process(worker_pid), psutil.Process(os.getpid())
    for _ in range(_NUM_WARM_UP):
        session.run(rows)
    lost_s, all_worked_s, all_called_s = [], 0.0, 0.0
    for _ in range(_NUM_ROUNDS):
        started_s, done = time.monotonic(), bystanders.work
        time.sleep(round_s)
        elapsed_s = time.monotonic() - started_s
        alone = (bystanders.work - done) / elapsed_s
        started_s, done = time.monotonic(), bystanders.work
        worked_s, called_s = _spent_s(worker), _spent_s(caller)
        count = 0
        while (elapsed_s := time.monotonic() - started_s) < round_s:
            session.run(rows)
            count += 1
        beside = (bystanders.work - done) / elapsed_s
        all_worked_s += _spent_s(worker) - worked_s
        all_called_s += _spent_s(caller) - called_s
        lost_s.append(max(0.0, 1 - beside / alone) * elapsed_s / count)
    # Of all rounds together, since processor time is counted in hundredths of a second.
    spent_s = all_called_s + all_worked_s
    share = all_called_s / spent_s if spent_s else 0.5
    return Overhead(
        stage_s=median(lost_s) * (1 - share),
        caller_s=median(lost_s) * share,
        num_bytes=rows.nbytes,
    )


def _spent_s(process: psutil.Process) -> float:
    """Processor seconds that it had so far."""
    times = process.cpu_times()
    return times.user + times.system


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Measures what messages take from computing.")
    parser.add_argument("--bytes", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--round-seconds", type=float, default=ROUND_S)
    arguments = parser.parse_args()
    found = measure_overhead(
        arguments.bytes, num_threads=arguments.threads, round_s=arguments.round_seconds
    )
    print(msgspec.json.encode(found).decode(), flush=True)  # noqa: T201  # read by the probe


if __name__ == "__main__":
    main()
