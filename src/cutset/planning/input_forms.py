"""Plans with the model's inputs as they are and as pixels, and the better of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from cutset.errors import PlanError
from cutset.planning.deadline import Deadline, within
from cutset.planning.micro_batches import score_of
from cutset.planning.plan import Plan, gap_of
from cutset.planning.request import PlanRequest

Make = Callable[[PlanRequest], Plan]
"""Makes the plan of one form of inputs."""

_ROUNDING = 1e-9


def best_form(forms: Sequence[Make], request: PlanRequest) -> Plan:
    """The best plan over some forms of inputs; of equal ones the last.

    No plan of any form is below the least of their bounds, so that is the bound of the answer. It
    is 0 where a form's search was ended before it could tell.

    Args:
        forms: at least one; each gets the time that those before it left.
        request: what is wanted.

    Raises:
        PlanError: no form has a plan; of the last one.
    """
    deadline = within(request.time_limit_s)
    tried = [_try(make, request, deadline if place else None) for place, make in enumerate(forms)]
    plans = [each for each in tried if isinstance(each, Plan)]
    errors = [each for each in tried if isinstance(each, PlanError)]
    if not plans:
        raise errors[-1]
    is_known = all(error.is_proven for error in errors)
    best = plans[0]
    for plan in plans[1:]:
        best = plan if score_of(plan) <= score_of(best) * (1 + _ROUNDING) else best
    # Texts differ where searches over numbers of rows were ended: bounds are of other plans then.
    is_known &= all(plan.proven_among == best.proven_among for plan in plans)
    least = min(score_of(plan, plan.bound_s) for plan in plans) if is_known else 0.0
    return _with_bound(best, least)


def _try(make: Make, request: PlanRequest, deadline: Deadline | None) -> Plan | PlanError:
    """The plan of a form within what is left, or why there is none."""
    try:
        return make(request if deadline is None else request.within(deadline.left_s))
    except PlanError as error:
        return error


def _with_bound(plan: Plan, least: float) -> Plan:
    """The plan with a bound that is at most `least`, a score as `score_of` gives it."""
    own = score_of(plan, plan.bound_s)
    if least >= own * (1 - _ROUNDING):
        return plan
    bound_s = plan.bound_s * least / own
    return msgspec.structs.replace(
        plan,
        bound_s=bound_s,
        gap=gap_of(plan.latency_s if plan.objective == "latency" else plan.period_s, bound_s),
        certificates=tuple(
            msgspec.structs.replace(each, bound_s=min(each.bound_s, bound_s))
            for each in plan.certificates
        ),
    )
