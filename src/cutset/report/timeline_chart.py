"""The drawing of micro-batches over stages and links."""

from __future__ import annotations

import altair as alt

from cutset.report.style import (
    IDLE_COLOUR,
    LABEL_WIDTH,
    QUIET_COLOUR,
    Spec,
    finished,
    named_rows,
    stage_scale,
)
from cutset.report.timeline_bars import TimelinePicture


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
            "stage": bar.stage if bar.resource.startswith("stage") else -1,
            "number": bar.microbatch_index,
            "begin": bar.start_s * 1e3,
            "end": bar.stop_s * 1e3,
            "milliseconds": (bar.stop_s - bar.start_s) * 1e3,
            "even": bar.microbatch_index % 2 == 0,
        }
        for bar in picture.bars
    ]
    base = alt.Chart(named_rows("bars", rows)).encode(
        y=alt.Y(
            "resource:N",
            title=None,
            sort=list(picture.resources),
            scale=alt.Scale(domain=list(picture.resources), paddingInner=0.25),
            axis=alt.Axis(grid=False, minExtent=LABEL_WIDTH, labelLimit=LABEL_WIDTH),
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
            color=alt.Color("stage:O", scale=stage_scale(num_stages), legend=None),
            opacity=alt.condition("datum.even", alt.value(1.0), alt.value(0.7)),
        )
    )
    width = "abs(scale('x', datum.end) - scale('x', datum.begin))"
    numbers = (
        alt.Chart(named_rows("bars", rows))
        .transform_filter("datum.kind === 'compute'")
        .transform_calculate(middle="(datum.begin + datum.end) / 2")
        .mark_text(fontSize=10, color="#12181d", opacity=alt.ExprRef(f"{width} < 16 ? 0 : 1"))
        .encode(x="middle:Q", y=alt.Y("resource:N", sort=list(picture.resources)), text="number:Q")
    )
    kinds = {"idle": idle, "transfer": sending, "compute": computing}
    layers = [kinds[kind] for kind in kinds if any(row["kind"] == kind for row in rows)]
    return finished(
        alt.layer(*layers, numbers),
        "Micro-batches over stages and links; framed stretches are bubbles",
        30 * len(picture.resources) + 6,
    )
