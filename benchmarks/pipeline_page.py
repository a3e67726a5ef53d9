"""The page that the pipeline's benchmark writes: every target, what was measured, the shortfall."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import Any

import onnxruntime
import psutil
import torch

Cases = Mapping[tuple[str, int], dict[str, Any]]
Ratio = Callable[[dict[str, Any]], float]


def _over(above: str, below: str) -> Ratio:
    """The median over the rounds of what two contestants of one round took, divided."""

    def ratio(case: dict[str, Any]) -> float:
        pairs = zip(case["samples"][above], case["samples"][below], strict=True)
        return median(one / other for one, other in pairs)

    return ratio


def _predicted(case: dict[str, Any]) -> float:
    # Not a number where the case holds no prediction.
    return (case["predicted_s"] or math.nan) / median(case["samples"]["ours auto period_s"])


_CEILING = "whole {}, 1 core / slowest alone"

RATIOS: dict[str, Ratio] = {
    "torch period / slowest alone": _over("ours torch period_s", "alone torch s"),
    "auto period / slowest alone": _over("ours auto period_s", "alone auto s"),
    "torch speed / GPipe": _over("gpipe s", "ours torch period_s"),
    "auto speed / GPipe": _over("gpipe s", "ours auto period_s"),
    "torch speed / whole torch, 1 core": _over("whole torch s", "ours torch period_s"),
    "auto speed / whole auto, 1 core": _over("whole auto s", "ours auto period_s"),
    _CEILING.format("torch"): _over("whole torch s", "alone torch s"),
    _CEILING.format("auto"): _over("whole auto s", "alone auto s"),
    "auto speed / whole torch, 2 cores": _over("whole torch, 2 threads s", "ours auto period_s"),
    "predicted / auto period": _predicted,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """One line of what is wanted.

    Attributes:
        text: what is wanted, in words.
        found: the number that was measured.
        limit: the number that it is held against.
        at_least: whether it must be at least or at most `limit`.
        detail: more numbers.
    """

    text: str
    found: float
    limit: float
    at_least: bool = False
    detail: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the number keeps the limit."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit

    def row(self) -> str:
        """As a row of a table."""
        verdict = "met" if self.is_met else f"**missed by {abs(self.found - self.limit):.3g}**"
        sign = "≥" if self.at_least else "≤"
        cells = (self.text, f"{sign} {self.limit:g}", f"{self.found:.3g}", verdict, self.detail)
        return "| " + " | ".join(cells) + " |"


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive values."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))


def brief(case: dict[str, Any]) -> str:
    """One case in a line; the hops in seconds."""
    if "samples" not in case:
        return str(case)
    return ", ".join(f"{name} {ratio(case):.2f}" for name, ratio in RATIOS.items())


def targets(cases: Cases, hops: dict[str, float]) -> list[Target]:
    """Every target with its number."""

    def mean(name: str) -> float:
        return geometric_mean(RATIOS[name](case) for case in cases.values())

    def worst(values: Iterable[tuple[tuple[str, int], float]]) -> tuple[float, str]:
        (name, micro_batch), value = max(values, key=lambda item: item[1])
        return value, f"{name}, micro-batch {micro_batch}"

    found = []
    for backend in ("torch", "auto"):
        name = f"{backend} period / slowest alone"
        ratio = RATIOS[name]
        peak, where = worst((key, ratio(case)) for key, case in cases.items())
        found += [
            Target(text=f"{name}, geometric mean", found=mean(name), limit=1.05),
            Target(text=f"{name}, largest", found=peak, limit=1.10, detail=where),
        ]
    latest, where = worst(_over_sum(cases, "alone {} rested_sum_s"))
    over_whole, where_whole = worst(_over_sum(cases, "whole {} median_s"))
    over, heaviest = worst(
        (key, each["over_bytes"] / each["allowed_bytes"])
        for key, case in cases.items()
        for stages in case["memory"].values()
        for each in stages
    )
    late, slow_start = worst(
        (key, median(case[f"ready {b} over imports_s"]))
        for b in ("torch", "auto")
        for key, case in cases.items()
    )
    by_model: dict[str, list[float]] = {}
    for (model, _), case in cases.items():
        if case["predicted_s"]:
            off = abs(RATIOS["predicted / auto period"](case) - 1)
            by_model.setdefault(model, []).append(off)
    return [
        *found,
        Target(
            text="auto speed / GPipe, geometric mean",
            found=mean("auto speed / GPipe"),
            limit=2,
            at_least=True,
        ),
        Target(
            text="torch speed / GPipe, geometric mean",
            found=mean("torch speed / GPipe"),
            limit=1,
            at_least=True,
        ),
        *(
            Target(
                text=f"{b} speed / whole {b}, 1 core, geometric mean",
                found=mean(f"{b} speed / whole {b}, 1 core"),
                limit=1.75,
                at_least=True,
                detail=f"without any transfer {mean(_CEILING.format(b)):.3g}",
            )
            for b in ("torch", "auto")
        ),
        Target(
            text="latency alone over the sum of its stages + 5% (ms), largest",
            found=latest,
            limit=1,
            detail=f"{where}; over the whole, never at rest: {over_whole:.3g}, {where_whole}",
        ),
        Target(
            text="hop of 1.6 MB (ms)",
            found=1e3 * hops["shared_s"],
            limit=0.8,
            detail=f"shared memory; encrypted, over TCP on loopback {1e3 * hops['tcp_s']:.2f} ms",
        ),
        Target(
            text="worker's memory over an idle one / (1.5 (weights + peak) + 64 MiB), largest",
            found=over,
            limit=1,
            detail=f"{heaviest}; idle: {_idle(cases)}",
        ),
        Target(
            text="session ready over importing its libraries (s), largest",
            found=late,
            limit=2,
            detail=slow_start,
        ),
        Target(
            text="predicted against measured period, off by, median over the models",
            found=median(sum(errors) / len(errors) for errors in by_model.values()),
            limit=0.10,
            detail=f"over {len(by_model)} models",
        ),
    ]


def _over_sum(cases: Cases, sum_: str) -> list[tuple[tuple[str, int], float]]:
    """Milliseconds of one micro-batch alone over its stages' sum and 5%, with each backend."""

    def late_s(case: dict[str, Any], backend: str) -> float:
        samples = case["samples"]
        pairs = zip(
            samples[f"ours {backend} latency_s"], samples[sum_.format(backend)], strict=True
        )
        return median(latency_s - 1.05 * stages_s for latency_s, stages_s in pairs)

    return [
        (key, 1e3 * late_s(case, backend))
        for key, case in cases.items()
        for backend in ("torch", "auto")
    ]


