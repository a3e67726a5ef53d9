"""The drawing of a model as a strip; rows come in finished from `cutset.report.strip`."""

from __future__ import annotations

import altair as alt

from cutset.report.style import (
    CHOSEN_COLOUR,
    QUIET_COLOUR,
    ChartRows,
    Spec,
    finished,
    named_rows,
    stage_scale,
)

_TOP, _BOTTOM, _REFUSED_AT = 150, 232, 246


def strip_chart(
    parts: ChartRows,
    cuts: ChartRows,
    refused: ChartRows,
    num_stages: int,
    *,
    unit: str = "time in ms",
) -> Spec:
    """The model as a strip: width is time, colour the stage; ticks above are candidate cuts.

    Args:
        parts: rows of `strip_rows`.
        cuts: rows of `strip_rows`.
        refused: rows of `strip_rows`.
        num_stages: the most that any plan shown in it has.
        unit: of the width.
    """
    layers = _boxes(parts, num_stages, unit)
    if cuts:
        layers += _ticks(cuts)
    if refused:
        layers.append(_crosses(refused))
    return finished(
        alt.layer(*layers),
        "The model as a strip of parts: width is time, colour the stage, each tick above a "
        "candidate cut with its bytes; marks below are refused places",
        _REFUSED_AT + 6,
    )


def _boxes(parts: ChartRows, num_stages: int, unit: str) -> list[alt.Chart]:
    """The parts, with their names where there is room."""
    time = alt.Axis(title=unit, tickCount=6, grid=False, offset=22)
    strip = alt.Chart(named_rows("parts", parts)).encode(
        x=alt.X("begin:Q", axis=time, scale=alt.Scale(nice=False)),
        x2="end:Q",
        y=alt.value(_TOP),
        y2=alt.value(_BOTTOM),
    )
    boxes = strip.mark_rect(stroke="#3a444d", strokeWidth=0.7).encode(
        color=alt.Color("stage:O", scale=stage_scale(num_stages), legend=None),
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
        alt.Chart(named_rows("parts", parts))
        .transform_calculate(middle="(datum.begin + datum.end) / 2")
        .mark_text(
            angle=270,
            fontSize=10,
            color="#12181d",
            limit=_BOTTOM - _TOP - 6,
            opacity=alt.ExprRef(f"{width} < 12 ? 0 : 1"),
        )
        .encode(x="middle:Q", y=alt.value((_TOP + _BOTTOM) / 2), text="part:N")
    )
    return [boxes, names]


def _ticks(cuts: ChartRows) -> list[alt.Chart]:
    """The candidate cuts, as high as their bytes; the chosen ones go through the strip."""
    height = alt.Y(
        "bytes:Q",
        title="bytes a row",
        scale=alt.Scale(type="sqrt", range=[_TOP - 6, 18], zero=True),
        axis=alt.Axis(format=".2~s", tickCount=4, minExtent=44, titleY=78),
    )
    tick = alt.Chart(named_rows("cuts", cuts)).encode(
        x="at:Q",
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
        alt.Chart(named_rows("cuts", cuts))
        .mark_rule(color=CHOSEN_COLOUR)
        .encode(
            x="at:Q",
            y=alt.value(_TOP - 6),
            y2=alt.value(_BOTTOM + 4),
            size=alt.condition("datum.chosen", alt.value(3), alt.value(0)),
            tooltip=hover,
        )
    )
    return [tick.mark_rule().encode(y2=alt.datum(0), tooltip=hover), heads, through]


def _crosses(refused: ChartRows) -> alt.Chart:
    """The refused places below the strip."""
    return (
        alt.Chart(named_rows("refused", refused))
        .mark_tick(color=QUIET_COLOUR, thickness=1.5, height=8)
        .encode(
            x="at:Q",
            y=alt.value(_REFUSED_AT),
            tooltip=[
                alt.Tooltip("after:N", title="not after"),
                alt.Tooltip("reason:N", title="because"),
            ],
        )
    )
