"""Cutset's pipeline against its peers, interleaved, on this machine: ``make bench``.

For each model and micro-batch size, cut once at the place that balances the measured times, the
same bundle is run in turn, again and again:

* ours, backend ``torch`` and backend ``auto``, two workers with one thread each;
* each stage alone, without transfers, the other one busy beside it (both backends);
* torch.distributed.pipelining's ScheduleGPipe over gloo on the same two stages;
* the whole model in one process, on one thread and on two.

Prints a table and writes docs/benchmarks.md. Medians over the rounds; nothing is left out.
"""

from __future__ import annotations

import argparse
import datetime as dt
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

import torch
import torchvision

from cutset.backends.allocator import keep_freed_memory
from cutset.backends.base import random_inputs
from cutset.backends.pieces import piece_backends
from cutset.costs.model import costs_from_profile
from cutset.costs.profile import profile_costs
from cutset.devices import equal_cluster
from cutset.graph.capture import capture_model
from cutset.graph.cuts import find_cut_points
from cutset.planning.make import make_plan
from cutset.runtime.alone import measure_alone
from cutset.runtime.bench import measure_latency, measure_throughput
from cutset.runtime.session import open_session
from cutset.shards.export import export_bundle
from cutset.shards.load import Bundle, load_program, open_bundle

MODELS = ("alexnet", "vgg16", "resnet18", "resnet50", "mobilenet_v2", "inception_v3")
GPIPE_CHUNKS = 8
REPORT = Path(__file__).parent.parent / "docs" / "benchmarks.md"

Sample = dict[str, float]

_PREAMBLE = (
    "`make bench`, {date}: {machine}, Python {python}, torch {torch}; {rounds} interleaved rounds",
    "of {seconds:g} s, medians. Two stages, one thread each. Alone is the slowest stage without",
    "transfers while the other one is busy too; GPipe is torch.distributed.pipelining's",
    "ScheduleGPipe over gloo on the same stages with {chunks} micro-batches a step.",
)


def make_bundle(name: str, micro_batch: int, folder: Path) -> Bundle:
    """Captures, profiles, plans for two equal devices, exports."""
    torch.manual_seed(0)
    options = {"init_weights": True} if name == "inception_v3" else {}
    model = getattr(torchvision.models, name)(weights=None, **options).eval()
    side = 299 if name == "inception_v3" else 224
    captured = capture_model(model, (torch.randn(2, 3, side, side),))
    cuts = find_cut_points(captured.graph)
    keep_freed_memory()
    profile = profile_costs(
        captured,
        cuts,
        micro_batch=micro_batch,
        max_seconds=5.0,
        backends=piece_backends(captured, cuts, num_threads=1),
    )
    costs = costs_from_profile(captured.graph, cuts, profile)
    plan = make_plan(captured.graph, cuts, costs, equal_cluster(2), num_stages=2)
    path = folder / f"{name}-{micro_batch}.cutset"
    export_bundle(model, plan, path, captured=captured, model_name=name)
    return open_bundle(path)


def run_ours(bundle: Bundle, backend: str, micro_batch: int, duration_s: float) -> Sample:
    """Period and latency of the pipeline."""
    inputs = random_inputs(bundle.manifest.stages[0], micro_batch)
    with open_session(bundle, backend=backend, micro_batch=micro_batch) as session:
        measure_throughput(session, inputs, 0.0)  # warm-up
        num_done, elapsed_s = measure_throughput(session, inputs, duration_s)
        latencies = measure_latency(session, inputs, duration_s / 2)
    return {"period_s": elapsed_s / num_done, "latency_s": median(latencies)}


def run_alone(bundle: Bundle, backend: str, micro_batch: int, duration_s: float) -> Sample:
    """The slowest stage without transfers, and the sum of the stages."""
    results = measure_alone(
        bundle,
        [(0,), (1,)],
        backends=[backend, backend],
        num_threads=1,
        micro_batch=micro_batch,
        duration_s=duration_s,
    )
    times = [result.median_s for result in results]
    return {"slowest_s": max(times), "sum_s": sum(times)}


def run_whole(bundle: Bundle, num_threads: int, micro_batch: int, duration_s: float) -> Sample:
    """The whole model in one process, backend torch."""
    (result,) = measure_alone(
        bundle,
        [(0, 1)],
        backends=["torch", "torch"],
        num_threads=num_threads,
        micro_batch=micro_batch,
        duration_s=duration_s,
    )
    return {"period_s": result.mean_s}


