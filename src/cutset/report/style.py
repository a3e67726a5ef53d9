"""What all drawings have in common: colours, look, and how a specification is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import altair as alt

Spec: TypeAlias = dict[str, Any]
ChartRows: TypeAlias = Sequence[Mapping[str, Any]]

STAGE_COLOURS = (
    "#7fb8ee", "#f6bd62", "#71cfa6", "#e7a0c6", "#b3a6f0", "#ef9b7d", "#d8d06a", "#a9b7c0",
)  # fmt: skip
"""One for each stage, again from the first after the eighth; black text is readable on all."""

IDLE_COLOUR, CHOSEN_COLOUR, QUIET_COLOUR, BOUND_COLOUR = "#d64550", "#d64550", "#8b96a0", "#3987d6"
LABEL_WIDTH = 96
"""Of the names beside a chart's lines, in pixels."""


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


def named_rows(name: str, rows: ChartRows) -> alt.InlineData:
    """The rows under a name by which the page can exchange them."""
    return alt.InlineData(values=[dict(row) for row in rows], name=name)


def finished(chart: Any, description: str, height: int) -> Spec:
    """The specification of a chart as wide as what holds it, without a look of its own.

    Args:
        chart: of Altair.
        description: for those who cannot see it.
        height: in pixels.
    """
    spec: Spec = chart.properties(
        width="container",
        height=height,
        description=description,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    ).to_dict(validate=True)
    spec.pop("config", None)
    return spec


def stage_scale(num_stages: int) -> alt.Scale:
    """A colour for each stage."""
    colours = [STAGE_COLOURS[k % len(STAGE_COLOURS)] for k in range(num_stages)]
    return alt.Scale(domain=list(range(num_stages)), range=colours)
