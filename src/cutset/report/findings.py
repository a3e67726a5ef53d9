"""The report's first words: where it is cut and why, what is slow, what more would bring."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cutset.errors import PlanError
from cutset.planning.plan import Alternative, Plan
from cutset.report.part_costs import WORK, PartCosts
from cutset.report.sources import ReportSources
from cutset.report.strip import Strip
from cutset.report.text import format_bytes, format_seconds

_ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
)
_CERTIFICATES = {
    "volume": "all work spread evenly over the devices takes this long",
    "largest node": "the largest part alone takes this long",
    "cover": "with any shorter limit more stages would be needed than there may be",
    "cut count": "a shorter limit forces more cuts than can be sent within it",
    "exhaustion": "the exact search ruled out everything below",
    "search": "the exact search ruled out everything below before its time was over",
    "sharing": "all work takes this long even if every part is divided among the devices",
    "relaxation": "an easier problem, solved exactly, has this optimum",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A question that everyone has, and its answer in a few sentences."""

    question: str
    sentences: tuple[str, ...]


def answers(
    sources: ReportSources, strip: Strip, part_costs: PartCosts | None
) -> tuple[Finding, ...]:
    """The four answers that a reader comes for."""
    plan = sources.plan
    count = len(plan.stages) + 1
    one_more = f"a {_ORDINALS[count - 1]}" if count <= len(_ORDINALS) else "one more"
    one_more += " stage" if plan.has_groups else " device"
    return (
        Finding(
            question="Where is it cut, and why there?",
            sentences=(*_where(plan, strip), *_why(plan, strip, part_costs)),
        ),
        Finding(question="Which stage is the slowest?", sentences=_slowest(sources, part_costs)),
        Finding(question=f"What would {one_more} bring?", sentences=_one_more(plan, one_more)),
        Finding(question="Is it correct?", sentences=_correct(sources)),
    )


def _where(plan: Plan, strip: Strip) -> tuple[str, ...]:
    if len(plan.stages) == 1:
        return ("It is not cut: one stage holds the whole model.",)
    kinds = {part.name: part.kind for part in strip.parts}
    words = {"block": "a complete block", "pool": "a pooling", "head": "inside the classifier"}
    places = []
    for stage in plan.stages[:-1]:
        kind = kinds.get(stage.last, "")
        what = f" ({words.get(kind, f'an {kind}')})" if kind else ""
        size = format_bytes(stage.output_bytes_per_sample)
        places.append(f"after {stage.last}{what}, where {size} a row cross")
    return (f"It is cut {'; '.join(places)}.",)


def _why(plan: Plan, strip: Strip, part_costs: PartCosts | None) -> tuple[str, ...]:
    sentences = []
    by_latency = plan.objective == "latency"
    aim = "one micro-batch alone is answered soonest" if by_latency else "the pace is highest"
    value_s = plan.latency_s if by_latency else plan.period_s
    if len(plan.stages) > 1:
        sentences.append(
            f"There {aim}: {format_seconds(value_s)} per micro-batch."
            + (_neighbours(plan, strip, part_costs) if part_costs is not None else "")
        )
    why = _CERTIFICATES.get(plan.bound_by, plan.bound_by)
    sentences.append(
        f"No plan under the same rules can take less than {format_seconds(plan.bound_s)} "
        f"({plan.bound_by}: {why}), so this plan is {plan.claim}."
    )
    sentences += [f"Note: {note}." for note in plan.notes]
    return tuple(sentences)


def _neighbours(plan: Plan, strip: Strip, part_costs: PartCosts) -> str:
    """What moving each cut by one candidate would cost."""
    if part_costs.cluster is None:
        return ""
    stops = strip.stops_of([stage.last for stage in plan.stages])
    worse = []
    for cut in range(len(stops) - 1):
        for step, way in ((-1, "earlier"), (1, "later")):
            moved = [*stops]
            moved[cut] += step
            if not (moved[cut - 1] if cut else 0) < moved[cut] < moved[cut + 1]:
                continue
            text = _moved(plan, strip, part_costs, moved, cut)
            if text:
                worse.append(f"one place {way}, {text}")
    return f" With a cut {'; '.join(worse)}." if worse else ""


