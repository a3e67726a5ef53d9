"""Tables for the terminal; readable at 80 columns, without colour and in a pipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from msgspec import UNSET
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from cutset.bundles.manifest import PartEntry
from cutset.codecs.known_codecs import NONE
from cutset.costs.profile import Profile, Timing
from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph
from cutset.planning.plan import (
    Alternative,
    Copies,
    Expected,
    MoreTensors,
    Plan,
    SizeTried,
    in_shares,
)
from cutset.planning.plan_messages import PlannedMessage
from cutset.printable import printable


class PlainConsole(Console):
    """A console that shows control characters in names and labels instead of obeying them."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Turns a string into text; every string that is printed comes by, in tables too."""
        return super().render_str(printable(text), **options)


BAR_WIDTH = 20
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_KIND_STYLES = {"block": "cyan", "pool": "green", "activation": "yellow", "head": "magenta"}
_STAGE_STYLES = ("cyan", "yellow", "green", "magenta", "blue", "red")


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
            f"[{_KIND_STYLES[point.kind]}]{point.kind}[/]",
            shapes,
            format_bytes(point.bytes_per_sample),
            f"[{_KIND_STYLES[point.kind]}]{bar(share, 12)}[/]",
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


def _stage_style(index: int) -> str:
    """The colour of a stage, where there are colours."""
    return _STAGE_STYLES[index % len(_STAGE_STYLES)]


