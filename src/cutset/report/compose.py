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
from cutset.report.basis import WORK, Basis, first_devices, make_basis
from cutset.report.boundaries import Boundary, boundaries
from cutset.report.findings import Finding, answers
from cutset.report.loads import StageLoad, stage_loads
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
        basis: what parts cost; None without a captured model.
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
    basis: Basis | None
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
        """Whether the plan's times stand for multiply-adds, and none that is measured is alike."""
        return self.basis is not None and self.basis.kind == WORK

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
    basis = make_basis(sources)
    if basis is None or sources.graph is None or sources.cuts is None:
        strip = strip_of_plan(plan)
        seconds = tuple(stage.compute_s for stage in plan.stages)
        stops = tuple(range(1, len(plan.stages) + 1))
    else:
        strip = make_strip(sources.graph, sources.cuts)
        stops = strip.stops_of([stage.last for stage in plan.stages])
        where = [(stage.device, stage.backend) for stage in plan.stages]
        seconds = part_seconds(strip, basis, stops, where)
    front, note = front_candidates(plan, basis) if basis is not None else ((), "")
    peers = peer_candidates(plan, basis, strip) if basis is not None else ()
    return Report(
        sources=sources,
        strip=strip,
        rows=strip_rows(strip, stops, seconds),
        basis=basis,
        loads=stage_loads(plan, sources.bench),
        candidates=(this_candidate(plan), *front, *alternative_candidates(plan, basis), *peers),
        front_note=note,
        predicted=predicted_timeline(plan),
        measured=measured_timeline(sources.trace, len(plan.stages)) if sources.trace else None,
        boundaries=boundaries(sources),
        gain_inside_units=_gain(sources, basis),
        answers=answers(sources, strip, basis),
    )


def _gain(sources: ReportSources, basis: Basis | None) -> float | None:
    """What cuts inside units would gain: given, or worked out by the planner."""
    plan = sources.plan
    if sources.gain_inside_units is not None or basis is None or basis.cluster is None:
        return sources.gain_inside_units
    if len(plan.stages) == 1:
        return None
    try:
        finer = make_plan(
            basis.graph,
            basis.cuts,
            basis.finer,
            PlanRequest(
                cluster=first_devices(basis.cluster, len(plan.stages)),
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
