"""Split a trained PyTorch model where its architecture allows, and run the pieces as a pipeline.

The public names are loaded when they are first used: importing this package loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cutset.extras import naming_extras
from cutset.version import __version__

if TYPE_CHECKING:
    from cutset.backends.base import ModelBackend as ModelBackend
    from cutset.backends.base import ProgramBackend as ProgramBackend
    from cutset.bundles.open import Bundle as Bundle
    from cutset.bundles.open import open_bundle as open_bundle
    from cutset.bundles.proof.results import VerificationReport as VerificationReport
    from cutset.bundles.proof.results import raise_if_failed as raise_if_failed
    from cutset.bundles.proof.verify import verify_bundle as verify_bundle
    from cutset.bundles.write.export import export_bundle as export_bundle
    from cutset.capture.torch_export import capture_graph as capture_graph
    from cutset.capture.torch_export import capture_model as capture_model
    from cutset.cluster.cluster_file import load_cluster as load_cluster
    from cutset.cluster.devices import CallerMachine as CallerMachine
    from cutset.cluster.devices import Cluster as Cluster
    from cutset.cluster.devices import Device as Device
    from cutset.cluster.devices import Link as Link
    from cutset.cluster.devices import LinkOverride as LinkOverride
    from cutset.cluster.devices import equal_cluster as equal_cluster
    from cutset.cluster.wires import Medium as Medium
    from cutset.cluster.wires import Port as Port
    from cutset.costs.cost_model import CostModel as CostModel
    from cutset.costs.cost_model import costs_from_flops as costs_from_flops
    from cutset.costs.cost_model import costs_from_profile as costs_from_profile
    from cutset.costs.device_profiles import load_profiles as load_profiles
    from cutset.costs.profile import Profile as Profile
    from cutset.costs.profile import load_profile as load_profile
    from cutset.costs.profile import profile_to_json as profile_to_json
    from cutset.data.array_files import top_k as top_k
    from cutset.data.images import find_images as find_images
    from cutset.data.images import read_image as read_image
    from cutset.data.images import read_pixels as read_pixels
    from cutset.doctor import examine_machine as examine_machine
    from cutset.engines.ray.engine import RayCluster as RayCluster
    from cutset.engines.ssh.ssh_engine import SshHosts as SshHosts
    from cutset.errors import CutsetError as CutsetError
    from cutset.graph.cuts import CutPoint as CutPoint
    from cutset.graph.cuts import CutPoints as CutPoints
    from cutset.graph.cuts import find_cut_points as find_cut_points
    from cutset.graph.ir import Graph as Graph
    from cutset.graph.units import Unit as Unit
    from cutset.graph.units import find_units as find_units
    from cutset.measure.bench import bench_bundle as bench_bundle
    from cutset.measure.probe import ProbeRequest as ProbeRequest
    from cutset.measure.probe import probe_cluster as probe_cluster
    from cutset.measure.profiling import profile_costs as profile_costs
    from cutset.models import FoundModel as FoundModel
    from cutset.models import find_model as find_model
    from cutset.planning import CostGraph as CostGraph
    from cutset.planning import Plan as Plan
    from cutset.planning import PlanRequest as PlanRequest
    from cutset.planning import load_cost_graph as load_cost_graph
    from cutset.planning import load_plan as load_plan
    from cutset.planning import make_plan as make_plan
    from cutset.planning import pareto_cost_graph as pareto_cost_graph
    from cutset.planning import pareto_plans as pareto_plans
    from cutset.planning import plan_cost_graph as plan_cost_graph
    from cutset.planning import plan_to_json as plan_to_json
    from cutset.predict import predict_files as predict_files
    from cutset.report.compose import build_report as build_report
    from cutset.report.read_sources import read_sources as read_sources
    from cutset.runtime.session import Session as Session
    from cutset.runtime.session import open_session as open_session
    from cutset.runtime.status import Limits as Limits
    from cutset.serve.command import serve_bundle as serve_bundle
    from cutset.serve.settings import ServeSettings as ServeSettings
    from cutset.tensors import TensorSpec as TensorSpec
    from cutset.workflow import MeasuredCosts as MeasuredCosts
    from cutset.workflow import PreparedModel as PreparedModel
    from cutset.workflow import ProvenBundle as ProvenBundle
    from cutset.workflow import measure_costs as measure_costs
    from cutset.workflow import plan_front as plan_front
    from cutset.workflow import plan_model as plan_model
    from cutset.workflow import plan_stages as plan_stages
    from cutset.workflow import plan_with_gain as plan_with_gain
    from cutset.workflow import prepare_found as prepare_found
    from cutset.workflow import prepare_model as prepare_model
    from cutset.workflow import profile_model as profile_model
    from cutset.workflow import split_model as split_model
    from cutset.workflow import time_on_cluster as time_on_cluster
    from cutset.workflow import verify_against as verify_against

_HOMES = {
    "Bundle": "bundles.open",
    "CallerMachine": "cluster.devices",
    "Cluster": "cluster.devices",
    "CostGraph": "planning",
    "CostModel": "costs.cost_model",
    "CutPoint": "graph.cuts",
    "CutPoints": "graph.cuts",
    "CutsetError": "errors",
    "Device": "cluster.devices",
    "FoundModel": "models",
    "Graph": "graph.ir",
    "Limits": "runtime.status",
    "Link": "cluster.devices",
    "LinkOverride": "cluster.devices",
    "MeasuredCosts": "workflow",
    "Medium": "cluster.wires",
    "ModelBackend": "backends.base",
    "Plan": "planning",
    "PlanRequest": "planning",
    "Port": "cluster.wires",
    "PreparedModel": "workflow",
    "ProbeRequest": "measure.probe",
    "Profile": "costs.profile",
    "ProvenBundle": "workflow",
    "RayCluster": "engines.ray.engine",
    "SshHosts": "engines.ssh.ssh_engine",
    "ServeSettings": "serve.settings",
    "ProgramBackend": "backends.base",
    "Session": "runtime.session",
    "TensorSpec": "tensors",
    "Unit": "graph.units",
    "VerificationReport": "bundles.proof.results",
    "bench_bundle": "measure.bench",
    "build_report": "report.compose",
    "capture_graph": "capture.torch_export",
    "capture_model": "capture.torch_export",
    "costs_from_flops": "costs.cost_model",
    "costs_from_profile": "costs.cost_model",
    "equal_cluster": "cluster.devices",
    "examine_machine": "doctor",
    "export_bundle": "bundles.write.export",
    "find_cut_points": "graph.cuts",
    "find_images": "data.images",
    "find_model": "models",
    "find_units": "graph.units",
    "load_cluster": "cluster.cluster_file",
    "load_cost_graph": "planning",
    "load_plan": "planning",
    "load_profile": "costs.profile",
    "load_profiles": "costs.device_profiles",
    "make_plan": "planning",
    "measure_costs": "workflow",
    "open_bundle": "bundles.open",
    "open_session": "runtime.session",
    "pareto_cost_graph": "planning",
    "pareto_plans": "planning",
    "plan_cost_graph": "planning",
    "plan_front": "workflow",
    "plan_model": "workflow",
    "plan_stages": "workflow",
    "plan_to_json": "planning",
    "plan_with_gain": "workflow",
    "predict_files": "predict",
    "prepare_found": "workflow",
    "prepare_model": "workflow",
    "probe_cluster": "measure.probe",
    "profile_costs": "measure.profiling",
    "profile_model": "workflow",
    "profile_to_json": "costs.profile",
    "raise_if_failed": "bundles.proof.results",
    "read_image": "data.images",
    "read_pixels": "data.images",
    "read_sources": "report.read_sources",
    "serve_bundle": "serve.command",
    "split_model": "workflow",
    "time_on_cluster": "workflow",
    "top_k": "data.array_files",
    "verify_against": "workflow",
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
