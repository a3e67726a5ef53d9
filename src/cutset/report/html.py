"""The report as one self-contained page: no network, light and dark, readable without drawings."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

from cutset.extras import naming_extras
from cutset.printable import visible
from cutset.report.alternatives import Candidate
from cutset.report.compose import Report
from cutset.report.text import format_bytes, format_count, format_seconds, part_in_words
from cutset.version import __version__


def require_extra() -> None:
    """Makes sure that what draws and fills in the page is installed.

    Raises:
        MissingExtra: a package is missing; says how to install it.
    """
    with naming_extras():
        import altair as alt  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script without imports."""
    import vl_convert

    # The stub lacks the default that the function has.
    return _inline(vl_convert.javascript_bundle())  # type: ignore[call-arg]


def _inline(script: str) -> str:
    """A script that no HTML parser ends early."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def render(report: Report) -> str:
    """The page of a report that was put together.

    Whatever comes from outside is escaped by the template engine; scripts run only if their hash is
    in the page's own policy, and none may load or evaluate anything.
    """
    import jinja2
    import markupsafe

    from cutset.report.drawings import make_drawings
    from cutset.report.style import STAGE_COLOURS

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("page")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=visible,
    )
    environment.filters |= {"bytes": format_bytes, "count": format_count, "seconds": format_seconds}

    def source(name: str) -> str:
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    drawings = make_drawings(report)
    library, script = _library(), _inline(source("report.js"))
    plan = report.plan
    stops = report.strip.stops_of([stage.last for stage in plan.stages])
    plans = _shown_plans(report)
    return environment.get_template("report.html").render(
        report=report,
        sources=report.sources,
        part_note=part_in_words(report.sources.part) if report.sources.part else "",
        plan=plan,
        bench=report.sources.bench,
        verification=report.sources.verification,
        has_trace=report.sources.trace is not None,
        has_limits=any(stage.memory_limit_bytes is not None for stage in plan.stages),
        has_overhead=any(stage.overhead_s for stage in plan.stages),
        cost_notes=report.part_costs.notes if report.part_costs else (),
        chosen=[part.index + 1 in stops[:-1] for part in report.strip.parts],
        showable=plans["plans"].keys(),
        drawings=drawings,
        colours=STAGE_COLOURS,
        css=markupsafe.Markup(source("report.css")),  # noqa: S704  # the package's own
        library=markupsafe.Markup(library),  # noqa: S704  # vl-convert's own
        script=markupsafe.Markup(script),  # noqa: S704  # the package's own
        script_hashes=[markupsafe.Markup(_hash(text)) for text in (library, script)],  # noqa: S704
        version=__version__,
        data=_data(report, drawings, plans),
    )


def _data(report: Report, drawings: dict[str, Any], plans: dict[str, Any]) -> dict[str, Any]:
    """What the page's script works with."""
    from cutset.report.drawings import DARK, LIGHT, front_rows

    moving = {"stage", "begin", "end", "milliseconds"}
    index = {part.name: part.index for part in report.strip.parts}
    return {
        "drawings": drawings,
        "light": LIGHT,
        "dark": DARK,
        "points": front_rows(report),
        "plans": plans["plans"],
        "strip": {
            "parts": [
                {key: value for key, value in row.items() if key not in moving}
                for row in report.rows.parts
            ],
            "cuts": [
                {"part": index[row["after"]]}
                | {key: value for key, value in row.items() if key not in ("at", "chosen")}
                for row in report.rows.cuts
            ],
            "refused": [
                {"after": each.after, "reason": each.reason, "part": each.part, "share": each.share}
                for each in report.strip.refused
            ],
            "seconds": plans["seconds"],
        },
    }


def _shown_plans(report: Report) -> dict[str, Any]:
    """The plans that the strip can show: where they end, and whose seconds each stage takes.

    Equal devices have equal seconds, which are listed once.
    """
    part_costs = report.part_costs
    if part_costs is None:
        return {"plans": {}, "seconds": []}
    table: dict[tuple[float, ...], int] = {}
    plans: dict[str, Any] = {}
    for each in report.candidates:
        if not each.last or (each.group != "this plan" and part_costs.cluster is None):
            continue
        where = [
            table.setdefault(part_costs.seconds_on(device, backend), len(table))
            for device, backend in zip(each.devices, each.backends, strict=True)
        ]
        plans[each.key] = {
            "stops": report.strip.stops_of(each.last),
            "where": where,
            "words": _words(each),
        }
    return {"plans": plans, "seconds": list(table)}


def _words(candidate: Candidate) -> str:
    """What the strip shows, for people and screen readers."""
    assert candidate.period_s is not None
    assert candidate.latency_s is not None
    cuts = ", ".join(candidate.last[:-1])
    where = f"cut after {cuts}" if cuts else "not cut"
    stages = "; ".join(
        f"stage {k} on {device} {format_seconds(seconds)}"
        for k, (device, seconds) in enumerate(
            zip(candidate.devices, candidate.compute_s, strict=False)
        )
    )
    return (
        f"{candidate.label}: {where}; {format_seconds(candidate.period_s)} per micro-batch, "
        f"{format_seconds(candidate.latency_s)} for one alone{'; ' + stages if stages else ''}."
    )
