"""What a notebook shows for a model, a plan, a bundle, a verification: the same drawings, as SVG.

Needs the extra ``cutset[report]``. Nothing in it runs: a notebook may be read by anyone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from cutset.graph.cuts import CutPoints
from cutset.graph.ir import Graph
from cutset.planning.plan import Plan
from cutset.printable import visible
from cutset.report.compose import build_report
from cutset.report.drawings import make_drawings, svg_of
from cutset.report.sources import ReportSources
from cutset.report.strip import make_strip, strip_rows
from cutset.report.strip_chart import strip_chart
from cutset.report.style import STAGE_COLOURS
from cutset.report.text import format_bytes, format_count, format_seconds

_PLAN_DRAWINGS = ("strip", "load", "predicted")


def model_html(name: str, graph: Graph, cuts: CutPoints) -> str:
    """A captured model as a strip whose width is work: every candidate cut and refused place."""
    strip = make_strip(graph, cuts)
    # No device is known yet: a millisecond stands for a million multiply-adds.
    seconds = [part.flops / 1e9 for part in strip.parts]
    rows = strip_rows(strip, (len(strip.parts),), seconds)
    chart = strip_chart(rows.parts, rows.cuts, rows.refused, 1, unit="million multiply-adds")
    return _render(
        title=name,
        words=(
            f"{format_count(graph.flops)} multiply-adds a row, {len(cuts.units)} units, "
            f"{len(cuts.points)} places where a cut may be, {len(cuts.refused)} refused"
        ),
        drawings=[svg_of(chart)],
    )


def plan_html(
    plan: Plan, name: str = "", graph: Graph | None = None, cuts: CutPoints | None = None
) -> str:
    """A plan: its stages, their load, the first micro-batches; with its model also the parts."""
    report = build_report(ReportSources(plan=plan, model=name, graph=graph, cuts=cuts))
    drawings = make_drawings(report)
    return _render(
        title=f"{name or 'Plan'}: {len(plan.stages)} stage{'s' if len(plan.stages) > 1 else ''}",
        words=(
            f"{format_seconds(plan.period_s)} per micro-batch in steady state, "
            f"{format_seconds(plan.latency_s)} for one alone; {plan.claim}"
        ),
        drawings=[svg_of(drawings[each]) for each in _PLAN_DRAWINGS],
        stages=plan.stages,
    )


def verification_html(
    ok: bool, checks: Sequence[tuple[str, bool, str]], not_run: Sequence[str]
) -> str:
    """A verification: every check with what it found.

    Args:
        ok: whether all passed.
        checks: name, whether it passed, what it found.
        not_run: what was not looked at, in sentences.
    """
    passed = sum(good for _, good, _ in checks)
    verified = "Verified in part" if not_run else "Verified"
    return _render(
        title=verified if ok else "Failed",
        words="; ".join((f"{passed} of {len(checks)} checks passed", *not_run)),
        checks=checks,
    )


def _render(**values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("page")),
        autoescape=True,
        finalize=visible,
    )
    environment.filters |= {"bytes": format_bytes, "seconds": format_seconds}
    # The drawings escape what they show themselves.
    values["drawings"] = [markupsafe.Markup(svg) for svg in values.get("drawings", ())]  # noqa: S704
    return environment.get_template("notebook.html").render(colours=STAGE_COLOURS, **values)
