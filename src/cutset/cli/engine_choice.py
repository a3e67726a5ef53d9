"""What the options about engines mean."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutset.cli.screen import usage_error

if TYPE_CHECKING:
    from cutset.engines.registry import EngineSettings

_FLAGS = {"address": "--address", "replan_after_s": "--replan-after", "cluster": "--cluster"}


def chosen_engine(
    engine: str | None, address: str | None, replan_after: float | None, cluster: Path | None
) -> EngineSettings:
    """The engine as `open_session` takes it, after a check that the options go together.

    Where none is named it is the cluster file's, or this machine.

    Raises:
        EngineError: there is no such engine, or what it needs is not installed.
        PlanError: the cluster file cannot be read.
    """
    from cutset.cluster.cluster_file import load_cluster
    from cutset.engines.registry import engines_that_take, find_engine

    loaded = load_cluster(cluster) if cluster is not None and engine is None else None
    kind = find_engine(engine or (loaded and loaded.engine) or "local")
    values = {"address": address, "replan_after_s": replan_after, "cluster": cluster}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    for name in given:
        if name not in kind.options:
            usage_error(f"{_FLAGS[name]} is for --engine {' or '.join(engines_that_take(name))}")
    if address is not None and not address.strip():
        usage_error("--address is empty; leave it out for this machine's cluster")
    if replan_after is not None and not replan_after > 0:
        usage_error(f"--replan-after must be above 0, got {replan_after:g}")
    if cluster is not None:
        given["cluster"] = loaded or load_cluster(cluster)
    return kind.from_options(given)
