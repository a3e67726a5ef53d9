"""The whole way in a few calls: prepare a model, measure it, plan, split; what the commands do.

Each step takes values and returns a new one::

    prepared = prepare_model("torchvision:resnet50", weights="random:0")
    plan = plan_model(prepared, PlanRequest(num_stages=2))
    bundle = split_model(prepared, plan, "resnet50.cutset")
"""

from cutset.bundles.proof.results import raise_if_failed
from cutset.costs.device_profiles import load_profiles
from cutset.planning.request import PlanRequest
from cutset.progress import Progress
from cutset.workflow.allowed_codecs import AnswerLimits, plan_within
from cutset.workflow.best_plans import (
    Costs,
    plan_front,
    plan_model,
    plan_stages,
    plan_with_gain,
)
from cutset.workflow.measured_costs import (
    MeasuredCosts,
    cost_model,
    measure_costs,
    profile_model,
)
from cutset.workflow.planned_shards import plan_shards
from cutset.workflow.prepare import PreparedModel, prepare_found, prepare_model
from cutset.workflow.proven_bundles import (
    ProvenBundle,
    split_model,
    time_on_cluster,
    verify_against,
)

__all__ = [
    "AnswerLimits",
    "Costs",
    "MeasuredCosts",
    "PlanRequest",
    "PreparedModel",
    "Progress",
    "ProvenBundle",
    "cost_model",
    "load_profiles",
    "measure_costs",
    "plan_front",
    "plan_model",
    "plan_shards",
    "plan_stages",
    "plan_with_gain",
    "plan_within",
    "prepare_found",
    "prepare_model",
    "profile_model",
    "raise_if_failed",
    "split_model",
    "time_on_cluster",
    "verify_against",
]