def print_plan(console: Console, plan: Plan) -> None:
    """Prints the stages of a plan with bars of load, the prediction, and the bound."""
    table = Table(box=None, pad_edge=False)
    table.add_column("stage", justify="right")
    table.add_column("device", overflow="fold")
    table.add_column("up to", overflow="fold")
    table.add_column("compute", justify="right", no_wrap=True)
    with_overhead = any(stage.overhead_s for stage in plan.stages)
    if with_overhead:
        table.add_column("overhead", justify="right", no_wrap=True)
    table.add_column("load", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    table.add_column("sends", justify="right", no_wrap=True)
    slowest = max(stage.busy_s for stage in plan.stages) or 1.0
    for stage in plan.stages:
        table.add_row(
            str(stage.index),
            escape(stage.where),
            escape(stage.last),
            format_seconds(stage.compute_s),
            *([format_seconds(stage.overhead_s)] if with_overhead else []),
            f"[{_stage_style(stage.index)}]{bar(stage.busy_s / slowest, 12)}[/]",
            format_bytes(stage.weight_bytes),
            format_bytes(stage.travelling_bytes * plan.micro_batch),
        )
    console.print(table)
    rows = "row" if plan.micro_batch == 1 else f"{plan.micro_batch} rows"
    console.print(
        f"predicted: {format_seconds(plan.period_s)} per {rows} in steady state "
        f"({plan.rows_per_s:.4g} rows/s), {format_seconds(plan.latency_s)} for one alone"
    )
    if plan.sizes:
        console.print(f"micro-batch of {rows}, of {', '.join(map(_size, plan.sizes))}")
    for line in (*_codecs(plan), *_messages(plan)):
        console.print(line)
    console.print(f"limited by: {escape(plan.bottleneck)}")
    if plan.expected is not None:
        console.print(_expected(plan.expected, rows))
    console.print(f"bound: {format_seconds(plan.bound_s)} ({escape(plan.bound_by)}); {plan.claim}")
    for line in _beside(plan):
        console.print(line)
    if plan.unused_devices:
        console.print(f"not used: {escape(', '.join(plan.unused_devices))}")
    if plan.more_tensors is not None:
        console.print(_more_tensors(plan, plan.more_tensors))
    for note in plan.notes:
        console.print(f"note: {escape(note)}")


def _codecs(plan: Plan) -> Iterator[str]:
    """Each codec of a plan: its bytes, and what it takes at both ends, in a line."""
    if plan.input_codec != NONE:
        num_bytes = (plan.input_bytes_per_sample or 0) * plan.micro_batch
        yield (
            f"images travel as {format_bytes(num_bytes)} {escape(plan.input_codec)}; stage 0 makes"
            f" rows of them in {format_seconds(plan.stages[0].decode_s)} (in the overheads)"
        )
    for stage, after in pairwise(plan.stages):
        whole, sent = (
            format_bytes(row_bytes * plan.micro_batch)
            for row_bytes in (stage.output_bytes_per_sample, stage.travelling_bytes)
        )
        if stage.codec != NONE:
            yield (
                f"stage {stage.index} writes {whole} as {sent} {escape(stage.codec)} in"
                f" {format_seconds(stage.encode_s)}, read in {format_seconds(after.decode_s)} (in"
                " the overheads)"
            )


def _messages(plan: Plan) -> Iterator[str]:
    """Each message of a plan, in a line; none where none takes time."""
    if any(message.seconds for message in plan.messages):
        yield from map(_message, plan.messages)


def _expected(expected: Expected, rows: str) -> str:
    """What a plan takes with more than the planner's sums, in a line."""
    period = f"{format_seconds(expected.period_s)} per {rows}"
    alone = f"{format_seconds(expected.latency_s)} for one alone"
    if expected.where == "nodes":
        timed = "stages timed on their nodes"
        return f"on the cluster: {period}, {alone}, {timed}, what bytes take included"
    if expected.where == "cluster":
        return f"on the cluster: {period}, {alone}, what bytes take included"
    measured = "its stages measured as wholes, messages and the caller's part included"
    return f"as processes of this machine: {period}, {measured}"


def _size(tried: SizeTried) -> str:
    """What a number of rows would give, in a word: ``4 (31.2 rows/s)``."""
    if tried.rows_per_s is None:
        return f"{tried.micro_batch} (none: {escape(tried.reason)})"
    return f"{tried.micro_batch} ({tried.rows_per_s:.4g} rows/s)"


def _message(message: PlannedMessage) -> str:
    """What goes from one machine to another, and over what, in a line."""
    sender = "caller" if message.after is None else f"stage {message.after}"
    over = f" over {message.limit}" if message.limit else ""
    return (
        f"{sender} sends {format_bytes(message.num_bytes)} from {escape(message.source)} to "
        f"{escape(message.target)} in {format_seconds(message.seconds)}{escape(over)}"
    )


def _more_tensors(plan: Plan, more: MoreTensors) -> str:
    """What letting more tensors across a cut would give, in a sentence."""
    if plan.objective == "latency":
        what, then_s, now_s = "for one alone", more.latency_s, plan.latency_s
    else:
        what, then_s, now_s = "in steady state", more.period_s, plan.period_s
    return (
        f"with --max-tensors {more.max_tensors}: {more.num_points} cut points instead of "
        f"{more.num_points_now}, about {format_seconds(then_s)} {what} ({1 - then_s / now_s:.0%} "
        "less)"
    )


def _beside(plan: Plan) -> Iterator[str]:
    """What other plans would give, a line each."""
    yield from map(_alternative, plan.alternatives)
    if plan.copies is not UNSET:
        yield _copies(plan.copies)


def _copies(copies: Copies) -> str:
    """What the whole model on every device that holds it would give, in a line."""
    if copies.period_s is None or copies.latency_s is None:
        return f"whole copies: {escape(copies.reason)}"
    where = in_shares(zip(copies.devices, copies.shares, strict=True))
    return (
        f"{len(copies.devices)} copies on {escape(where)}: {format_seconds(copies.period_s)} in"
        f" steady state, {format_seconds(copies.latency_s)} for one alone"
    )


def _alternative(alternative: Alternative) -> str:
    """What another number of stages would give, in a line."""
    count = alternative.num_stages
    what = "do not split" if count == 1 else f"{count} stages"
    if alternative.period_s is None or alternative.latency_s is None:
        return f"{what}: {escape(alternative.reason)}"
    where = f" on {escape(alternative.devices[0])}" if count == 1 else ""
    if alternative.groups is not UNSET:
        where = f" on {escape(', '.join(' + '.join(group) for group in alternative.groups))}"
    return (
        f"{what}{where}: {format_seconds(alternative.period_s)} in steady state, "
        f"{format_seconds(alternative.latency_s)} for one alone"
    )


def print_front(console: Console, plans: Sequence[Plan]) -> None:
    """Prints every plan that no other beats in rows per second and latency."""
    table = Table(box=None, pad_edge=False)
    for name in ("rows", "period", "latency", "rows/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("stages end after (on)", overflow="fold")
    for plan in plans:
        stages = ", ".join(f"{stage.last} ({stage.device})" for stage in plan.stages)
        table.add_row(
            str(plan.micro_batch),
            format_seconds(plan.period_s),
            format_seconds(plan.latency_s),
            f"{plan.rows_per_s:.4g}",
            escape(stages),
        )
    console.print(table)


def print_profile(console: Console, profile: Profile) -> None:
    """Prints what every piece of a model cost, backend by backend."""
    backends = list(profile.whole)
    rows = "row" if profile.micro_batch == 1 else f"{profile.micro_batch} rows"
    console.print(
        f"[bold]{escape(profile.model)}[/] on {escape(profile.device)}: seconds per {rows}, "
        f"{profile.num_threads} thread{'s' if profile.num_threads > 1 else ''}"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("piece up to", overflow="fold")
    table.add_column("multiply-adds", justify="right", no_wrap=True)
    for backend in backends:
        table.add_column(escape(backend), justify="right", no_wrap=True)
        table.add_column("10%..90%", justify="right", no_wrap=True)
    for piece in profile.pieces:
        cells = []
        for backend in backends:
            timing = piece.timings[backend]
            cells += [format_seconds(timing.median_s), _spread(timing)]
        table.add_row(escape(piece.last), format_count(piece.flops), *cells)
    total = []
    for timing in profile.whole.values():
        total += [format_seconds(timing.median_s), _spread(timing)]
    table.add_row("[bold]whole model[/]", "", *total)
    console.print(table)
    for size in profile.sizes:
        paces = ", ".join(
            f"{format_seconds(timing.median_s)} with {name}" for name, timing in size.whole.items()
        )
        console.print(f"whole model, {size.micro_batch} rows: {escape(paces)}")


def _spread(timing: Timing) -> str:
    """How far the middle 80% of the runs lie from the median: ``-3% +12%``."""
    if not timing.median_s:
        return ""
    low, high = timing.p10_s / timing.median_s - 1, timing.p90_s / timing.median_s - 1
    return f"{low:+.0%} {high:+.0%}"


def print_bench(console: Console, document: Mapping[str, Any]) -> None:
    """Prints what `cutset bench` measured; `document` is what its ``--json`` prints."""
    period_s = document["period_s"]
    latency = document["latency_s"]
    console.print(
        f"throughput: {document['rows_per_s']:.4g} rows/s, "
        f"a micro-batch every {format_seconds(period_s)}"
    )
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, key in (
        ("predicted", "predicted_period_s"),
        ("slowest stage alone", "slowest_stage_alone_s"),
        ("whole model, one process, as many cores", "whole_model_period_s"),
    ):
        seconds = document[key]
        ratio = f"{period_s / seconds:.2f} times that" if seconds else ""
        table.add_row(f"  {name}", format_seconds(seconds), ratio)
    console.print(table)
    console.print(
        f"latency of one alone: median {format_seconds(latency['p50'])}, 95% under "
        f"{format_seconds(latency['p95'])}, 99% under {format_seconds(latency['p99'])}"
    )
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "backend", "busy", "", "waiting", "sending", "sends a row"):
        table.add_column(name, no_wrap=True)
    for index, stage in enumerate(document["stages"]):
        table.add_row(
            str(index),
            escape(stage["backend"]),
            f"[{_stage_style(index)}]{bar(stage['busy'])}[/]",
            f"{stage['busy']:.0%}",
            f"{stage['waiting']:.0%}",
            f"{stage['sending']:.0%}",
            format_bytes(stage["sent_bytes_per_row"]),
        )
    console.print(table)


def print_part(console: Console, part: PartEntry | None) -> None:
    """Says whose results these are, where a part of a model was split; else nothing."""
    if part is not None:
        console.print(part_in_words(part), soft_wrap=True, markup=False, highlight=False)


def part_in_words(part: PartEntry) -> str:
    """Whose results these are, where a part of a model was split."""
    return (
        f"only a part of the model: {part.path}, {part.work_share:.1%} of its work; the results "
        "are the part's, the rest of the model stays with you (PreparedModel.part_in)"
    )


def print_checks(
    console: Console, checks: Sequence[tuple[str, bool, str]], not_run: Sequence[str] = ()
) -> None:
    """Prints the outcome of every check: name, whether it holds, detail; and what was not run."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, ok, detail in checks:
        table.add_row(escape(name), "[green]ok[/]" if ok else "[red]FAILED[/]", escape(detail))
    console.print(table)
    for sentence in not_run:
        console.print(f"[yellow]not checked[/]: {escape(sentence)}")


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
