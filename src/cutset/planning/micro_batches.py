"""How many rows a micro-batch has: each number is planned to its own certificate, the best taken.

For the throughput that is the plan of the most rows per second, for the latency the one whose
micro-batch takes the least time. Of equal ones it is that of the fewest rows: nobody waits for
others without need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import msgspec

from cutset.costs.profile import in_words
from cutset.errors import InfeasiblePlan, PlanError
from cutset.planning.plan import Plan, SizeTried

_ROUNDING = 1e-9
_MOST = 1e300


def best_of_sizes(tried: Mapping[int, Plan | PlanError]) -> Plan:
    """The best plan, with what was compared.

    Args:
        tried: by the number of rows, rising: the best plan with it, or why there is none.

    Raises:
        PlanError: there is none at all.
    """
    plans = [each for each in tried.values() if isinstance(each, Plan)]
    if not plans:
        _raise(tried)
    best = plans[0]
    for plan in plans[1:]:
        if score_of(plan) < score_of(best) * (1 - _ROUNDING):
            best = plan
    if len(tried) == 1:
        return best
    is_settled = all(
        each.is_proven
        if isinstance(each, PlanError)
        else score_of(each, each.bound_s) >= score_of(best) * (1 - _ROUNDING)
        for each in tried.values()
        if each is not best
    )
    sizes = in_words(tuple(tried)) if is_settled else in_words((best.micro_batch,))
    return msgspec.structs.replace(
        best,
        proven_among=f"{best.proven_among} and {sizes} a micro-batch",
        sizes=tuple(_tried(rows, each) for rows, each in tried.items()),
    )


def front_of_sizes(fronts: Sequence[Sequence[Plan]]) -> tuple[Plan, ...]:
    """Of the fronts of several numbers of rows the plans that no other beats in both ways.

    A plan beats another that gives no more rows per second and takes no less for a micro-batch.

    Returns:
        The plans, of falling rows per second.
    """
    plans = [plan for front in fronts for plan in front]
    plans.sort(key=lambda plan: (plan.period_s / plan.micro_batch, plan.latency_s))
    kept: list[Plan] = []
    for plan in plans:
        if not kept or plan.latency_s < kept[-1].latency_s * (1 - _ROUNDING):
            kept.append(plan)
    return tuple(kept)


def score_of(plan: Plan, seconds: float | None = None) -> float:
    """Seconds to compare with those of another number of rows; of the plan's objective if None."""
    if plan.objective == "latency":
        return plan.latency_s if seconds is None else seconds
    return (plan.period_s if seconds is None else seconds) / plan.micro_batch


def _tried(rows: int, each: Plan | PlanError) -> SizeTried:
    if isinstance(each, PlanError):
        return SizeTried(micro_batch=rows, reason=str(each))
    return SizeTried(
        micro_batch=rows, rows_per_s=min(each.rows_per_s, _MOST), latency_s=each.latency_s
    )


def _raise(tried: Mapping[int, Plan | PlanError]) -> NoReturn:
    """Raises what stands in the way: with the fewest rows, as that needs the least memory and time.

    Where it is a limit, others may come nearer to it with more rows, so their reasons are told too.
    """
    (rows, first), *others = ((n, each) for n, each in tried.items() if isinstance(each, PlanError))
    told = {str(each): n for n, each in others if not isinstance(each, InfeasiblePlan)}
    if told and not isinstance(first, InfeasiblePlan):
        reasons = [f"with {in_words((rows,))} a micro-batch: {first}"]
        reasons += [f"with {in_words((n,))}: {reason}" for reason, n in told.items()]
        first.args = ("; ".join(reasons),)
    first.is_proven = all(each.is_proven for _, each in [(rows, first), *others])
    raise first