def _moved(plan: Plan, strip: Strip, part_costs: PartCosts, stops: Sequence[int], cut: int) -> str:
    names = [strip.parts[stop - 1].name for stop in stops[:-1]]
    try:
        other = part_costs.plan_with(names, plan)
    except PlanError:
        return f"after {names[cut]}, it would not fit"
    by_latency = plan.objective == "latency"
    now_s, then_s = ((each.latency_s if by_latency else each.period_s) for each in (plan, other))
    change = f" ({then_s / now_s - 1:+.1%})" if now_s else ""
    return f"after {names[cut]}, it would take {format_seconds(then_s)}{change}"


def _slowest(sources: ReportSources, part_costs: PartCosts | None) -> tuple[str, ...]:
    plan = sources.plan
    slow = max(plan.stages, key=lambda stage: stage.busy_s)
    share = f", {slow.busy_s / plan.period_s:.0%} of the period" if plan.period_s else ""
    more = f" and {format_seconds(slow.overhead_s)} for its messages" if slow.overhead_s else ""
    sentences = [
        (
            f"Stage {slow.index} on {slow.where}, from {slow.first} to {slow.last}: "
            f"{format_seconds(slow.compute_s)} of computing{more} per micro-batch{share}."
        )
    ]
    links = [(stage.send_s, f"from stage {stage.index}") for stage in plan.stages]
    links.append((plan.stages[0].receive_s, "into stage 0"))
    longest, where = max(links)
    named = [(longest, f"the link {where}")]
    named += [(use.busy_s, use.wire) for use in plan.shared_wires]
    longest, where = max(named, key=lambda each: each[0])
    if longest > slow.busy_s:
        sentences.append(f"But it is {where} that sets the pace: {format_seconds(longest)}.")
    if plan.serial:
        sentences.append("A stage receives, computes and sends one after the other here.")
    bench = sources.bench
    if bench is not None:
        busiest = max(range(len(bench.stages)), key=lambda k: bench.stages[k].busy)
        counts_work = part_costs is not None and part_costs.kind == WORK
        predicted = f", predicted {format_seconds(bench.predicted_period_s)}"
        sentences.append(
            f"Measured, stage {busiest} was the busiest, {bench.stages[busiest].busy:.0%} of the "
            f"time; a micro-batch came every {format_seconds(bench.period_s)}"
            f"{'' if counts_work else predicted}."
        )
    return tuple(sentences)


def _one_more(plan: Plan, one_more: str) -> tuple[str, ...]:
    by_count = {each.num_stages: each for each in plan.alternatives}
    sentences = []
    more = by_count.get(len(plan.stages) + 1)
    if more is None:
        sentences.append("The plan does not say: it was made without alternatives.")
    elif more.period_s is None and not plan.unused_devices:
        sentences.append(
            f"This plan uses every device of its cluster. To see what {one_more} would "
            "bring, add a device to the cluster file and plan again."
        )
    elif more.period_s is None:
        sentences.append(f"Nothing is planned for {one_more}: {more.reason}.")
    else:
        cuts = ", ".join(more.last[:-1])
        sentences.append(f"With {one_more}, cut after {cuts}: {_against(plan, more)}.")
    alone = by_count.get(1)
    if alone is not None and alone.period_s is not None:
        sentences.append(f"Not split, on {alone.devices[0]}: {_against(plan, alone)}.")
    return tuple(sentences)


def _against(plan: Plan, other: Alternative) -> str:
    assert other.period_s is not None
    assert other.latency_s is not None
    speed = f", {plan.period_s / other.period_s:.2f} times the throughput" if other.period_s else ""
    alone, now = format_seconds(other.latency_s), format_seconds(plan.latency_s)
    latency = f"still takes {now}" if alone == now else f"takes {alone} instead of {now}"
    return (
        f"a micro-batch every {format_seconds(other.period_s)} instead of "
        f"{format_seconds(plan.period_s)}{speed}; one alone {latency}"
    )


def _correct(sources: ReportSources) -> tuple[str, ...]:
    found = sources.verification
    if found is None:
        return (
            (
                "This page does not know: give it --verification FILE, what cutset verify --json "
                "printed."
            ),
        )
    failed = [check for check in found.checks if not check.ok]
    if failed:
        return tuple(f"No: {check.name}: {check.detail}." for check in failed)
    if found.not_run:
        return (
            f"As far as it was looked at: {len(found.checks)} checks passed.",
            *(f"Not checked: {sentence}." for sentence in found.not_run),
        )
    exact = (
        "the stages together give every number of the whole model bit for bit with torch"
        if found.bit_exact
        else "the stages together give the whole model's numbers within the stated tolerance"
    )
    return (f"Yes: all {len(found.checks)} checks passed, and {exact}.",)
