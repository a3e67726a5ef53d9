"""What serving costs: a server of ResNet18 over two local workers, and a client beside it.

    python benchmarks/serve.py [--bundle DIR] [--seconds 6] [--rounds 3]

In turns, so that a busy machine is unfair to both alike: the session alone, as ``cutset bench``
measures it; the server with 16 clients. Then requests at three times that rate, whoever waits, as
many times. Medians over the rounds, but of refusals and of memory the worst.
The server is ``cutset serve``, the clients are one process more (``serve_load.py``); all share the
machine. Prints the numbers, and whether they meet their targets.

A period is the mean time from one answer to the next under the load in question. One that is let in
should wait no longer than ``--max-queue`` of them; the target allows two more.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import dataclasses
import json
import platform
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

from cutset.backends.selection import random_inputs
from cutset.bundles.open import Bundle, open_bundle
from cutset.capture.torch_arrays import as_tensor
from cutset.measure.bench import measure_throughput
from cutset.runtime.session import open_session
from cutset.workflow import plan_stages, prepare_model, split_model

CONCURRENCY = 16
OVERLOAD = 3.0
MAX_QUEUE = 32
LEAST_SHARE = 0.85
SPARE_PERIODS = 2
REFUSAL_LIMIT_S = 0.05
GROWTH_LIMIT = 0.05
LOAD = Path(__file__).with_name("serve_load.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """One request: its status, and seconds from its first byte to the last of its answer.

    Attributes:
        at_s: when the answer was there.
    """

    status: int
    seconds: float
    at_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a number should be."""

    name: str
    measured: float
    limit: float
    is_met: bool


def request_message(bundle: Bundle) -> bytes:
    """An inference request of one row, in binary."""
    spec = bundle.manifest.graph.inputs[0]
    row = random_inputs(bundle.manifest.stages[0], 1)[0]
    raw = row.tobytes()
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """A server that runs.

    Attributes:
        host: where it listens.
        port: where it listens.
        process: it.
        request_file: what the clients send.
    """

    host: str
    port: str
    process: psutil.Process
    request_file: Path

    def load(self, seconds: float, *options: str) -> list[Answered]:
        """Has a client process ask for a while."""
        command = [sys.executable, LOAD, self.host, self.port, self.request_file, str(seconds)]
        done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
        return [
            Answered(status=status, seconds=taken_s, at_s=at_s)
            for status, taken_s, at_s in json.loads(done.stdout)
        ]


