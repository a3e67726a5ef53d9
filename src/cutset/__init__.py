"""Split a trained PyTorch model where its architecture allows, and run the pieces as a pipeline.

The public names are loaded when they are first used: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cutset.extras import naming_extras
from cutset.version import __version__

if TYPE_CHECKING:
    from cutset.bundles.open import Bundle as Bundle
    from cutset.bundles.open import open_bundle as open_bundle
    from cutset.bundles.proof.results import VerificationReport as VerificationReport
    from cutset.bundles.proof.verify import verify_bundle as verify_bundle
    from cutset.bundles.write.export import export_bundle as export_bundle
    from cutset.capture.torch_export import capture_graph as capture_graph
    from cutset.capture.torch_export import capture_model as capture_model
    from cutset.cluster.cluster_file import load_cluster as load_cluster
    from cutset.cluster.devices import Cluster as Cluster
    from cutset.cluster.devices import Device as Device
    from cutset.cluster.devices import Link as Link
    from cutset.cluster.devices import equal_cluster as equal_cluster
    from cutset.costs.model import CostModel as CostModel
    from cutset.costs.model import Profile as Profile
    from cutset.costs.model import costs_from_flops as costs_from_flops
    from cutset.costs.model import costs_from_profile as costs_from_profile
    from cutset.errors import CutsetError as CutsetError
    from cutset.graph.cuts import CutPoint as CutPoint
    from cutset.graph.cuts import CutPoints as CutPoints
    from cutset.graph.cuts import find_cut_points as find_cut_points
    from cutset.graph.ir import Graph as Graph
    from cutset.graph.units import Unit as Unit
    from cutset.graph.units import find_units as find_units
    from cutset.measure.profiling import profile_costs as profile_costs
    from cutset.models import FoundModel as FoundModel
    from cutset.models import find_model as find_model
    from cutset.planning import Plan as Plan
    from cutset.planning import load_plan as load_plan
    from cutset.planning import make_plan as make_plan
    from cutset.planning import pareto_plans as pareto_plans
    from cutset.preparation import PreparedModel as PreparedModel
    from cutset.preparation import prepare_found as prepare_found
    from cutset.preparation import prepare_model as prepare_model
    from cutset.runtime.session import Session as Session
    from cutset.runtime.session import open_session as open_session
    from cutset.workflow import plan_stages as plan_stages
    from cutset.workflow import profile_model as profile_model
    from cutset.workflow import split_model as split_model

_HOMES = {
    "Bundle": "bundles.open",
    "Cluster": "cluster.devices",
    "CostModel": "costs.model",
    "CutPoint": "graph.cuts",
    "CutPoints": "graph.cuts",
    "CutsetError": "errors",
    "Device": "cluster.devices",
    "FoundModel": "models",
    "Graph": "graph.ir",
    "Link": "cluster.devices",
    "Plan": "planning",
    "PreparedModel": "preparation",
    "Profile": "costs.model",
    "Session": "runtime.session",
    "Unit": "graph.units",
    "VerificationReport": "bundles.proof.results",
    "capture_graph": "capture.torch_export",
    "capture_model": "capture.torch_export",
    "costs_from_flops": "costs.model",
    "costs_from_profile": "costs.model",
    "equal_cluster": "cluster.devices",
    "export_bundle": "bundles.write.export",
    "find_cut_points": "graph.cuts",
    "find_model": "models",
    "find_units": "graph.units",
    "load_cluster": "cluster.cluster_file",
    "load_plan": "planning",
    "make_plan": "planning",
    "open_bundle": "bundles.open",
    "open_session": "runtime.session",
    "pareto_plans": "planning",
    "plan_stages": "workflow",
    "prepare_found": "preparation",
    "prepare_model": "preparation",
    "profile_costs": "measure.profiling",
    "profile_model": "workflow",
    "split_model": "workflow",
    "verify_bundle": "bundles.proof.verify",
}

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604  # names that __getattr__ finds


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with naming_extras(f"{__name__}.{name}"):
        value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
