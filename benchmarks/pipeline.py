"""Cutset's pipeline against its peers, interleaved, on this machine: ``make bench``.

For each model and micro-batch size, cut in two where the measured times balance (those of torch for
what runs in torch, those of the fastest backends for the rest), all contestants are started once,
and then measured in turn, round after round, while the others rest:

* ours, backend ``torch`` and backend ``auto``, two workers with one thread each;
* both stages without transfers, each in a process of its own, both busy (both backends);
* torch.distributed.pipelining's ScheduleGPipe over gloo on the same two stages as ours in torch;
* each stage in turn, resting between micro-batches for as long as the other one computes, as the
  stages of a pipeline with one micro-batch do (both backends);
* the whole model in one process: one thread and two in torch, one with the planned backends.

Each case is kept in a file of its own as soon as it is measured, so the run can be stopped and gone
on with: ``--budget SECONDS`` begins no further case after that time. When all cases are there, it
prints them against the targets and writes docs/benchmarks.md; ``--page`` does so with the cases
that are there, and names the others. Ratios are of one round, medians are over the rounds; nothing
is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

import pipeline_hop
import pipeline_page
from cutset.backends.selection import random_inputs
from cutset.bundles.open import Bundle, open_bundle
from cutset.bundles.reading.torch.loading import load_program
from cutset.capture.torch_arrays import as_tensor
from cutset.measure.bench import measure_latency, measure_throughput
from cutset.measure.idle_memory import measure_worker_base
from cutset.measure.stages import AloneProcesses
from cutset.runtime.session import Session, open_session
from cutset.workflow import (
    PlanRequest,
    ProvenBundle,
    measure_costs,
    plan_model,
    prepare_model,
    split_model,
)

MODELS = ("alexnet", "vgg16", "resnet18", "resnet50", "mobilenet_v2", "inception_v3")
GPIPE_CHUNKS = 8
NUM_OPENED = 3
ROOT = Path(__file__).parent.parent
REPORT = ROOT / "docs" / "benchmarks.md"
WORK = ROOT / "build" / "bench"

Measure = Callable[[], dict[str, float]]


def make_bundles(name: str, micro_batch: int, folder: Path) -> dict[str, ProvenBundle]:
    """Two stages planned for torch, and for the fastest of all backends; as a user would do it."""
    prepared = prepare_model(f"torchvision:{name}", weights="random:0")
    costs = measure_costs(prepared, batch_size=micro_batch, num_runs=10)
    request = PlanRequest(num_stages=2)
    bundles = {}
    for backend in ("torch", "auto"):
        plan = plan_model(prepared, request, costs=costs, backend=backend)
        path = folder / f"{name}-{micro_batch}-{backend}.cutset"
        bundles[backend] = split_model(prepared, plan, path)
    return bundles


def ours(session: Session, inputs: tuple[torch.Tensor, ...], duration_s: float) -> Measure:
    """Period and latency of a running pipeline."""

    def run() -> dict[str, float]:
        num_done, elapsed_s = measure_throughput(session, inputs, duration_s, least=6)
        latencies = measure_latency(session, inputs, duration_s / 2, least=3)
        return {"period_s": elapsed_s / num_done, "latency_s": median(latencies)}

    return run


def alone(processes: AloneProcesses, duration_s: float) -> Measure:
    """Period of the slowest process, all busy, and its median time of a micro-batch."""

    def run() -> dict[str, float]:
        slowest = max(processes.measure(duration_s), key=lambda result: result.mean_s)
        return {"s": slowest.mean_s, "median_s": slowest.median_s}

    return run


def stages(processes: AloneProcesses, duration_s: float) -> Measure:
    """Both stages busy: the slowest one's period. Then each as one micro-batch finds it: the sum.

    Of a micro-batch alone, each of two stages rests while the other one computes.
    """

    def run() -> dict[str, float]:
        busy = processes.measure(duration_s)
        rested = [
            processes.measure(duration_s / 2, [index], rest_s=other.mean_s)[0]
            for index, other in enumerate(reversed(busy))
        ]
        return {
            "s": max(result.mean_s for result in busy),
            "rested_sum_s": sum(result.median_s for result in rested),
        }

    return run


class GPipe:
    """Two ranks of ScheduleGPipe on a bundle's two stages; rank 1 says its period."""

    def __init__(self, bundle: Bundle, micro_batch: int, duration_s: float, folder: Path) -> None:
        command = [
            *(sys.executable, __file__, "--gpipe-store", str(folder / "store")),
            *("--bundle", str(bundle.directory), "--micro-batches", str(micro_batch)),
            *("--seconds", str(duration_s)),
        ]
        self._ranks = [
            subprocess.Popen(
                [*command, "--rank", str(rank)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in (0, 1)
        ]
        for rank in self._ranks:
            self._line(rank)

    def __call__(self) -> dict[str, float]:
        """One measurement."""
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write(b"\n")
            rank.stdin.flush()
        return {"s": [float(self._line(rank)) for rank in self._ranks][1]}

    def _line(self, rank: subprocess.Popen[bytes]) -> bytes:
        assert rank.stdout is not None
        line = rank.stdout.readline()
        if not line:
            raise RuntimeError("a rank of ScheduleGPipe is gone")
        return line

    def close(self) -> None:
        """Ends the ranks."""
        for rank in self._ranks:
            rank.kill()
            rank.communicate()


def gpipe_rank(arguments: argparse.Namespace) -> None:
    """One rank of ScheduleGPipe."""
    from torch import distributed as dist
    from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

    torch.set_num_threads(1)
    rank, (micro_batch,) = arguments.rank, arguments.micro_batches
    dist.init_process_group(
        "gloo", init_method=f"file://{arguments.gpipe_store}", rank=rank, world_size=2
    )
    bundle = open_bundle(arguments.bundle, stages=(rank,))
    module = load_program(bundle, rank).module
    entry = bundle.manifest.stages[rank]

    class _Single(torch.nn.Module):
        """The stage as ScheduleGPipe wants it: a tensor instead of a tuple of one."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            outputs = self.inner(*tensors)
            return outputs[0] if len(outputs) == 1 else outputs

    with torch.no_grad():
        stage = PipelineStage(
            _Single().eval(),
            rank,
            2,
            torch.device("cpu"),
            input_args=tuple(map(as_tensor, random_inputs(entry, micro_batch))),
            output_args=tuple(
                torch.empty(spec.concrete_shape(micro_batch)) for spec in entry.outputs
            ),
        )
        schedule = ScheduleGPipe(stage, GPIPE_CHUNKS)
        many = random_inputs(bundle.manifest.stages[0], micro_batch * GPIPE_CHUNKS)
        batch = tuple(map(as_tensor, many))

        def step() -> None:
            schedule.eval(*batch) if rank == 0 else schedule.eval()

        step()
        dist.barrier()
        print("ready", flush=True)
        while sys.stdin.readline():
            num_steps = 0
            go_on = torch.ones(1)
            dist.barrier()
            started_s = time.perf_counter()
            while go_on.item():
                step()
                num_steps += 1
                go_on.fill_(float(time.perf_counter() - started_s < arguments.seconds))
                dist.broadcast(go_on, src=0)
            print((time.perf_counter() - started_s) / (num_steps * GPIPE_CHUNKS), flush=True)


def import_seconds() -> float:
    """How long a process takes to import what a worker imports."""
    started_s = time.perf_counter()
    command = [sys.executable, "-c", "import cutset.runtime.worker, onnxruntime"]
    subprocess.run(command, check=True, timeout=120)
    return time.perf_counter() - started_s


def seconds_over_imports(bundle: Bundle, backend: str, micro_batch: int) -> list[float]:
    """How much longer than its imports a session takes until it is ready, a few times."""
    over_s = []
    for _ in range(NUM_OPENED):
        imports_s = import_seconds()
        started_s = time.perf_counter()
        with open_session(bundle, backend=backend, micro_batch=micro_batch):
            over_s.append(time.perf_counter() - started_s - imports_s)
    return over_s


def memory_over_idle(session: Session, micro_batch: int) -> list[dict[str, float]]:
    """Resident bytes of each worker over an idle one, and what the target allows."""
    entries = session.bundle.manifest.stages
    return [
        {
            "idle_bytes": measure_worker_base(stage.backend),
            "over_bytes": stage.stats.rss_bytes - measure_worker_base(stage.backend),
            "allowed_bytes": 1.5 * (entry.weight_bytes + micro_batch * entry.peak_activation_bytes)
            + 64 * 2**20,
        }
        for stage, entry in zip(session.stats().stages, entries, strict=True)
    ]


def measure(
    bundles: dict[str, Bundle], micro_batch: int, rounds: int, duration_s: float
) -> dict[str, Any]:
    """One case: all contestants in turn, `rounds` times."""
    entry = bundles["torch"].manifest.stages[0]
    inputs = tuple(map(as_tensor, random_inputs(entry, micro_batch)))
    facts: dict[str, Any] = {"rounds": rounds, "seconds": duration_s, "memory": {}}
    facts["predicted_s"] = bundles["auto"].manifest.plan.expected_period_s
    with contextlib.ExitStack() as stack:
        contestants: dict[str, Measure] = {}
        planned = []
        for backend, bundle in bundles.items():
            facts[f"ready {backend} over imports_s"] = seconds_over_imports(
                bundle, backend, micro_batch
            )
            session = stack.enter_context(
                open_session(bundle, backend=backend, micro_batch=micro_batch)
            )
            measure_throughput(session, inputs, 0.0, least=6)  # warm-up
            facts["memory"][backend] = memory_over_idle(session, micro_batch)
            planned = [stage.backend for stage in session.stats().stages]
            contestants[f"ours {backend}"] = ours(session, inputs, duration_s)
            contestants[f"alone {backend}"] = stages(
                _start_alone(stack, bundle, [(0,), (1,)], planned, 1, micro_batch), duration_s
            )
        facts["backends"] = planned
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gpipe = GPipe(bundles["torch"], micro_batch, duration_s, folder)
        stack.callback(gpipe.close)
        contestants["gpipe"] = gpipe
        for name, kind, backends, threads in (
            ("whole torch", "torch", ["torch", "torch"], 1),
            ("whole torch, 2 threads", "torch", ["torch", "torch"], 2),
            ("whole auto", "auto", planned, 1),
        ):
            processes = _start_alone(stack, bundles[kind], [(0, 1)], backends, threads, micro_batch)
            contestants[name] = alone(processes, duration_s)
        samples: dict[str, list[float]] = {}
        for _ in range(rounds):
            for name, run in contestants.items():
                for key, seconds in run().items():
                    samples.setdefault(f"{name} {key}", []).append(seconds)
    return {**facts, "samples": samples}


def _start_alone(
    stack: contextlib.ExitStack,
    bundle: Bundle,
    groups: list[tuple[int, ...]],
    backends: list[str],
    num_threads: int,
    micro_batch: int,
) -> AloneProcesses:
    return stack.enter_context(
        AloneProcesses(
            bundle, groups, backends=backends, num_threads=num_threads, micro_batch=micro_batch
        )
    )


def main() -> int:
    """Runs the benchmark, or one rank of a peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--budget", type=float, default=float("inf"))
    parser.add_argument(
        "--page", action="store_true", help="measure nothing; write the page from what is there"
    )
    parser.add_argument("--note", default="", help="what the page's reader should know of the run")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--work", type=Path, default=WORK, help="where results are kept")
    parser.add_argument("--output", type=Path, default=REPORT)
    parser.add_argument("--gpipe-store", help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gpipe_store:
        gpipe_rank(arguments)
        return 0
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    cases: dict[tuple[str, int], Measure] = {
        (name, micro_batch): _case(name, micro_batch, arguments)
        for micro_batch in arguments.micro_batches
        for name in arguments.models
    }
    cases["hop", 1] = pipeline_hop.measure_hops
    if arguments.fresh:
        for name, micro_batch in cases:
            (arguments.work / f"{name}-{micro_batch}.json").unlink(missing_ok=True)
    started_s = time.perf_counter()
    found: dict[tuple[str, int], dict[str, Any]] = {}
    missing: list[str] = []
    for (name, micro_batch), run in cases.items():
        file = arguments.work / f"{name}-{micro_batch}.json"
        if not file.exists():
            if arguments.page:
                missing.append(f"{name} with micro-batches of {micro_batch}")
                continue
            if time.perf_counter() - started_s > arguments.budget:
                print("time is up; run it again to go on", flush=True)
                return 0
            result = {**run(), "date": dt.datetime.now(dt.timezone.utc).date().isoformat()}
            file.write_text(json.dumps(result, indent=1), encoding="utf-8")
        found[name, micro_batch] = json.loads(file.read_text(encoding="utf-8"))
        print(name, micro_batch, pipeline_page.brief(found[name, micro_batch]), flush=True)
    hops = found.pop(("hop", 1))
    page, is_met = pipeline_page.render(found, hops, missing, arguments.note)
    print(page)
    arguments.output.write_text(page, encoding="utf-8")
    return 0 if is_met else 1


def _case(name: str, micro_batch: int, arguments: argparse.Namespace) -> Measure:
    def run() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            bundles = make_bundles(name, micro_batch, Path(folder))
            return measure(bundles, micro_batch, arguments.rounds, arguments.seconds)

    return run


if __name__ == "__main__":
    sys.exit(main())