@contextlib.contextmanager
def served(bundle: Bundle, backend: str, folder: Path) -> Iterator[Served]:
    """Runs ``cutset serve``."""
    request_file = folder / "request"
    request_file.write_bytes(request_message(bundle))
    command = [sys.executable, "-m", "cutset.cli", "serve", str(bundle.directory)]
    command += ["--port", "0", "--name", "bench", "--backend", backend]
    command += ["--max-queue", str(MAX_QUEUE)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        if " at http://" not in line:
            raise SystemExit(f"the server did not start: {line}{process.stderr.read()}")
        pass_on = threading.Thread(target=lambda: sys.stderr.writelines(process.stderr or ()))
        pass_on.start()
        host, port = line.rpartition("http://")[2].strip().split(":")
        try:
            yield Served(
                host=host,
                port=port,
                process=psutil.Process(process.pid),
                request_file=request_file,
            )
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            pass_on.join()


class OtherWork:
    """How much of the machine is used by processes that do not belong to the measurement.

    Args:
        server: whose workers belong to it.
    """

    def __init__(self, server: psutil.Process) -> None:
        self._processes = [server, *server.children(recursive=True)]
        self._started_s = time.perf_counter()
        self._before_s = self._seconds()

    def share(self) -> float:
        """Of all cores since it was made, 0 to 1."""
        elapsed_s = time.perf_counter() - self._started_s
        return max(0.0, self._seconds() - self._before_s) / elapsed_s / (psutil.cpu_count() or 1)

    def _seconds(self) -> float:
        total = psutil.cpu_times()
        ours = [each.cpu_times() for each in self._processes]
        clients = resource.getrusage(resource.RUSAGE_CHILDREN)
        return float(
            total.user
            + total.nice
            + total.system
            - sum(each.user + each.system for each in ours)
            - clients.ru_utime
            - clients.ru_stime
        )


def pace(answers: Sequence[Answered]) -> float:
    """Seconds from one answer with status 200 to the next, on average."""
    moments = [each.at_s for each in answers if each.status == 200]
    return (max(moments) - min(moments)) / (len(moments) - 1)


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def measure(
    bundle: Path, folder: Path, *, backend: str, seconds: float, rounds: int
) -> tuple[dict[str, Any], list[Target]]:
    """All numbers, and which of them have a target."""
    opened = open_bundle(bundle)
    micro_batch = opened.manifest.plan.micro_batch
    inputs = tuple(map(as_tensor, random_inputs(opened.manifest.stages[0], micro_batch)))
    alone, over_http = [], []
    with served(opened, backend, folder) as server:
        clients = ("--concurrency", str(CONCURRENCY))
        server.load(1.0, *clients)
        with open_session(opened, backend=backend) as session:
            measure_throughput(session, inputs, 0.5)
            for _ in range(rounds):
                num_batches, elapsed_s = measure_throughput(session, inputs, seconds)
                alone.append(num_batches * micro_batch / elapsed_s)
                over_http.append(1 / pace(server.load(seconds, *clients)))
        capacity = statistics.median(over_http)
        rate = ("--rate", str(OVERLOAD * capacity))
        server.load(2.0, *rate)
        before_bytes = server.process.memory_info().rss
        others = OtherWork(server.process)
        overloads = [server.load(2 * seconds, *rate) for _ in range(rounds)]
        others_share = others.share()
        after_bytes = server.process.memory_info().rss
    share = statistics.median(
        served / direct for served, direct in zip(over_http, alone, strict=True)
    )
    found = {
        "cpu": platform.processor() or platform.machine(),
        "cores": psutil.cpu_count(),
        "load_average": psutil.getloadavg()[0],
        "torch": torch.__version__,
        "backend": backend,
        "session_rows_per_s": statistics.median(alone),
        "served_rows_per_s": capacity,
        "overload_offered_per_s": OVERLOAD * capacity,
        "overload_answered_per_s": statistics.median(1 / pace(each) for each in overloads),
        "overload_share_of_other_work": others_share,
        "rss_before_bytes": before_bytes,
        "rss_after_bytes": after_bytes,
    }
    throughput = Target(
        name="rows per second, served over session alone",
        measured=share,
        limit=LEAST_SHARE,
        is_met=share >= LEAST_SHARE,
    )
    growth = after_bytes / before_bytes - 1
    memory = Target(
        name="growth of the server's resident memory under overload",
        measured=growth,
        limit=GROWTH_LIMIT,
        is_met=growth <= GROWTH_LIMIT,
    )
    waits, more = overload_targets(overloads)
    return {**found, **more}, [throughput, *waits, memory]


def waits_of(answers: Sequence[Answered]) -> tuple[float, float]:
    """What 99% of the accepted waited at most, in mean periods, and in answers of all.

    Counted in answers that others had meanwhile, a pace that changes cannot blur it.
    """
    accepted = [each for each in answers if each.status == 200]
    moments = sorted(each.at_s for each in accepted)
    waits = [
        bisect.bisect_right(moments, each.at_s)
        - bisect.bisect_right(moments, each.at_s - each.seconds)
        for each in accepted
    ]
    in_periods = quantile([each.seconds for each in accepted], 0.99) / pace(answers)
    return in_periods, quantile(waits, 0.99)


def overload_targets(
    overloads: Sequence[Sequence[Answered]],
) -> tuple[list[Target], dict[str, Any]]:
    """How long those waited that were let in, and those that were not, round by round."""
    answers = [each for overload in overloads for each in overload]
    accepted = [each for each in answers if each.status == 200]
    refused = [each.seconds for each in answers if each.status == 503]
    limit = MAX_QUEUE + SPARE_PERIODS
    all_periods, all_answers = zip(*map(waits_of, overloads), strict=True)
    in_periods, in_answers = statistics.median(all_periods), statistics.median(all_answers)
    worst_s = max(refused, default=float("nan"))
    others = len(answers) - len(accepted) - len(refused)
    targets = [
        Target(
            name="accepted, 99% answered within so many mean periods",
            measured=in_periods,
            limit=limit,
            is_met=in_periods < limit,
        ),
        Target(
            name="accepted, 99% answered within so many answers of all",
            measured=in_answers,
            limit=limit,
            is_met=in_answers < limit,
        ),
        Target(
            name="refused, seconds until the worst is answered",
            measured=worst_s,
            limit=REFUSAL_LIMIT_S,
            is_met=worst_s < REFUSAL_LIMIT_S,
        ),
        Target(name="neither answered nor refused", measured=others, limit=0, is_met=not others),
    ]
    numbers = {
        "accepted_p99_in_periods": all_periods,
        "num_accepted": len(accepted),
        "num_refused": len(refused),
        "accepted_p50_s": quantile([each.seconds for each in accepted], 0.5),
        "accepted_p99_s": quantile([each.seconds for each in accepted], 0.99),
        "refused_p50_s": quantile(refused, 0.5),
        "refused_p99_s": quantile(refused, 0.99),
    }
    return targets, numbers


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
            bundle = split_model(prepared, plan, Path(folder) / "resnet18.cutset").directory
        found, targets = measure(
            bundle,
            Path(folder),
            backend=options.backend,
            seconds=options.seconds,
            rounds=options.rounds,
        )
    print(
        json.dumps({**found, "targets": [dataclasses.asdict(each) for each in targets]}, indent=2)
    )
    for each in targets:
        verdict = "pass" if each.is_met else "FAIL"
        print(f"{verdict}  {each.name}: {each.measured:.3g}, limit {each.limit:g}", file=sys.stderr)
    raise SystemExit(not all(each.is_met for each in targets))


if __name__ == "__main__":
    main()
