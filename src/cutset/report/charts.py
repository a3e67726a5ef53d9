"""The report's drawings as Vega-Lite specifications, made with Altair (extra ``cutset[report]``).

The same specifications go into the page, into notebooks and into files. Text takes the page's
colour, so that a drawing fits light and dark. Nothing here decides what is true: rows come in
finished from the other modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt

from cutset.report.timeline import TimelinePicture

Spec: TypeAlias = dict[str, Any]
Rows: TypeAlias = Sequence[Mapping[str, Any]]

STAGE_COLOURS = (
    "#7fb8ee", "#f6bd62", "#71cfa6", "#e7a0c6", "#b3a6f0", "#ef9b7d", "#d8d06a", "#a9b7c0",
)  # fmt: skip
"""One for each stage, again from the first after the eighth; black text is readable on all."""

IDLE_COLOUR, CHOSEN_COLOUR, QUIET_COLOUR, BOUND_COLOUR = "#d64550", "#d64550", "#8b96a0", "#3987d6"
_STRIP_TOP, _STRIP_BOTTOM, _REFUSED_AT = 150, 232, 246
_LABEL_WIDTH = 96


def theme(ink: str, quiet: str, background: str | None = None) -> Spec:
    """The look of all drawings.

    Args:
        ink: colour of text.
        quiet: colour of axes and grids.
        background: of the whole drawing; none where it lies on a page.
    """
    axis = {
        "labelColor": ink,
        "titleColor": ink,
        "gridColor": quiet,
        "domainColor": quiet,
        "tickColor": quiet,
        "titleFontWeight": "normal",
        "labelFontSize": 11,
        "titleFontSize": 12,
        "gridOpacity": 0.5,
    }
    return {
        "font": "system-ui, Liberation Sans, sans-serif",
        "background": background,
        "view": {"stroke": None},
        "axis": axis,
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "orient": "bottom",
            "title": None,
            "labelFontSize": 11,
            "symbolStrokeWidth": 2,
            "labelLimit": 200,
        },
        "text": {"color": ink},
        "title": {"color": ink, "anchor": "start", "fontWeight": "normal", "fontSize": 13},
    }


def _data(name: str, rows: Rows) -> alt.InlineData:
    return alt.InlineData(values=[dict(row) for row in rows], name=name)


def _finish(chart: Any, description: str, height: int) -> Spec:
    spec: Spec = chart.properties(
        width="container",
        height=height,
        description=description,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    ).to_dict(validate=True)
    spec.pop("config", None)
    return spec


def _stage_scale(num_stages: int) -> alt.Scale:
    colours = [STAGE_COLOURS[k % len(STAGE_COLOURS)] for k in range(num_stages)]
    return alt.Scale(domain=list(range(num_stages)), range=colours)


def strip_chart(
    parts: Rows, cuts: Rows, refused: Rows, num_stages: int, *, unit: str = "time in ms"
) -> Spec:
    """The model as a strip: width is time, colour the stage; ticks above are candidate cuts.

    Args:
        parts: rows of `strip_rows`.
        cuts: rows of `strip_rows`.
        refused: rows of `strip_rows`.
        num_stages: the most that any plan shown in it has.
        unit: of the width.
    """
    at = alt.X("at:Q")
    time = alt.Axis(title=unit, tickCount=6, grid=False, offset=22)
    strip = alt.Chart(_data("parts", parts)).encode(
        x=alt.X("begin:Q", axis=time, scale=alt.Scale(nice=False)),
        x2="end:Q",
        y=alt.value(_STRIP_TOP),
        y2=alt.value(_STRIP_BOTTOM),
    )
    boxes = strip.mark_rect(stroke="#3a444d", strokeWidth=0.7).encode(
        color=alt.Color("stage:O", scale=_stage_scale(num_stages), legend=None),
        tooltip=[
            alt.Tooltip("part:N", title="up to"),
            alt.Tooltip("stage:O", title="stage"),
            alt.Tooltip("contents:N", title="holds"),
            alt.Tooltip("shape:N", title="returns"),
            alt.Tooltip("milliseconds:Q", title="ms", format=".4~g"),
            alt.Tooltip("flops:Q", title="multiply-adds", format=".3~s"),
            alt.Tooltip("parameters:Q", title="parameters", format=",d"),
        ],
    )
    width = "abs(scale('x', datum.end) - scale('x', datum.begin))"
    names = (
        alt.Chart(_data("parts", parts))
        .transform_calculate(middle="(datum.begin + datum.end) / 2")
        .mark_text(
            angle=270,
            fontSize=10,
            color="#12181d",
            limit=_STRIP_BOTTOM - _STRIP_TOP - 6,
            opacity=alt.ExprRef(f"{width} < 12 ? 0 : 1"),
        )
        .encode(x="middle:Q", y=alt.value((_STRIP_TOP + _STRIP_BOTTOM) / 2), text="part:N")
    )
    height = alt.Y(
        "bytes:Q",
        title="bytes a row",
        scale=alt.Scale(type="sqrt", range=[_STRIP_TOP - 6, 18], zero=True),
        axis=alt.Axis(format=".2~s", tickCount=4, minExtent=44, titleY=78),
    )
    tick = alt.Chart(_data("cuts", cuts)).encode(
        x=at,
        y=height,
        color=alt.condition("datum.chosen", alt.value(CHOSEN_COLOUR), alt.value(QUIET_COLOUR)),
        size=alt.condition("datum.chosen", alt.value(3), alt.value(1.5)),
    )
    hover = [
        alt.Tooltip("after:N", title="cut after"),
        alt.Tooltip("kind:N", title="kind"),
        alt.Tooltip("shape:N", title="tensor"),
        alt.Tooltip("bytes:Q", title="bytes a row", format=",d"),
        alt.Tooltip("chosen:N", title="chosen"),
    ]
    heads = tick.mark_point(filled=True, opacity=1, shape="circle").encode(
        size=alt.condition("datum.chosen", alt.value(90), alt.value(34)),
        tooltip=hover,
    )
    through = (
        alt.Chart(_data("cuts", cuts))
        .mark_rule(color=CHOSEN_COLOUR)
        .encode(
            x=at,
            y=alt.value(_STRIP_TOP - 6),
            y2=alt.value(_STRIP_BOTTOM + 4),
            size=alt.condition("datum.chosen", alt.value(3), alt.value(0)),
            tooltip=hover,
        )
    )
    crosses = (
        alt.Chart(_data("refused", refused))
        .mark_tick(color=QUIET_COLOUR, thickness=1.5, height=8)
        .encode(
            x=at,
            y=alt.value(_REFUSED_AT),
            tooltip=[
                alt.Tooltip("after:N", title="not after"),
                alt.Tooltip("reason:N", title="because"),
            ],
        )
    )
    layers = [boxes, names]
    if cuts:
        layers += [tick.mark_rule().encode(y2=alt.datum(0), tooltip=hover), heads, through]
    if refused:
        layers.append(crosses)
    return _finish(
        alt.layer(*layers),
        "The model as a strip of parts: width is time, colour the stage, each tick above a "
        "candidate cut with its bytes; marks below are refused places",
        _REFUSED_AT + 6,
    )


def load_chart(rows: Rows, period_ms: float, bound_ms: float | None, num_stages: int) -> Spec:
    """What every stage computes, receives and sends, against the period and the bound, if any.

    Args:
        rows: of `load_rows`; those without a time are the headings of their stage.
        period_ms: of the plan.
        bound_ms: that no plan can be below; None where it is not one of the period.
        num_stages: of the plan.
    """
    named = "split(datum.label, ':')"
    bars = (
        alt.Chart(_data("loads", rows))
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
                    labelLimit=_LABEL_WIDTH,
                    minExtent=_LABEL_WIDTH,
                    grid=False,
                    ticks=False,
                ),
            ),
            x=alt.X("milliseconds:Q", title="ms per micro-batch", axis=alt.Axis(tickCount=6)),
            color=alt.Color("index:O", scale=_stage_scale(num_stages), legend=None),
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
        alt.Chart(_data("lines", lines))
        .mark_rule(strokeWidth=2.5)
        .encode(
            x="ms:Q",
            stroke=alt.Stroke("line:N", scale=look, legend=alt.Legend()),
            strokeDash=alt.StrokeDash("line:N", scale=dashes, legend=alt.Legend()),
            tooltip=[alt.Tooltip("line:N"), alt.Tooltip("ms:Q", format=".4~g")],
        )
    )
    return _finish(
        alt.layer(bars, rules),
        "Computing and sending of every stage against the period and the bound",
        20 * len(rows),
    )


def memory_chart(rows: Rows, num_stages: int) -> Spec:
    """Memory that each stage needs; a tick where its device ends."""
    base = alt.Chart(_data("memory", rows)).encode(y=_labelled("stage:N"))
    bars = base.mark_bar(stroke="#3a444d", strokeWidth=0.5, height=20).encode(
        x=alt.X("MiB:Q", title="MiB", axis=alt.Axis(tickCount=6)),
        color=alt.Color("index:O", scale=_stage_scale(num_stages), legend=None),
        tooltip=[alt.Tooltip("stage:N"), alt.Tooltip("MiB:Q", title="needs MiB", format=",.1f")],
    )
    height = max(60, 32 * num_stages)
    if all(row["limit"] is None for row in rows):
        return _finish(bars, "Memory of every stage", height)
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
    return _finish(alt.layer(bars, limits), "Memory of every stage against its limit", height)


def devices_chart(rows: Rows) -> Spec:
    """Throughput by number of stages."""
    chart = (
        alt.Chart(_data("devices", rows))
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
    return _finish(chart, "Throughput with fewer and more devices", max(60, 32 * len(rows)))


def _labelled(field: str) -> alt.Y:
    return alt.Y(
        field,
        title=None,
        sort=None,
        axis=alt.Axis(labelLimit=_LABEL_WIDTH, minExtent=_LABEL_WIDTH, grid=False),
    )


def front_chart(rows: Rows, groups: Sequence[str]) -> Spec:
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
    base = alt.Chart(_data("plans", rows))
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
    return _finish(alt.layer(line, chosen, points), "Latency against throughput of plans", 300)


def _around(values: Sequence[float]) -> list[float]:
    """A domain with room on both sides, also where all values are the same."""
    low, high = min(values), max(values)
    room = max(0.08 * (high - low), 0.05 * high)
    return [max(0.0, low - room), high + room]


def timeline_chart(picture: TimelinePicture, domain_ms: float, num_stages: int) -> Spec:
    """Micro-batches over stages and links; the framed stretches are bubbles.

    Args:
        picture: what to draw.
        domain_ms: end of the axis, so that two drawings can be compared.
        num_stages: of the plan.
    """
    rows = [
        {
            "resource": bar.resource,
            "kind": bar.kind,
            "stage": int(bar.resource.split()[1]) if bar.resource.startswith("stage") else -1,
            "number": bar.micro_batch,
            "begin": bar.start_s * 1e3,
            "end": bar.stop_s * 1e3,
            "milliseconds": (bar.stop_s - bar.start_s) * 1e3,
            "even": bar.micro_batch % 2 == 0,
        }
        for bar in picture.bars
    ]
    base = alt.Chart(_data("bars", rows)).encode(
        y=alt.Y(
            "resource:N",
            title=None,
            sort=list(picture.resources),
            scale=alt.Scale(domain=list(picture.resources), paddingInner=0.25),
            axis=alt.Axis(grid=False, minExtent=_LABEL_WIDTH, labelLimit=_LABEL_WIDTH),
        ),
        x=alt.X(
            "begin:Q",
            title="ms",
            scale=alt.Scale(domain=[0, domain_ms], nice=False),
            axis=alt.Axis(tickCount=6),
        ),
        x2="end:Q",
        tooltip=[
            alt.Tooltip("resource:N"),
            alt.Tooltip("kind:N"),
            alt.Tooltip("number:Q", title="micro-batch"),
            alt.Tooltip("begin:Q", title="from ms", format=".4~g"),
            alt.Tooltip("milliseconds:Q", title="for ms", format=".4~g"),
        ],
    )
    idle = (
        base.transform_filter("datum.kind === 'idle'")
        .mark_bar(
            fillOpacity=0.12, fill=IDLE_COLOUR, stroke=IDLE_COLOUR, strokeDash=[3, 3], strokeWidth=1
        )
        .encode(
            tooltip=[
                alt.Tooltip("resource:N", title="nothing to do on"),
                alt.Tooltip("begin:Q", title="from ms", format=".4~g"),
                alt.Tooltip("milliseconds:Q", title="for ms", format=".4~g"),
            ]
        )
    )
    sending = base.transform_filter("datum.kind === 'transfer'").mark_bar(
        color=QUIET_COLOUR, stroke="#3a444d", strokeWidth=0.5
    )
    computing = (
        base.transform_filter("datum.kind === 'compute'")
        .mark_bar(stroke="#3a444d", strokeWidth=0.7)
        .encode(
            color=alt.Color("stage:O", scale=_stage_scale(num_stages), legend=None),
            opacity=alt.condition("datum.even", alt.value(1.0), alt.value(0.7)),
        )
    )
    width = "abs(scale('x', datum.end) - scale('x', datum.begin))"
    numbers = (
        alt.Chart(_data("bars", rows))
        .transform_filter("datum.kind === 'compute'")
        .transform_calculate(middle="(datum.begin + datum.end) / 2")
        .mark_text(fontSize=10, color="#12181d", opacity=alt.ExprRef(f"{width} < 16 ? 0 : 1"))
        .encode(x="middle:Q", y=alt.Y("resource:N", sort=list(picture.resources)), text="number:Q")
    )
    kinds = {"idle": idle, "transfer": sending, "compute": computing}
    layers = [kinds[kind] for kind in kinds if any(row["kind"] == kind for row in rows)]
    return _finish(
        alt.layer(*layers, numbers),
        "Micro-batches over stages and links; framed stretches are bubbles",
        30 * len(picture.resources) + 6,
    )
