"""Placement: which stages, on which devices, in which order, and the proof that none is better.

What is named here is loaded when it is first used: a worker that reads a plan loads no solver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cutset.planning.anyorder.cost_graph import CostGraph as CostGraph
    from cutset.planning.anyorder.cost_graph import load_cost_graph as load_cost_graph
    from cutset.planning.anyorder.cost_graph import pareto_cost_graph as pareto_cost_graph
    from cutset.planning.anyorder.cost_graph import plan_cost_graph as plan_cost_graph
    from cutset.planning.assemble import gain_inside_units as gain_inside_units
    from cutset.planning.deadline import TIME_LIMIT_S as TIME_LIMIT_S
    from cutset.planning.expected import expect_on_cluster as expect_on_cluster
    from cutset.planning.make import make_plan as make_plan
    from cutset.planning.make import pareto_plans as pareto_plans
    from cutset.planning.more_rows import more_rows_advice as more_rows_advice
    from cutset.planning.more_tensors import try_more_tensors as try_more_tensors
    from cutset.planning.plan import Alternative as Alternative
    from cutset.planning.plan import Certificate as Certificate
    from cutset.planning.plan import MoreTensors as MoreTensors
    from cutset.planning.plan import Plan as Plan
    from cutset.planning.plan import StagePlan as StagePlan
    from cutset.planning.plan import load_plan as load_plan
    from cutset.planning.plan import plan_from_json as plan_from_json
    from cutset.planning.plan import plan_to_json as plan_to_json
    from cutset.planning.request import Objective as Objective
    from cutset.planning.request import PlanRequest as PlanRequest
    from cutset.planning.simulate import SimulatedTimeline as SimulatedTimeline
    from cutset.planning.simulate import Slot as Slot
    from cutset.planning.simulate import simulate_plan as simulate_plan

_HOMES = {
    "Alternative": "plan",
    "Certificate": "plan",
    "CostGraph": "anyorder.cost_graph",
    "MoreTensors": "plan",
    "Objective": "request",
    "Plan": "plan",
    "PlanRequest": "request",
    "SimulatedTimeline": "simulate",
    "Slot": "simulate",
    "StagePlan": "plan",
    "TIME_LIMIT_S": "deadline",
    "expect_on_cluster": "expected",
    "gain_inside_units": "assemble",
    "load_cost_graph": "anyorder.cost_graph",
    "load_plan": "plan",
    "make_plan": "make",
    "more_rows_advice": "more_rows",
    "pareto_cost_graph": "anyorder.cost_graph",
    "pareto_plans": "make",
    "plan_cost_graph": "anyorder.cost_graph",
    "plan_from_json": "plan",
    "plan_to_json": "plan",
    "simulate_plan": "simulate",
    "try_more_tensors": "more_tensors",
}

__all__ = [*_HOMES]  # noqa: PLE0604  # names that __getattr__ finds


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
