"""Placement: which stages, on which devices, in which order, and the proof that none is better."""

from cutset.planning.anyorder.cost_graph import (
    CostGraph,
    load_cost_graph,
    pareto_cost_graph,
    plan_cost_graph,
)
from cutset.planning.assemble import gain_inside_units
from cutset.planning.deadline import TIME_LIMIT_S
from cutset.planning.expected import expect_on_cluster
from cutset.planning.make import make_plan, pareto_plans
from cutset.planning.more_rows import more_rows_advice
from cutset.planning.more_tensors import try_more_tensors
from cutset.planning.plan import (
    Alternative,
    Certificate,
    MoreTensors,
    Plan,
    StagePlan,
    load_plan,
    plan_from_json,
    plan_to_json,
)
from cutset.planning.request import Objective, PlanRequest
from cutset.planning.simulate import SimulatedTimeline, Slot, simulate, simulate_plan

__all__ = [
    "TIME_LIMIT_S",
    "Alternative",
    "Certificate",
    "CostGraph",
    "MoreTensors",
    "Objective",
    "Plan",
    "PlanRequest",
    "SimulatedTimeline",
    "Slot",
    "StagePlan",
    "expect_on_cluster",
    "gain_inside_units",
    "load_cost_graph",
    "load_plan",
    "make_plan",
    "more_rows_advice",
    "pareto_cost_graph",
    "pareto_plans",
    "plan_cost_graph",
    "plan_from_json",
    "plan_to_json",
    "simulate",
    "simulate_plan",
    "try_more_tensors",
]
