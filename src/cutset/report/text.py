"""Tables for the terminal; readable at 80 columns, without colour and in a pipe."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph
from cutset.planning.plan import Plan

BAR_WIDTH = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def format_bytes(num_bytes: float) -> str:
    """``"1.5 MiB"``: three significant digits with a binary prefix."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if num_bytes < 1024 or unit == "TiB":
            return f"{num_bytes:.3g} {unit}" if num_bytes < 1000 else f"{num_bytes:.0f} {unit}"
        num_bytes /= 1024
    raise AssertionError("unreachable")


def format_count(count: float) -> str:
    """``"4.09 G"``: three significant digits with a decimal prefix."""
    for unit in ("", " K", " M", " G", " T"):
        if count < 1000 or unit == " T":
            return f"{count:.3g}{unit}"
        count /= 1000
    raise AssertionError("unreachable")


def format_seconds(seconds: float) -> str:
    """``"12.3 ms"``: three significant digits."""
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError("unreachable")


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A bar of `width` characters, `share` (0 to 1) of it filled, to an eighth of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)


def print_inspection(
    console: Console, model: str, graph: Graph, cuts: CutPoints, *, refused: bool
) -> None:
    """Prints the cut points of a model, and the refused positions where asked for."""
    console.print(
        f"[bold]{escape(model)}[/]: {format_count(graph.flops)} multiply-adds and "
        f"{format_bytes(sum(spec.bytes_per_sample for spec in graph.inputs))} of input a row, "
        f"{format_count(graph.num_parameters)} parameters, {len(graph.operations)} operations, "
        f"{len(cuts.units)} units, {len(cuts.points)} cut points"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("cut after", overflow="fold")
    table.add_column("kind")
    table.add_column("tensor", overflow="fold")
    table.add_column("a row", justify="right", no_wrap=True)
    table.add_column("work so far", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    for point in cuts.points:
        share = point.cumulative_flops / graph.flops if graph.flops else 0.0
        shapes = ", ".join("x".join(map(str, spec.shape[1:])) for spec in point.tensors)
        table.add_row(
            escape(point.after),
            point.kind,
            shapes,
            format_bytes(point.bytes_per_sample),
            bar(share, 12),
            f"{share:.1%}",
        )
    console.print(table)
    if refused:
        table = Table(box=None, pad_edge=False, title="refused", title_justify="left")
        table.add_column("after", overflow="fold")
        table.add_column("because", overflow="fold")
        for point in cuts.refused:
            table.add_row(escape(point.after), escape(point.reason))
        console.print(table)
    elif cuts.refused:
        console.print(f"{len(cuts.refused)} other positions are refused; --refused says why")


def print_plan(console: Console, plan: Plan) -> None:
    """Prints the stages of a plan with bars of load, the prediction, and the bound."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage", justify="right")
    table.add_column("device", overflow="fold")
    table.add_column("up to", overflow="fold")
    table.add_column("compute", justify="right", no_wrap=True)
    table.add_column("load", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    table.add_column("sends", justify="right", no_wrap=True)
    slowest = max(stage.compute_s for stage in plan.stages) or 1.0
    for stage in plan.stages:
        table.add_row(
            str(stage.index),
            escape(stage.device),
            escape(stage.last),
            format_seconds(stage.compute_s),
            bar(stage.compute_s / slowest, 12),
            format_bytes(stage.weight_bytes),
            format_bytes(stage.output_bytes_per_sample * plan.micro_batch),
        )
    console.print(table)
    rows = "row" if plan.micro_batch == 1 else f"{plan.micro_batch} rows"
    console.print(
        f"predicted: {format_seconds(plan.period_s)} per {rows} in steady state "
        f"({plan.rows_per_s:.4g} rows/s), {format_seconds(plan.latency_s)} for one alone"
    )
    proof = (
        "proven the best" if plan.is_proven else f"at most {plan.gap:.2%} above the best possible"
    )
    console.print(f"bound: {format_seconds(plan.bound_s)} ({plan.bound_by}); {proof}")
    for note in plan.notes:
        console.print(f"note: {escape(note)}")


def print_checks(console: Console, checks: Sequence[tuple[str, bool, str]]) -> None:
    """Prints the outcome of every check: name, whether it holds, detail."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, ok, detail in checks:
        table.add_row(name, "[green]ok[/]" if ok else "[red]FAILED[/]", escape(detail))
    console.print(table)


def print_answers(
    console: Console, names: Sequence[str], tops: Sequence[Sequence[tuple[str, float]]]
) -> None:
    """Prints the most likely labels of every row."""
    table = Table(box=None, pad_edge=False)
    table.add_column("input", overflow="fold")
    table.add_column("label", overflow="fold")
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("then", overflow="fold")
    short = [name.rpartition("/")[2] for name in names]
    labels = short if len(set(short)) == len(set(names)) else names
    for name, top in zip(labels, tops, strict=True):
        if not top:
            table.add_row(escape(name), "", "", "")
            continue
        best, *others = top
        rest = ", ".join(f"{label} {score:.3f}" for label, score in others[:2])
        table.add_row(escape(name), escape(best[0]), f"{best[1]:.3f}", escape(rest))
    console.print(table)
