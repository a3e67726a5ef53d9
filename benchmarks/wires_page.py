"""The tables of ``docs/wires.md`` from what ``wires.py`` measured."""

from __future__ import annotations

import datetime as dt
import json
import math
import platform
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_PAGE = Path("docs/wires.md")
_BEGIN = "<!-- measured: begin -->"
_END = "<!-- measured: end -->"
_BEDS = {"four": "four half cores", "three": "1, 1/2, 1/2 of a core"}
_CALLERS = {"device": "caller on the first node", "apart": "caller apart, with a port of its own"}
_GOALS = {
    ("device", "default"): 1.0,
    ("device", "fp16"): 1.25,
    ("device", "int8"): 1.6,
    ("apart", "default"): 1.5,
}
_NEVER_BELOW = 0.98
_FAR, _USUAL = 0.15, 0.08

Result = dict[str, Any]


def ratio(result: Result, name: str) -> float | None:
    """Rows per second over those of the code before: the median of the rounds' own ratios."""
    variants = result["variants"]
    if "before" not in variants:
        return None
    rounds = zip(variants[name]["rows_per_s"], variants["before"]["rows_per_s"], strict=True)
    return statistics.median(ours / theirs for ours, theirs in rounds)


def off(variant: dict[str, Any]) -> float:
    """How far the median measured period is above the predicted one, as a fraction."""
    measured_s = 1 / statistics.median(variant["rows_per_s"])
    return float(measured_s / variant["predicted_row_s"] - 1)


def _what(variant: dict[str, Any]) -> str:
    """Stages, rows of a micro-batch, and what travels."""
    stages = variant["stages"]
    codecs = [stage["codec"] for stage in stages[:-1]]
    sent = [variant["input_codec"], *codecs]
    told = ", ".join(dict.fromkeys(name for name in sent if name != "none"))
    rows = variant["micro_batch"]
    return f"{len(stages)} x {rows}" + (f", {told}" if told else "")


def _table(results: Sequence[Result]) -> Iterator[str]:
    names = [name for name in results[0]["variants"] if name != "before"]
    yield (
        "| model | before, rows/s | " + " | ".join(f"{name}, times | off" for name in names) + " |"
    )
    yield "| --- | ---: |" + " ---: | ---: |" * len(names)
    for result in results:
        variants = result["variants"]
        before = variants.get("before")
        told = "not run"
        if before:
            told = f"{statistics.median(before['rows_per_s']):.2f} ({_what(before)})"
        cells = []
        for name in names:
            found = ratio(result, name)
            rows_per_s = statistics.median(variants[name]["rows_per_s"])
            times = f"{found:.2f}" if found is not None else f"{rows_per_s:.2f} rows/s"
            cells += [f"{times} ({_what(variants[name])})", f"{off(variants[name]):+.1%}"]
        yield f"| {result['model']} | {told} | " + " | ".join(cells) + " |"


def _means(caller: str, results: Sequence[Result]) -> Iterator[str]:
    """Geometric means, beside what was asked for on four nodes at the faster wires."""
    at_goal = (results[0]["bed"], results[0]["mbit"]) == ("four", 50)
    for name in results[0]["variants"]:
        ratios = [found for each in results if (found := ratio(each, name)) is not None]
        if name == "before" or not ratios:
            continue
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        text = f"{name}: {mean:.2f} times (geometric mean of {len(ratios)}"
        goal = _GOALS.get((caller, name)) if at_goal else None
        text += f"; asked for: {goal:g}" if goal else ""
        low = min(ratios)
        text += f"), the least {low:.2f}"
        yield text + (f", below {_NEVER_BELOW:g}" if low < _NEVER_BELOW else "")


def _predictions(results: Sequence[Result]) -> str:
    """How far off predictions were, over all that this commit planned."""
    plans = {
        variant["bundle"]: variant
        for each in results
        for name, variant in each["variants"].items()
        if name != "before"
    }
    sizes = [abs(off(variant)) for variant in plans.values()]
    within = sum(size <= _FAR for size in sizes)
    return (
        f"Predicted against measured period, {len(sizes)} plans: {within} within {_FAR:.0%}, at"
        f" most {max(sizes):.1%}, median {statistics.median(sizes):.1%} (asked for: all within"
        f" {_FAR:.0%}, median {_USUAL:.0%})."
    )


def lines_of(results: Sequence[Result], wanted: Sequence[tuple[str, int, str, str]]) -> list[str]:
    """The measured part of the page.

    Args:
        results: what was measured, a model and case each.
        wanted: bed, wire, caller and model of all that there might be.
    """
    lines = []
    for bed, mbit, caller in dict.fromkeys(case[:3] for case in wanted):
        own = [r for r in results if (r["bed"], r["mbit"], r["caller"]) == (bed, mbit, caller)]
        if not own:
            continue
        order = [model for *case, model in wanted if tuple(case) == (bed, mbit, caller)]
        own.sort(key=lambda result: order.index(result["model"]))
        lines += [f"### {_BEDS[bed]}, {mbit} Mbit/s, {_CALLERS[caller]}", ""]
        lines += [*_table(own), ""]
        lines += ["\n".join(f"* {text}" for text in _means(caller, own)), ""]
    if not results:
        return ["Nothing was measured yet."]
    lines += [_predictions(results), ""]
    done = {(r["bed"], r["mbit"], r["caller"], r["model"]) for r in results}
    missing = [case for case in wanted if case not in done]
    if missing:
        cases = dict.fromkeys(case[:3] for case in missing)
        told = (
            f"{bed} nodes, {mbit} Mbit/s, caller {'apart' if caller == 'apart' else 'on a device'}"
            f" ({', '.join(c[3] for c in missing if c[:3] == (bed, mbit, caller))})"
            for bed, mbit, caller in cases
        )
        lines += [f"Not run: {'; '.join(told)}.", ""]
    day = dt.datetime.now(tz=dt.timezone.utc).date().isoformat()
    rounds = {len(v["rows_per_s"]) for each in results for v in each["variants"].values()}
    lines.append(f"{day}, {platform.machine()}; rounds: {', '.join(map(str, sorted(rounds)))}.")
    return lines


def write(folder: Path, wanted: Sequence[tuple[str, int, str, str]]) -> None:
    """Prints the tables of a folder's results and puts them into the documentation."""
    results = [json.loads(file.read_text()) for file in sorted(folder.glob("*-*-*.*.json"))]
    text = "\n".join(lines_of(results, wanted))
    print(text)
    before, _, rest = _PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    if not rest:
        raise SystemExit(f"{_PAGE} has no {_BEGIN!r}")
    after = rest.partition(_END)[2]
    _PAGE.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}", encoding="utf-8")
