"""Which drawings a report has, by name: for the page, and as files for papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cutset.errors import CutsetError
from cutset.printable import printable_lines
from cutset.report.alternatives import DEVICES, FRONT, THIS, Candidate
from cutset.report.charts import (
    devices_chart,
    front_chart,
    load_chart,
    memory_chart,
)
from cutset.report.compose import Report
from cutset.report.loads import load_rows, memory_rows
from cutset.report.strip_chart import strip_chart
from cutset.report.style import Spec, theme
from cutset.report.timeline_chart import timeline_chart

LIGHT = theme("#1a2229", "#aab4bd")
DARK = theme("#e6ebef", "#5b6771")
_PAPER = theme("#1a2229", "#aab4bd", "white")
_WIDTH_PIXELS = 900
_POINT_SIZES = (60, 200, 400, 660, 980, 1400)


def make_drawings(report: Report) -> dict[str, Spec]:
    """A Vega-Lite specification for each drawing: strip, load, memory, devices, front, timelines.

    Drawings that have nothing to show are left out.
    """
    plan = report.plan
    num_stages = len(plan.stages)
    drawings = {
        "strip": strip_chart(
            report.rows.parts, report.rows.cuts, report.rows.refused, most_stages(report)
        ),
        "load": load_chart(
            load_rows(report.loads, plan.shared_wires, with_measured=not report.counts_work),
            plan.period_s * 1e3,
            bound_period_ms(report),
            num_stages,
        ),
        "memory": memory_chart(memory_rows(report.loads), num_stages),
    }
    devices = device_rows(report)
    if len(devices) > 1:
        drawings["devices"] = devices_chart(devices)
    rows = front_rows(report)
    if len(rows) > 1:
        groups = list(dict.fromkeys(row["group"] for row in reversed(rows)))
        drawings["front"] = front_chart(rows, groups)
    # On the same scale, unless one of them shows work and the other time.
    predicted_s = report.predicted.total_s
    measured_s = report.measured.total_s if report.measured else 0.0
    if not report.counts_work:
        predicted_s = measured_s = max(predicted_s, measured_s)
    drawings["predicted"] = timeline_chart(report.predicted, predicted_s * 1e3, num_stages)
    if report.measured is not None:
        drawings["measured"] = timeline_chart(report.measured, measured_s * 1e3, num_stages)
    return drawings


def bound_period_ms(report: Report) -> float | None:
    """The bound where it is one of the period; None where latency was planned for."""
    return report.plan.bound_s * 1e3 if report.plan.objective == "throughput" else None


def most_stages(report: Report) -> int:
    """The most stages of any plan that the strip can show."""
    return max(candidate.num_stages for candidate in report.candidates)


def front_rows(report: Report) -> list[dict[str, Any]]:
    """The points of the picture of the front; those that stand for no plan are left out.

    Points that coincide are drawn around each other, the largest first, so that each is seen and
    can be pressed.
    """
    shown = [
        each
        for each in sorted(report.candidates, key=_order)
        if each.latency_s is not None and each.rows_per_s is not None
    ]
    groups = list(dict.fromkeys(each.group for each in shown))
    return [
        {
            "key": each.key,
            "group": each.group,
            "size": _POINT_SIZES[min(groups.index(each.group), len(_POINT_SIZES) - 1)],
            "label": each.label,
            # Rounded, so that sums in another order do not count as another latency.
            "latency_ms": float(f"{each.latency_s * 1e3:.9g}"),
            "rows_per_s": float(f"{each.rows_per_s:.9g}"),
            "stages": each.num_stages,
            "cuts": ", ".join(each.last[:-1]) or "nowhere",
            "shown": each.key == "this",
        }
        for each in reversed(shown)
        if each.latency_s is not None and each.rows_per_s is not None
    ]


def _order(candidate: Candidate) -> int:
    groups = [THIS, FRONT, DEVICES]
    return groups.index(candidate.group) if candidate.group in groups else len(groups)


def device_rows(report: Report) -> list[dict[str, Any]]:
    """Throughput with fewer and more stages, this plan among them."""
    rows = [
        {
            "label": f"{each.num_stages} (this plan)" if each.group == THIS else each.label,
            "count": each.num_stages,
            "rows_per_s": each.rows_per_s,
            "latency_ms": each.latency_s * 1e3,
            "this": each.group == THIS,
        }
        for each in report.candidates
        if each.group in (THIS, DEVICES)
        and each.rows_per_s is not None
        and each.latency_s is not None
    ]
    return sorted(rows, key=lambda row: row["count"])


def save_drawings(report: Report, folder: str | Path, kind: str) -> tuple[Path, ...]:
    """Writes every drawing of a report as a file of its own.

    Args:
        report: what to draw.
        folder: where; made if it is not there.
        kind: ``"png"`` or ``"svg"``.

    Raises:
        CutsetError: a file cannot be written.
        ValueError: another kind.
    """
    if kind not in ("png", "svg"):
        raise ValueError(f"kind is 'png' or 'svg', got {kind!r}")
    target = Path(folder)
    written = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, spec in make_drawings(report).items():
            path = target / f"{name}.{kind}"
            if kind == "svg":
                path.write_text(svg_of(spec), encoding="utf-8")
            else:
                path.write_bytes(png_of(spec))
            written.append(path)
    except OSError as error:
        raise CutsetError(f"{target} cannot be written: {error.strerror}") from error
    return tuple(written)


def svg_of(spec: Spec, *, width: int = _WIDTH_PIXELS) -> str:
    """A drawing as SVG on a white ground."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(_drawable(spec, width))
    return svg


def png_of(spec: Spec, *, width: int = _WIDTH_PIXELS, scale: float = 2.0) -> bytes:
    """A drawing as PNG, `scale` pixels for each unit of `width`."""
    import vl_convert

    png: bytes = vl_convert.vegalite_to_png(_drawable(spec, width), scale=scale)
    return png


def _drawable(spec: Spec, width: int) -> Any:
    """A drawing for paper, its names without control characters: with one, the renderer aborts."""
    return _plain({**spec, "width": width, "config": _PAPER})


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return printable_lines(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
