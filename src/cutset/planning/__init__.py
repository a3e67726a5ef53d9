"""Placement: which stages, on which devices, in which order, and the proof that none is better."""

from cutset.planning.make import make_plan, pareto_plans
from cutset.planning.plan import (
    Alternative,
    Certificate,
    Plan,
    StagePlan,
    load_plan,
    plan_from_json,
    plan_to_json,
)

__all__ = [
    "Alternative",
    "Certificate",
    "Plan",
    "StagePlan",
    "load_plan",
    "make_plan",
    "pareto_plans",
    "plan_from_json",
    "plan_to_json",
]
