"""What the options about engines mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cutset.cli.screen import usage_error

if TYPE_CHECKING:
    from cutset.engines.ray.engine import RayCluster


def chosen_engine(
    engine: str, address: str | None, replan_after: float | None, cluster: Path | None
) -> str | RayCluster:
    """The engine as `open_session` takes it, after a check that the options go together.

    Raises:
        PlanError: the cluster file cannot be read.
    """
    if engine != "ray":
        for name, value in (
            ("--address", address),
            ("--replan-after", replan_after),
            ("--cluster", cluster),
        ):
            if value is not None:
                usage_error(f"{name} is for --engine ray")
        return engine
    from cutset.cluster.cluster_file import load_cluster
    from cutset.engines.ray.engine import RayCluster

    if address is not None and not address.strip():
        usage_error("--address is empty; leave it out for this machine's cluster")
    if replan_after is not None and not replan_after > 0:
        usage_error(f"--replan-after must be above 0, got {replan_after:g}")
    return RayCluster(
        address="auto" if address is None else address,
        replan_after_s=10.0 if replan_after is None else replan_after,
        cluster=None if cluster is None else load_cluster(cluster),
    )