def run_gpipe(bundle: Bundle, micro_batch: int, duration_s: float) -> Sample:
    """ScheduleGPipe on the same two stages; the last rank prints its period."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, __file__, "--gpipe-store", str(Path(folder) / "store")),
            *("--bundle", str(bundle.directory), "--micro-batches", str(micro_batch)),
            *("--seconds", str(duration_s)),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ranks = [
            subprocess.Popen(
                [*command, "--rank", str(rank)], stdout=subprocess.PIPE, env=environment
            )
            for rank in (0, 1)
        ]
        try:
            outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    return {"period_s": float(outputs[1])}


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

    inputs = random_inputs(entry, micro_batch)
    with torch.no_grad():
        stage = PipelineStage(
            _Single().eval(),
            rank,
            2,
            torch.device("cpu"),
            input_args=inputs,
            output_args=tuple(
                torch.empty(spec.concrete_shape(micro_batch)) for spec in entry.outputs
            ),
        )
        schedule = ScheduleGPipe(stage, GPIPE_CHUNKS)
        batch = random_inputs(bundle.manifest.stages[0], micro_batch * GPIPE_CHUNKS)

        def step() -> None:
            schedule.eval(*batch) if rank == 0 else schedule.eval()

        for _ in range(2):
            step()
        dist.barrier()
        num_steps = 0
        started_s = time.perf_counter()
        go_on = torch.ones(1)
        while go_on.item():
            step()
            num_steps += 1
            go_on.fill_(float(time.perf_counter() - started_s < arguments.seconds))
            dist.broadcast(go_on, src=0)
        elapsed_s = time.perf_counter() - started_s
    if rank == 1:
        print(elapsed_s / (num_steps * GPIPE_CHUNKS), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def measure(bundle: Bundle, micro_batch: int, rounds: int, duration_s: float) -> Sample:
    """All contestants in turn, `rounds` times; medians."""
    contestants: dict[str, Callable[[], Sample]] = {
        "ours torch": lambda: run_ours(bundle, "torch", micro_batch, duration_s),
        "alone torch": lambda: run_alone(bundle, "torch", micro_batch, duration_s),
        "gpipe": lambda: run_gpipe(bundle, micro_batch, duration_s),
        "ours auto": lambda: run_ours(bundle, "auto", micro_batch, duration_s),
        "alone auto": lambda: run_alone(bundle, "auto", micro_batch, duration_s),
        "whole 1": lambda: run_whole(bundle, 1, micro_batch, duration_s),
        "whole 2": lambda: run_whole(bundle, 2, micro_batch, duration_s),
    }
    samples: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, run in contestants.items():
            for key, seconds in run().items():
                samples.setdefault(f"{name} {key}", []).append(seconds)
    return {name: median(values) for name, values in samples.items()}


def ratios(found: Sample, predicted_s: float) -> Sample:
    """What the targets speak of."""
    return {
        "torch period / slowest alone": found["ours torch period_s"]
        / found["alone torch slowest_s"],
        "auto period / slowest alone": found["ours auto period_s"] / found["alone auto slowest_s"],
        "torch speed / GPipe": found["gpipe period_s"] / found["ours torch period_s"],
        "auto speed / GPipe": found["gpipe period_s"] / found["ours auto period_s"],
        "torch speed / whole, 1 thread": found["whole 1 period_s"] / found["ours torch period_s"],
        "torch speed / whole, 2 threads": found["whole 2 period_s"] / found["ours torch period_s"],
        "torch latency - sum of stages (ms)": 1e3
        * (found["ours torch latency_s"] - found["alone torch sum_s"]),
        "predicted / auto period": predicted_s / found["ours auto period_s"],
    }


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive values; NaN where one is not."""
    logs = [math.log(value) if value > 0 else math.nan for value in values]
    return math.exp(sum(logs) / len(logs))


def render(
    table: dict[tuple[str, int], tuple[Sample, Sample]], arguments: argparse.Namespace
) -> str:
    """The page docs/benchmarks.md."""
    names = list(next(iter(table.values()))[1])
    lines = [
        "# Benchmarks",
        "",
        " ".join(_PREAMBLE).format(
            date=dt.date.today().isoformat(),
            machine=f"{platform.machine()}, {os.cpu_count()} cores",
            python=platform.python_version(),
            torch=torch.__version__,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            chunks=GPIPE_CHUNKS,
        ),
        "",
        "| model | micro-batch | ours torch (ms) | ours auto (ms) | GPipe (ms) | "
        + " | ".join(names)
        + " |",
        "| --- " * (5 + len(names)) + "|",
    ]
    for (model, micro_batch), (found, derived) in table.items():
        times = [found[f"{who} period_s"] * 1e3 for who in ("ours torch", "ours auto", "gpipe")]
        cells = [f"{value:.2f}" for value in (*times, *derived.values())]
        lines.append(f"| {model} | {micro_batch} | " + " | ".join(cells) + " |")
    means = [
        "" if "(ms)" in name else f"{geometric_mean(row[1][name] for row in table.values()):.2f}"
        for name in names
    ]
    lines.append("| **geometric mean** | | | | | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the benchmark, or one rank of a peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--output", type=Path, default=REPORT)
    parser.add_argument("--gpipe-store", help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.gpipe_store:
        gpipe_rank(arguments)
        return
    torch.set_num_threads(1)
    table: dict[tuple[str, int], tuple[Sample, Sample]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            for micro_batch in arguments.micro_batches:
                bundle = make_bundle(name, micro_batch, Path(folder))
                found = measure(bundle, micro_batch, arguments.rounds, arguments.seconds)
                derived = ratios(found, bundle.manifest.plan.period_s)
                table[name, micro_batch] = found, derived
                print(name, micro_batch, {k: round(v, 3) for k, v in derived.items()}, flush=True)
    page = render(table, arguments)
    print(page)
    arguments.output.parent.mkdir(exist_ok=True)
    arguments.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
