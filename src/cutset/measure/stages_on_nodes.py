"""Times a bundle's stages on their nodes of a Ray cluster, without transfers.

Every stage is computed by the backend that will compute it, on the node that will compute it, one
after the other: nodes that share something do not disturb each other. The shards that it needs stay
there, for the session that follows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cutset.bundles.manifest import manifest_file
from cutset.bundles.open import Bundle
from cutset.engines.placement import cluster_of_plan
from cutset.engines.ray.engine import RayCluster
from cutset.engines.ray.host_calls import Host, HostAwayError, require_same_version
from cutset.engines.ray.nodes import (
    find_node,
    import_ray,
    join_cluster,
    living_nodes,
    require_nodes,
)
from cutset.engines.ray.probe_host import ProbeHost
from cutset.engines.ray.stage_host import make_host
from cutset.errors import EngineError
from cutset.measure.stages import AloneResult

_LIMIT_S = 600.0
_JOIN_S = 5.0


def time_stages_on_nodes(
    bundle: Bundle,
    settings: RayCluster,
    *,
    backends: Sequence[str],
    num_threads: int,
    micro_batch: int,
    duration_s: float,
    say: Callable[[str], None] = lambda _text: None,
) -> tuple[AloneResult, ...]:
    """Times every stage on its device's node.

    Args:
        bundle: whose stages; their plan names the devices.
        settings: which cluster, and the devices' addresses.
        backends: of every stage.
        num_threads: threads of each.
        micro_batch: rows at a time.
        duration_s: for how long each stage computes, at least; and as long again with rests.
        say: told what is done.

    Returns:
        One result for each stage, with `AloneResult.rested_s`.

    Raises:
        EngineError: no Ray or no cluster; a device is none of its nodes or does not answer; a stage
            cannot be computed there; says which and why.
        BundleError: a node cannot keep its shard.
    """
    ray = import_ray()
    joined = join_cluster(ray, settings.address)
    try:
        plan = bundle.manifest.plan
        cluster = settings.cluster or cluster_of_plan(plan)
        addresses = {device.name: device.address for device in cluster.devices}
        nodes = living_nodes(ray)
        require_nodes(nodes, {stage.device: addresses.get(stage.device) for stage in plan.stages})
        results = []
        for stage, backend in zip(plan.stages, backends, strict=True):
            node = find_node(nodes, stage.device, addresses.get(stage.device))
            assert node is not None  # it was required
            actor = make_host(ray, ProbeHost, node.node_id)
            host = Host(ray, actor, node, stage.device, threading.Event())
            how = (backend, num_threads, micro_batch, duration_s)
            try:
                results.append(_time_stage(bundle, host, stage.index, how, say))
            finally:
                host.kill().join(_JOIN_S)
        return tuple(results)
    except HostAwayError as error:
        raise EngineError(str(error)) from error
    finally:
        if joined:
            ray.shutdown()


def _time_stage(
    bundle: Bundle,
    host: Host,
    stage: int,
    how: tuple[str, int, int, float],
    say: Callable[[str], None],
) -> AloneResult:
    backend, num_threads, micro_batch, duration_s = how
    say(f"bringing stage {stage} to {host.device}")
    require_same_version(host.ask("hello"), host.device)
    folder = Path(bundle.directory)
    files = {entry.path: entry for entry in bundle.manifest.files}
    there = host.deliver(folder, manifest_file(folder), files, stage)
    say(f"timing stage {stage} on {host.device}")
    arguments = [
        *(there, f"{stage}:{backend}", str(num_threads), str(micro_batch)),
        *("--seconds", str(duration_s)),
    ]
    host.ask("start_program", "stages-alone", arguments, num_threads)
    text = host.program_result(_LIMIT_S + 2 * duration_s)
    try:
        return msgspec.json.decode(text, type=AloneResult)
    except msgspec.MsgspecError as error:
        raise EngineError(
            f"{host.device} answered no measurement ({error}): {text[:200]}"
        ) from error
