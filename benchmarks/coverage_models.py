"""Tries a long list of models and writes docs/models.md: what can be split, and how evenly.

    python benchmarks/coverage_models.py [--only PATTERN] [--again] [--jobs N]

Plans are made as the commands make them where nothing else is said, from measured costs.

Every model runs in a process of its own with a limit of time and memory. Results are added to
benchmarks/coverage.jsonl one by one, so that an interrupted run goes on where it stopped; the file
is kept with the code, each result with the commit that gave it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from importlib import metadata
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import cutset

ROOT = Path(__file__).resolve().parent.parent
STATE = Path(__file__).with_name("coverage.jsonl")
LIST = ROOT / "build" / "coverage-list.json"
LOGS = ROOT / "build" / "coverage-logs"
REPORT = ROOT / "docs" / "models.md"
HEADINGS = {
    "classification": "torchvision: classification",
    "segmentation": "torchvision: segmentation",
    "video": "torchvision: video",
    "optical flow": "torchvision: optical flow",
    "quantised": "torchvision: quantised ones, in floating point (int8 cannot be captured)",
    "detection": "torchvision: detection",
    "timm": "timm: the cheapest model of every family",
}
COLUMNS = (
    "model | input | Gmacs a row | cut points | most stages | slowest stage over ideal at 2 | at 4 "
    "| tensors across a cut, and then at 2 and 4 | torch | onnxruntime"
)
INTRODUCTION = """# Which models can be split

Written by `make coverage-models`; do not edit by hand. {versions}, random weights.

Each model is captured once; its positions are judged with one tensor across a cut; it is planned
with measured costs of one row, as `cutset split` does, for 2 and for 4 stages (or as many as its
cut points allow), split into the latter and verified. How even stages are is said of their measured
seconds.
The stages are then loaded as workers load them and compared with the whole model on 1, 2 and 5
rows: *exact* means that torch's stages equal it bit for bit, *within tolerance* that onnxruntime's
do; *no ONNX* names the reason for which a stage has no ONNX model, and *off* says that it has one
and differs by more on other rows than those that `split` compares (random weights can magnify
rounding so far that float32 itself is off by a tenth). Where one tensor leaves the slowest stage
over 1.25 of the ideal, the least number that evens the stages out is tried as well. Models of over
1.5 Gmacs a row (timm's: 6) run on a smaller image where they take one; *input* says which. Of a
model that decides on values (detectors) the part in brackets is split; the rest stays with the
caller and the results of the whole are the same. It was named (`--part`), as users have to.
"""


def main() -> None:
    """Runs what is missing and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="PATTERN", help="a regular expression on specs")
    parser.add_argument("--again", action="store_true", help="also what has a result already")
    parser.add_argument("--retry", action="store_true", help="also what failed")
    parser.add_argument("--jobs", type=int, default=2, help="models that are tried at a time")
    parser.add_argument("--seconds", type=float, default=3600.0, help="limit for one model")
    parser.add_argument("--memory-gib", type=float, default=20.0, help="limit for one model")
    parser.add_argument("--report-only", action="store_true", help="write docs/models.md, no runs")
    options = parser.parse_args()
    LIST.parent.mkdir(exist_ok=True)
    wanted = _read_list()
    rows = _read_state()
    if not options.report_only:
        todo = [
            spec
            for _, spec in wanted
            if (not options.only or re.search(options.only, spec))
            and (options.again or spec not in rows or _to_retry(rows[spec], options))
        ]
        _run_all(todo, rows, options)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(report_text(wanted, rows), encoding="utf-8")
    print(_sums(wanted, rows))


def _to_retry(row: dict[str, Any], options: argparse.Namespace) -> bool:
    return options.retry and row["status"] != "exact"


def _read_list() -> list[tuple[str, str]]:
    """The models to try; made once, since choosing from timm builds all of its models."""
    if not LIST.exists():
        from coverage_list import coverage_list

        LIST.write_text(json.dumps(list(coverage_list())), encoding="utf-8")
    return [(group, spec) for group, spec in json.loads(LIST.read_text(encoding="utf-8"))]


def _read_state() -> dict[str, dict[str, Any]]:
    if not STATE.exists():
        return {}
    lines = STATE.read_text(encoding="utf-8").splitlines()
    return {row["spec"]: row for row in map(json.loads, lines)}


