"""The report's drawings as Vega-Lite specifications, made with Altair (extra ``cutset[report]``).

The same specifications go into the page, into notebooks and into files. Text takes the page's
colour, so that a drawing fits light and dark. Nothing here decides what is true: rows come in
finished from the other modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from cutset.report.style import (
    BOUND_COLOUR,
    CHOSEN_COLOUR,
    LABEL_WIDTH,
    QUIET_COLOUR,
    STAGE_COLOURS,
    ChartRows,
    Spec,
    finished,
    named_rows,
    stage_scale,
)


def load_chart(rows: ChartRows, period_ms: float, bound_ms: float | None, num_stages: int) -> Spec:
    """What stages compute, receive and send, and ports and media, against period and bound, if any.

    Args:
        rows: of `load_rows`; those without a time are the headings of their stage.
        period_ms: of the plan.
        bound_ms: that no plan can be below; None where it is not one of the period.
        num_stages: of the plan.
    """
    named = "split(datum.label, ':')"
    bars = (
        alt.Chart(named_rows("loads", rows))
        .mark_bar(stroke="#3a444d", strokeWidth=0.5)
        .encode(
            y=alt.Y(
                "line:N",
                title=None,
                sort=None,
                scale=alt.Scale(domain=[row["line"] for row in rows], paddingInner=0.2),
                axis=alt.Axis(
                    labelExpr=f"slice(datum.label, length({named}[0]) + 1)",
                    labelFontWeight=alt.condition(
                        f"indexof({named}[0], 'h') >= 0", alt.value("bold"), alt.value("normal")
                    ),
                    labelLimit=LABEL_WIDTH,
                    minExtent=LABEL_WIDTH,
                    grid=False,
                    ticks=False,
                ),
            ),
            x=alt.X("milliseconds:Q", title="ms per micro-batch", axis=alt.Axis(tickCount=6)),
            color=alt.condition(
                "isValid(datum.index)",
                alt.Color("index:O", scale=stage_scale(num_stages), legend=None),
                alt.value(QUIET_COLOUR),
            ),
            fillOpacity=alt.condition("datum.what === 'computes'", alt.value(1.0), alt.value(0.5)),
            tooltip=[
                alt.Tooltip("stage:N"),
                alt.Tooltip("what:N"),
                alt.Tooltip("milliseconds:Q", title="ms", format=".4~g"),
            ],
        )
    )
    lines: list[dict[str, Any]] = [{"line": "period", "ms": period_ms}]
    if bound_ms is not None:
        lines.append({"line": "bound", "ms": bound_ms})
    look = alt.Scale(domain=[x["line"] for x in lines], range=[CHOSEN_COLOUR, BOUND_COLOUR])
    dashes = alt.Scale(domain=[x["line"] for x in lines], range=[[1, 0], [6, 6]])
    # Where both are the same, the dashes lie on the line, and both are seen.
    rules = (
        alt.Chart(named_rows("lines", lines))
        .mark_rule(strokeWidth=2.5)
        .encode(
            x="ms:Q",
            stroke=alt.Stroke("line:N", scale=look, legend=alt.Legend()),
            strokeDash=alt.StrokeDash("line:N", scale=dashes, legend=alt.Legend()),
            tooltip=[alt.Tooltip("line:N"), alt.Tooltip("ms:Q", format=".4~g")],
        )
    )
    return finished(
        alt.layer(bars, rules),
        "Computing and sending of every stage against the period and the bound",
        20 * len(rows),
    )


def memory_chart(rows: ChartRows, num_stages: int) -> Spec:
    """Memory that each stage needs; a tick where its device ends."""
    base = alt.Chart(named_rows("memory", rows)).encode(y=_labelled("stage:N"))
    bars = base.mark_bar(stroke="#3a444d", strokeWidth=0.5, height=20).encode(
        x=alt.X("MiB:Q", title="MiB", axis=alt.Axis(tickCount=6)),
        color=alt.Color("index:O", scale=stage_scale(num_stages), legend=None),
        tooltip=[alt.Tooltip("stage:N"), alt.Tooltip("MiB:Q", title="needs MiB", format=",.1f")],
    )
    height = max(60, 32 * num_stages)
    if all(row["limit"] is None for row in rows):
        return finished(bars, "Memory of every stage", height)
    limits = (
        base.transform_filter("isValid(datum.limit)")
        .mark_tick(color=CHOSEN_COLOUR, opacity=1, thickness=3, height=26)
        .encode(
            x="limit:Q",
            tooltip=[
                alt.Tooltip("stage:N"),
                alt.Tooltip("limit:Q", title="limit MiB", format=",.1f"),
            ],
        )
    )
    return finished(alt.layer(bars, limits), "Memory of every stage against its limit", height)


def devices_chart(rows: ChartRows) -> Spec:
    """Throughput by number of stages."""
    chart = (
        alt.Chart(named_rows("devices", rows))
        .mark_bar(height=20, stroke="#3a444d", strokeWidth=0.5)
        .encode(
            y=_labelled("label:N"),
            x=alt.X("rows_per_s:Q", title="rows a second", axis=alt.Axis(tickCount=6)),
            color=alt.condition("datum.this", alt.value(STAGE_COLOURS[0]), alt.value(QUIET_COLOUR)),
            tooltip=[
                alt.Tooltip("label:N", title="plan"),
                alt.Tooltip("rows_per_s:Q", title="rows/s", format=".4~g"),
                alt.Tooltip("latency_ms:Q", title="latency in ms", format=".4~g"),
            ],
        )
    )
    return finished(chart, "Throughput with fewer and more devices", max(60, 32 * len(rows)))


def _labelled(field: str) -> alt.Y:
    return alt.Y(
        field,
        title=None,
        sort=None,
        axis=alt.Axis(labelLimit=LABEL_WIDTH, minExtent=LABEL_WIDTH, grid=False),
    )


def front_chart(rows: ChartRows, groups: Sequence[str]) -> Spec:
    """Latency against throughput of every plan; those of the front are joined by a line.

    Args:
        rows: key, group, label, latency_ms, rows_per_s, stages, size; a row for each plan.
        groups: in the order of the legend.
    """
    shapes = ["diamond", "circle", "square", "triangle-up", "triangle-down", "cross"]
    colours = [CHOSEN_COLOUR, "#3987d6", "#8b96a0", "#c7801d", "#2f9e6e", "#b0529a"]
    x = alt.X(
        "latency_ms:Q",
        title="latency of one alone, ms (less is better)",
        scale=alt.Scale(domain=_around([row["latency_ms"] for row in rows]), nice=False),
        axis=alt.Axis(tickCount=5, labelOverlap=True),
    )
    y = alt.Y(
        "rows_per_s:Q",
        title="rows a second (more is better)",
        scale=alt.Scale(domain=_around([row["rows_per_s"] for row in rows]), nice=False),
        axis=alt.Axis(tickCount=5, minExtent=44),
    )
    base = alt.Chart(named_rows("plans", rows))
    line = (
        base.transform_filter("datum.group === 'front'")
        .mark_line(interpolate="step-after", color=colours[1], strokeWidth=1.5, opacity=0.7)
        .encode(x=x, y=y, order="latency_ms:Q")
    )
    # Plans that coincide are drawn around each other, so that each is seen and can be clicked;
    # what is see-through catches clicks too.
    points = base.mark_point(
        filled=False, fill="transparent", strokeWidth=2.5, opacity=1, cursor="pointer"
    ).encode(
        x=x,
        y=y,
        shape=alt.Shape("group:N", scale=alt.Scale(domain=list(groups), range=shapes)),
        size=alt.Size("size:Q", scale=None),
        color=alt.Color(
            "group:N",
            scale=alt.Scale(domain=list(groups), range=colours),
            legend=alt.Legend(columns=alt.ExprRef("width < 480 ? 1 : 3"), symbolSize=90),
        ),
        tooltip=[
            alt.Tooltip("label:N", title="plan"),
            alt.Tooltip("group:N", title="kind"),
            alt.Tooltip("stages:Q"),
            alt.Tooltip("latency_ms:Q", title="latency in ms", format=".4~g"),
            alt.Tooltip("rows_per_s:Q", title="rows/s", format=".4~g"),
            alt.Tooltip("cuts:N", title="cut after"),
        ],
    )
    chosen = (
        base.transform_filter("datum.shown")
        .mark_point(
            size=2200, strokeWidth=1.5, strokeDash=[4, 3], color=CHOSEN_COLOUR, filled=False
        )
        .encode(x=x, y=y)
    )
    return finished(alt.layer(line, chosen, points), "Latency against throughput of plans", 300)


def _around(values: Sequence[float]) -> list[float]:
    """A domain with room on both sides, also where all values are the same."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 0.05 * high)
    return [max(0.0, low - room), high + room]
