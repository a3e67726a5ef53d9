"""Times a bundle's stages where an engine will compute them, without transfers.

Every stage is computed by the backend that will compute it, on the device that will compute it, one
after the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from cutset.engines.registry import StagePrograms
from cutset.errors import EngineError
from cutset.measure.stages import AloneResult

_LIMIT_S = 600.0


def time_stages_on_nodes(
    programs: StagePrograms,
    *,
    backends: Sequence[str],
    num_threads: int,
    micro_batch: int,
    duration_s: float,
) -> tuple[AloneResult, ...]:
    """Times every stage on its device.

    Args:
        programs: run there.
        backends: of every stage.
        num_threads: threads of each.
        micro_batch: rows at a time.
        duration_s: for how long each stage computes, at least; and as long again with rests.

    Returns:
        One result for each stage, with `AloneResult.rested_s`.

    Raises:
        EngineError: a device does not answer; a stage cannot be computed there; says which and why.
        BundleError: a device cannot keep its shard.
    """
    results = []
    for stage, backend in enumerate(backends):
        arguments = [
            *(f"{stage}:{backend}", str(num_threads), str(micro_batch)),
            *("--seconds", str(duration_s)),
        ]
        text = programs.run(
            stage,
            "stages-alone",
            arguments,
            num_threads=num_threads,
            limit_s=_LIMIT_S + 2 * duration_s,
        )
        try:
            results.append(msgspec.json.decode(text, type=AloneResult))
        except msgspec.MsgspecError as error:
            raise EngineError(
                f"stage {stage} answered no measurement ({error}): {text[:200]}"
            ) from error
    return tuple(results)
