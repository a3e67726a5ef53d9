"""Puts a report together: all numbers of the page, before anything is drawn."""

from __future__ import annotations

import dataclasses
import re

from cutset.errors import PlanError
from cutset.planning import PlanRequest, gain_inside_units, make_plan
from cutset.planning.plan import Plan
from cutset.report.alternatives import (
    Candidate,
    alternative_candidates,
    front_candidates,
    peer_candidates,
    this_candidate,
)
from cutset.report.boundaries import Boundary, boundaries
from cutset.report.findings import Finding, answers
from cutset.report.loads import StageLoad, stage_loads
from cutset.report.part_costs import WORK, PartCosts, first_devices, make_part_costs
from cutset.report.sources import ReportSources
from cutset.report.strip import (
    Strip,
    StripRows,
    make_strip,
    part_seconds,
    strip_of_plan,
    strip_rows,
)
from cutset.report.timeline_bars import TimelinePicture, measured_timeline, predicted_timeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page shows.

    Attributes:
        sources: what it was made from.
        strip: the model's parts.
        rows: the strip with this plan, ready to be drawn.
        part_costs: what parts cost; None without a captured model.
        loads: every stage's.
        candidates: this plan, the front, other numbers of devices, peers; in that order.
        front_note: what to know of the front, or ``""``.
        predicted: the simulated timeline.
        measured: the measured one, or None.
        boundaries: what crosses where, and what verification found there.
        gain_inside_units: what cuts inside units would gain, as a fraction; None if unknown.
        answers: the first words.
    """

    sources: ReportSources
    strip: Strip
    rows: StripRows
    part_costs: PartCosts | None
    loads: tuple[StageLoad, ...]
    candidates: tuple[Candidate, ...]
    front_note: str
    predicted: TimelinePicture
    measured: TimelinePicture | None
    boundaries: tuple[Boundary, ...]
    gain_inside_units: float | None
    answers: tuple[Finding, ...]

    @property
    def plan(self) -> Plan:
        """The plan that it is about."""
        return self.sources.plan

    @property
    def counts_work(self) -> bool:
        """Whether the plan's times stand for multiply-adds, unlike any measured time."""
        return self.part_costs is not None and self.part_costs.kind == WORK

    @property
    def title(self) -> str:
        """The model's name without the folders of its file, or what a plan alone is called."""
        name = self.sources.model or "a plan"
        is_file = name.endswith((".pt2", ".onnx")) or ".py:" in name
        return re.split(r"[\\/]", name)[-1] if is_file else name


def build_report(sources: ReportSources) -> Report:
    """Works out everything that the page shows.

    Raises:
        PlanError: the sources do not belong together.
    """
    plan = sources.plan
    part_costs = make_part_costs(sources)
    if part_costs is None or sources.graph is None or sources.cuts is None:
        strip = strip_of_plan(plan)
        seconds = tuple(stage.compute_s for stage in plan.stages)
        stops = tuple(range(1, len(plan.stages) + 1))
    else:
        strip = make_strip(sources.graph, sources.cuts)
        stops = strip.stops_of([stage.last for stage in plan.stages])
        where = [(stage.device, stage.backend) for stage in plan.stages]
        seconds = part_seconds(strip, part_costs, stops, where)
    front, note = front_candidates(plan, part_costs) if part_costs is not None else ((), "")
    peers = peer_candidates(plan, part_costs, strip) if part_costs is not None else ()
    return Report(
        sources=sources,
        strip=strip,
        rows=strip_rows(strip, stops, seconds),
        part_costs=part_costs,
        loads=stage_loads(plan, sources.bench),
        candidates=(
            this_candidate(plan),
            *front,
            *alternative_candidates(plan, part_costs),
            *peers,
        ),
        front_note=note,
        predicted=predicted_timeline(plan),
        measured=measured_timeline(sources.trace, len(plan.stages)) if sources.trace else None,
        boundaries=boundaries(sources),
        gain_inside_units=_gain(sources, part_costs),
        answers=answers(sources, strip, part_costs),
    )


def _gain(sources: ReportSources, part_costs: PartCosts | None) -> float | None:
    """What cuts inside units would gain: given, or worked out by the planner."""
    plan = sources.plan
    if sources.gain_inside_units is not None or part_costs is None or part_costs.cluster is None:
        return sources.gain_inside_units
    if len(plan.stages) == 1 or plan.has_codecs:  # which the finer plan would not have
        return None
    try:
        finer = make_plan(
            part_costs.graph,
            part_costs.cuts,
            part_costs.finer,
            PlanRequest(
                cluster=first_devices(part_costs.cluster, len(plan.stages)),
                num_stages=len(plan.stages),
                objective=plan.objective,
                serial=plan.serial,
                fixed_order=plan.fixed_order,
            ),
            with_alternatives=False,
        )
    except PlanError:
        return None
    return gain_inside_units(plan, finer)
