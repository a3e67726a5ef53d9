"""Inputs as they are or as pixels: the better plan, and a bound that holds for both."""

from __future__ import annotations

import msgspec
import pytest

from cutset.errors import PlanError
from cutset.planning.input_forms import best_form
from cutset.planning.plan import PLAN_FORMAT, Certificate, Plan, StagePlan
from cutset.planning.request import PlanRequest

REQUEST = PlanRequest(num_stages=1)


def plan_of(period_s: float, latency_s: float, *, bound_s: float, codec: str = "none") -> Plan:
    stage = StagePlan(
        index=0, first="a", last="output", start=0, stop=1, units=(), device="d",
        compute_s=period_s, send_s=0.0, weight_bytes=0, memory_bytes=0, output_bytes_per_sample=0,
    )  # fmt: skip
    return Plan(
        format=PLAN_FORMAT,
        objective="throughput",
        micro_batch=1,
        stages=(stage,),
        period_s=period_s,
        latency_s=latency_s,
        bound_s=bound_s,
        bound_by="search",
        gap=period_s / bound_s - 1,
        certificates=(Certificate(name="search", bound_s=bound_s, detail=""),),
        input_codec=codec,
    )


def form(plan: Plan | PlanError):
    def make(request: PlanRequest):
        assert isinstance(request, PlanRequest)
        if isinstance(plan, PlanError):
            raise plan
        return plan

    return make


def test_the_better_form_is_taken_and_of_equal_ones_the_last() -> None:
    pixels = plan_of(1.0, 5.0, bound_s=1.0, codec="uint8-image")
    rows = plan_of(2.0, 4.0, bound_s=2.0)
    assert best_form([form(pixels), form(rows)], REQUEST) == pixels
    equal = plan_of(1.0, 4.0, bound_s=1.0)
    assert best_form([form(pixels), form(equal)], REQUEST) == equal
    by_latency = [
        msgspec.structs.replace(p, objective="latency", bound_s=4.0) for p in (pixels, rows)
    ]
    assert best_form([form(p) for p in by_latency], REQUEST) == by_latency[1]


def test_no_bound_is_above_what_the_other_form_might_reach() -> None:
    pixels = plan_of(1.0, 5.0, bound_s=1.0, codec="uint8-image")
    rows = plan_of(2.0, 4.0, bound_s=0.8)  # its search was ended
    best = best_form([form(pixels), form(rows)], REQUEST)
    assert best.period_s == 1.0
    assert best.bound_s == 0.8
    assert best.gap == pytest.approx(0.25)
    assert [each.bound_s for each in best.certificates] == [0.8]


def test_a_form_without_a_plan_leaves_the_other() -> None:
    rows = plan_of(2.0, 4.0, bound_s=2.0)
    lost = PlanError("none", is_proven=True)
    assert best_form([form(lost), form(rows)], REQUEST) == rows
    assert best_form([form(rows), form(lost)], REQUEST) == rows
    with pytest.raises(PlanError, match="second"):
        best_form([form(lost), form(PlanError("second"))], REQUEST)


def test_a_form_whose_search_was_ended_leaves_no_bound() -> None:
    rows = plan_of(2.0, 4.0, bound_s=2.0)
    ended = PlanError("the time was over")
    ended.is_proven = False
    best = best_form([form(ended), form(rows)], REQUEST)
    assert (best.period_s, best.bound_s, best.gap) == (2.0, 0.0, None)
    other = msgspec.structs.replace(plan_of(3.0, 4.0, bound_s=3.0), proven_among="and 4 rows")
    assert best_form([form(other), form(rows)], REQUEST).bound_s == 0.0


def test_rows_per_second_decide_where_micro_batches_differ() -> None:
    pixels = msgspec.structs.replace(
        plan_of(4.0, 5.0, bound_s=4.0, codec="uint8-image"), micro_batch=4
    )
    rows = plan_of(2.0, 4.0, bound_s=0.5)
    best = best_form([form(pixels), form(rows)], REQUEST)
    assert best.micro_batch == 4
    assert best.bound_s == pytest.approx(2.0)  # half a second a row
