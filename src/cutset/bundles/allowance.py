"""How much memory and time the programs of a bundle may take, from the sizes that it states.

The sizes are the bundle's word, so they are held against this machine as well. The limits are
there for bundles that were made to take all that there is; one whose stages need several times what
their sizes promise still runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cutset.bundles.manifest import Manifest
from cutset.host import memory_bytes

_LEAST_BYTES = 2 << 30
_WEIGHT_COPIES = 6
_ACTIVATION_COPIES = 4
_LEAST_S = 300.0
_LEAST_FLOPS_PER_S = 1e8
_LEAST_BYTES_PER_S = 1e6
_MOST_S = 12 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """What a process may take beyond what it holds before it loads a program.

    Attributes:
        memory_bytes: bytes of memory for data.
        time_s: seconds for all that it does.
    """

    memory_bytes: int
    time_s: float


def allowance_of(
    manifest: Manifest,
    num_rows: Iterable[int],
    stages: Iterable[int],
    *,
    num_in_flight: int = 0,
) -> Allowance:
    """What the process may take that runs stages of a bundle one after the other.

    Memory: 2 GiB; every file of the stages six times (a backend reads, packs and copies weights);
    the results of all their operations four times over, as if none were freed and each needed a
    workspace; what may wait to be computed or sent; at most what this process may use. Time: five
    minutes; the multiply-adds at 1e8 a second, and the files at 1 MB a second; at most twelve
    hours.

    Args:
        manifest: of the bundle.
        num_rows: rows of each run; the largest counts for memory, all of them for time.
        stages: indices of the stages that are run.
        num_in_flight: how many micro-batches may lie at the ends of the stages at once.
    """
    runs, chosen = tuple(num_rows), frozenset(stages)
    folders = tuple(f"stage-{index}/" for index in chosen)
    file_bytes = sum(
        entry.num_bytes
        for entry in manifest.files
        if entry.path.startswith(folders) or "/" not in entry.path
    )
    names = {name for index in chosen for name in manifest.stages[index].operations}
    operations = [each for each in manifest.graph.operations if each.name in names]
    row_bytes = sum(operation.bytes_per_sample for operation in operations)
    entries = [manifest.stages[index] for index in chosen]
    taken_bytes = sum(spec.bytes_per_sample for entry in entries for spec in entry.inputs)
    given_bytes = sum(spec.bytes_per_sample for entry in entries for spec in entry.outputs)
    run_bytes = _ACTIVATION_COPIES * (row_bytes + taken_bytes)
    run_bytes += num_in_flight * (taken_bytes + given_bytes)
    flops = sum(operation.flops for operation in operations)
    wanted_bytes = _LEAST_BYTES + _WEIGHT_COPIES * file_bytes + run_bytes * max(runs, default=1)
    time_s = _LEAST_S + flops * sum(runs) / _LEAST_FLOPS_PER_S + file_bytes / _LEAST_BYTES_PER_S
    return Allowance(
        memory_bytes=min(wanted_bytes, memory_bytes()),
        time_s=min(time_s, _MOST_S),
    )