def _idle(cases: Cases) -> str:
    """Mebibytes of an idle worker, by backend."""
    found: dict[str, list[float]] = {}
    for case in cases.values():
        for stages, names in (
            (case["memory"]["torch"], ("torch", "torch")),
            (case["memory"]["auto"], case["backends"]),
        ):
            for stage, name in zip(stages, names, strict=True):
                found.setdefault(name, []).append(stage["idle_bytes"] / 2**20)
    return ", ".join(f"{name} {median(values):.0f} MiB" for name, values in sorted(found.items()))


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def machine() -> str:
    """This machine in words."""
    name = platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            name = next(line for line in file if line.startswith("model name")).split(":")[1]
    except (OSError, StopIteration):
        pass
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{name.strip()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"
        f" {platform.release()}, Python {platform.python_version()}, torch {torch.__version__},"
        f" onnxruntime {onnxruntime.__version__}"
    )


_TOP = """# Benchmarks

Written by `make bench`; measured on {date} on {machine}.

Two stages with one thread each, planned for torch or for the fastest backends; {rounds} rounds, in
each of which every contestant was measured once for about a second or more while the others rested.
A ratio is of two times of one round, and the median over the rounds is shown. In a round every time
is the time that passed over the micro-batches that were computed in it; only a latency is the
median of its round. *Alone* is the slowest stage without transfers while the other one is busy too.
*GPipe* is torch.distributed.pipelining's ScheduleGPipe over gloo on the stages planned for torch, 8
micro-batches a step. *Whole* is all stages in one process. `auto` runs each stage with the backend
that the profile found the fastest.

One micro-batch alone finds stages that have rested while the others computed. So the latency is
held against the sum of the stages' median times, each measured with such rests; and beside it
against the whole, which never rests. *Whole / slowest alone* is the speed that these stages would
have here if nothing had to be sent. An *idle* worker has its backend's libraries in memory: its
stage is one small convolution. *Ready* is the median of three sessions, each opened right after the
imports were timed.
"""

_TARGETS = """## Targets

| target | limit | measured | | where, or what else |
| --- | --- | --- | --- | --- |"""

_TIMES = """
## Times

In milliseconds a micro-batch.

| model | micro-batch | backends (auto) | ours, torch | ours, auto | GPipe | whole, 1 core | \
2 cores | predicted (auto) |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def render(cases: Cases, hops: dict[str, float], missing: list[str], note: str) -> tuple[str, bool]:
    """The page docs/benchmarks.md, and whether everything was measured and every target is met."""
    wanted = targets(cases, hops)
    dates = sorted({case["date"] for case in cases.values()})
    measured = " and ".join(dict.fromkeys((dates[0], dates[-1])))
    rounds = " or ".join(str(each) for each in sorted({c["rounds"] for c in cases.values()}))
    top = _TOP.format(date=measured, machine=machine(), rounds=rounds)
    absent = f"\n**Not measured in this run:** {'; '.join(missing)}.\n" if missing else ""
    remark = f"\n{note}\n" if note else ""
    lines = [
        *(top + remark + absent + "\n" + _TARGETS).split("\n"),
        *(target.row() for target in wanted),
        *_TIMES.split("\n"),
    ]
    for (model, micro_batch), case in cases.items():
        names = ("ours torch period_s", "ours auto period_s", "gpipe s", "whole torch s")
        samples = case["samples"]
        times = [1e3 * median(samples[n]) for n in (*names, "whole torch, 2 threads s")]
        times.append(1e3 * (case["predicted_s"] or math.nan))
        cells = " | ".join(map(_number, times))
        backends = ", ".join(case["backends"])
        lines.append(f"| {model} | {micro_batch} | {backends} | {cells} |")
    lines += [
        "",
        "## Ratios",
        "",
        f"| model | micro-batch | {' | '.join(RATIOS)} |",
        "| --- " * (2 + len(RATIOS)) + "|",
    ]
    for (model, micro_batch), case in cases.items():
        cells = " | ".join(_number(ratio(case)) for ratio in RATIOS.values())
        lines.append(f"| {model} | {micro_batch} | {cells} |")
    means = []
    for ratio in RATIOS.values():
        values = [ratio(case) for case in cases.values()]
        means.append(geometric_mean(value for value in values if not math.isnan(value)))
    lines.append("| **geometric mean** | | " + " | ".join(map(_number, means)) + " |")
    return "\n".join(lines) + "\n", not missing and all(target.is_met for target in wanted)