def _run_all(todo: list[str], rows: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Runs the models, some at a time, each in a process that is forked from this one."""
    import coverage_one  # torch and all that it brings along

    os.environ["OMP_NUM_THREADS"] = "1"
    coverage_one.prepare_process()
    version = _version()
    columns = (
        TextColumn("{task.description:44}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    LOGS.mkdir(exist_ok=True)
    waiting, running = list(reversed(todo)), list[_Running]()
    # A thread that refreshes the screen would not go well with forking.
    with Progress(*columns, auto_refresh=False) as progress, STATE.open("a") as state:
        task = progress.add_task("", total=len(todo))
        try:
            while waiting or running:
                while waiting and len(running) < options.jobs:
                    running.append(_start(waiting.pop(), version, options))
                progress.update(task, description=", ".join(r.spec for r in running), refresh=True)
                least_s = min(r.deadline_s for r in running) - time.monotonic()
                ready = wait([r.answer for r in running], timeout=max(0.0, least_s))
                for one in list(running):
                    row = _finished(one, options) if one.answer in ready else _overdue(one, options)
                    if row is not None:
                        running.remove(one)
                        rows[one.spec] = row
                        state.write(json.dumps(row) + "\n")
                        state.flush()
                        progress.advance(task)
        finally:
            for one in running:
                _end(one)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Running:
    """A model's process, where its row will come from, and when it will be ended."""

    spec: str
    process: ForkProcess
    answer: Connection
    deadline_s: float


def _start(spec: str, version: str, options: argparse.Namespace) -> _Running:
    import coverage_one

    context = multiprocessing.get_context("fork")
    answer, sender = context.Pipe(duplex=False)
    log = LOGS / f"{re.sub('[^A-Za-z0-9_]+', '-', spec)}.txt"
    memory_bytes = int(options.memory_gib * 2**30)
    process = context.Process(
        target=coverage_one.run, args=(spec, version, memory_bytes, log, sender)
    )
    process.start()
    sender.close()
    deadline_s = time.monotonic() + options.seconds
    return _Running(spec=spec, process=process, answer=answer, deadline_s=deadline_s)


def _finished(one: _Running, options: argparse.Namespace) -> dict[str, Any]:
    """The row that a process sent, or what is known of one that ended without."""
    try:
        row: dict[str, Any] = json.loads(one.answer.recv_bytes())
    except EOFError:
        one.process.join(timeout=10)
        code = one.process.exitcode
        cause = f"ended with code {code} (limits: {options.memory_gib:g} GiB)"
        row = _failed(one.spec, cause)
    _end(one)
    return row


def _overdue(one: _Running, options: argparse.Namespace) -> dict[str, Any] | None:
    if time.monotonic() < one.deadline_s:
        return None
    _end(one)
    cause = f"took more than {options.seconds:g} s"
    return _failed(one.spec, cause)


def _failed(spec: str, cause: str) -> dict[str, Any]:
    return {"spec": spec, "status": "error", "step": "", "cause": cause}


def _end(one: _Running) -> None:
    one.process.join(timeout=1)
    if one.process.is_alive():
        one.process.kill()
        one.process.join()
    one.answer.close()


def _version() -> str:
    """The version of Cutset that is run, with the commit where there is one."""
    command = ("git", "describe", "--always", "--dirty")
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    commit = done.stdout.strip()
    return cutset.__version__ + (f" ({commit})" if commit else "")


def report_text(wanted: Iterable[tuple[str, str]], rows: dict[str, dict[str, Any]]) -> str:
    """The report in Markdown."""
    wanted = list(wanted)
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "timm")
    )
    parts = [INTRODUCTION.format(versions=versions), _commits(rows), "", _sums(wanted, rows)]
    for group, heading in HEADINGS.items():
        found = [rows[spec] for g, spec in wanted if g == group and spec in rows]
        missing = [spec for g, spec in wanted if g == group and spec not in rows]
        if found:
            parts += ["", f"## {heading}", "", f"| {COLUMNS} |", "|" + " --- |" * 10]
            parts += [_line(row) for row in found if row["status"] == "exact"]
            parts += ["", *_failures(found)]
        if missing:
            names = ", ".join(f"`{spec.partition(':')[2]}`" for spec in missing)
            parts += [*(() if found else ("", f"## {heading}")), "", f"Not run: {names}."]
    return "\n".join(parts).rstrip() + "\n"


def _commits(rows: dict[str, dict[str, Any]]) -> str:
    """Which code gave how many of the results."""
    counts = Counter(row.get("version") or "an unknown version" for row in rows.values())
    return "Measured with " + ", ".join(
        f"{version}: {count} models" for version, count in counts.most_common()
    )


def _line(row: dict[str, Any]) -> str:
    ratios, more = row["ratios"], row["ratios_with_more"]
    most = max((int(n) for n in ratios), default=1)
    at_two, at_four = ratios.get("2"), ratios.get("4") or (ratios.get("3") if most == 3 else None)
    with_more = (
        f"{row['max_tensors']}: " + ", ".join(f"{value:.2f}" for value in more.values())
        if more
        else ""
    )
    cells = (
        row["spec"].partition(":")[2]
        + (f" (`{row['part']}`{_share(row)})" if row.get("part") else ""),
        row["input_shape"].replace("float32", "").replace("batch, ", ""),
        f"{row['flops'] / 1e9:.2f}",
        str(row["num_points"]),
        str(row["most_stages"]),
        f"{at_two:.2f}" if at_two else "-",
        (f"{at_four:.2f}" + (" (3 stages)" if most == 3 else "")) if at_four else "-",
        with_more,
        row["status"],
        row["onnx"] or "not tried",
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _share(row: dict[str, Any]) -> str:
    return f", {row['part_share']:.0%} of the work" if row.get("part_share") else ""


def _failures(found: list[dict[str, Any]]) -> list[str]:
    failed = [row for row in found if row["status"] != "exact"]
    if not failed:
        return []
    lines = ["Not split, and why:", ""]
    return [
        *lines,
        *(
            f"- `{row['spec']}`{' (' + row['step'] + ')' if row.get('step') else ''}: "
            f"{row['cause']}"
            for row in failed
        ),
    ]


def _sums(wanted: Iterable[tuple[str, str]], rows: dict[str, dict[str, Any]]) -> str:
    lines = []
    for group in HEADINGS:
        specs = [spec for g, spec in wanted if g == group]
        tried = [rows[spec] for spec in specs if spec in rows]
        exact = [row for row in tried if row["status"] == "exact"]
        at_two = [row["ratios"]["2"] for row in exact if "2" in row["ratios"]]
        even = f", median at 2 stages {statistics.median(at_two):.2f}" if at_two else ""
        close = sum(row["onnx"] == "within tolerance" for row in exact)
        lines.append(
            f"- {group}: {len(exact)} of {len(tried)} tried are exact ({len(specs)} listed), "
            f"onnxruntime within tolerance for {close} of these{even}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
