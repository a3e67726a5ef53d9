"""What a prepared model costs: measured here, read from files, or multiply-adds alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import msgspec

from cutset.backends.allocator import keep_freed_memory
from cutset.backends.selection import (
    AUTO,
    check_backend_name,
    get_backend,
    missing_here,
    slow_backends,
    usable_backends,
)
from cutset.cluster.devices import Cluster
from cutset.costs.cost_model import CostModel, Granularity, costs_from_flops, costs_from_profile
from cutset.costs.profile import Profile, in_words, with_backend
from cutset.data.pixels import takes_images
from cutset.errors import EngineError, PlanError
from cutset.graph.cuts import CutPoints
from cutset.measure.codec_speed import with_codecs, with_pixels
from cutset.measure.idle_memory import measure_worker_base
from cutset.measure.piece_times import PieceBackend
from cutset.measure.profiling import piece_backends, profile_costs
from cutset.progress import Progress, no_progress
from cutset.workflow.prepare import PreparedModel

MORE_SIZES = (2, 4, 8, 16)
"""Rows of a micro-batch that are tried besides one, where nobody says how many there are to be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeasuredCosts:
    """What the pieces of a model take here, and what measured them, which can measure stages too.

    Attributes:
        profile: seconds of every piece with every backend.
        backends: what measured, by name.
        num_threads: threads of each piece.
        num_runs: measured runs.
    """

    profile: Profile
    backends: Mapping[str, PieceBackend]
    num_threads: int
    num_runs: int

    def only(self, backend: str) -> MeasuredCosts:
        """The same with one backend alone; all of them for ``"auto"``.

        Raises:
            PlanError: it was not measured.
        """
        if backend == AUTO:
            return self
        return dataclasses.replace(
            self,
            profile=with_backend(self.profile, backend),
            backends={backend: self.backends[backend]},
        )


def measure_costs(
    prepared: PreparedModel,
    *,
    backend: str = AUTO,
    compiled: bool = False,
    batch_size: int | None = None,
    num_threads: int = 1,
    num_runs: int = 20,
    device: str = "",
    progress: Progress | None = None,
) -> MeasuredCosts:
    """Measures every piece of a prepared model on this device.

    As workers do, this process keeps the memory of freed activations from now on, so that what is
    measured here is what they take.

    Args:
        prepared: the model.
        backend: the only one to measure; all that are installed for ``"auto"``.
        compiled: also those that take long to load a stage: ``"torch-compiled"`` takes a minute.
        batch_size: rows of a micro-batch; where None the only number that there is, or 1 and, while
            they pay, `MORE_SIZES` too.
        num_threads: as `profile_costs` takes them, like the next one.
        num_runs: likewise.
        device: this device's name; the host's name if empty.
        progress: told of every run.

    Raises:
        PlanError: the model was captured for another number of rows alone.
        EngineError: there is no such backend, or it cannot run the model here.
    """
    progress = progress or no_progress
    backend = check_backend_name(backend)
    also = set(slow_backends()) if compiled else set()
    if backend != AUTO and not get_backend(backend).is_quick:
        also.add(backend)
    rows = rows_of_micro_batch(prepared, batch_size)
    backends = piece_backends(prepared.captured, prepared.cuts, num_threads=num_threads, also=also)
    if backend != AUTO:
        if backend not in backends:
            reason = missing_here(backend) or f"it runs on {', '.join(backends)}"
            raise EngineError(f"backend {backend!r} cannot run {prepared.name}: {reason}")
        backends = {backend: backends[backend]}
    keep_freed_memory()
    profile = profile_costs(
        prepared.captured,
        prepared.cuts,
        micro_batch=rows,
        more_sizes=() if batch_size or prepared.captured.micro_batch_only else MORE_SIZES,
        num_threads=num_threads,
        num_runs=num_runs,
        backends=backends,
        progress=lambda name, done, all_: progress(f"profiling {name}: run {done} of {all_}"),
    )
    profile = msgspec.structs.replace(profile, model=prepared.name, device=device or profile.device)
    return MeasuredCosts(
        profile=profile, backends=backends, num_threads=num_threads, num_runs=num_runs
    )


def profile_model(
    prepared: PreparedModel,
    *,
    batch_size: int | None = None,
    num_threads: int = 1,
    num_runs: int = 20,
    device: str = "",
    progress: Progress | None = None,
) -> Profile:
    """Measures every piece of a prepared model on this device with every backend that is installed.

    Arguments and errors as for `measure_costs`, of which this is the profile.
    """
    return measure_costs(
        prepared,
        batch_size=batch_size,
        num_threads=num_threads,
        num_runs=num_runs,
        device=device,
        progress=progress,
    ).profile


def rows_of_micro_batch(prepared: PreparedModel, batch_size: int | None) -> int:
    """Rows of a micro-batch: those that are asked for, or the only ones there are, or one.

    Raises:
        PlanError: the model was captured for another number alone.
    """
    only = prepared.captured.micro_batch_only
    if batch_size is None:
        return only or 1
    if only not in (None, batch_size):
        raise PlanError(
            f"{prepared.name} was captured for micro-batches of exactly {only} "
            f"{'row' if only == 1 else 'rows'}, not {batch_size}; leave the size out "
            "(--batch-size), or capture it for that number (--micro-batch-only)"
        )
    return batch_size


def planned_sizes(
    prepared: PreparedModel,
    profiles: Profile | Mapping[str, Profile] | None,
    batch_size: int | None,
) -> tuple[int, ...]:
    """The numbers of rows in a micro-batch that a plan is chosen among, rising.

    Args:
        prepared: the model.
        profiles: one for all devices, or by the name that a cluster gives them.
        batch_size: the one that is asked for, if any.

    Raises:
        PlanError: there are no costs with the number that is asked for, or that the model was
            captured for, or the profiles have none in common.
    """
    if profiles is None:
        return (rows_of_micro_batch(prepared, batch_size),)
    each = [profiles] if isinstance(profiles, Profile) else list(profiles.values())
    wanted = prepared.captured.micro_batch_only if batch_size is None else batch_size
    if wanted is not None:
        for profile in each:
            if wanted not in profile.micro_batches and batch_size is None:
                rows_of_micro_batch(prepared, profile.micro_batch)
            profile.at(rows_of_micro_batch(prepared, wanted))
        return (wanted,)
    common = set.intersection(*(set(profile.micro_batches) for profile in each))
    if not common:
        found = "; ".join(f"{p.device!r} with {in_words(p.micro_batches)}" for p in each)
        raise PlanError(
            f"the profiles have no micro-batch in common: {found}; profile again, with one "
            "--batch-size for all or with none"
        )
    return tuple(sorted(common))


def cost_model(
    prepared: PreparedModel,
    *,
    profiles: Profile | Mapping[str, Profile] | None = None,
    batch_size: int | None = None,
    base_bytes: int = 0,
    granularity: Granularity = "unit",
    finer: CutPoints | None = None,
    allow: Sequence[str] = (),
    as_pixels: bool = False,
) -> CostModel:
    """Costs from profiles, or from multiply-adds alone where there are none.

    Args:
        prepared: the model.
        profiles: one for all devices, or by the name that a cluster gives them.
        batch_size: rows of a micro-batch; where None the least of `planned_sizes`.
        base_bytes: what a worker needs before it holds a shard.
        granularity: ``"unit"``, or ``"op"`` to allow cuts between any two operations.
        finer: positions with more cut points than the model's, to see what these would give.
        allow: names of codecs, which are measured here where there are profiles.
        as_pixels: the model takes images (`takes_images_of`), which travel to it as pixels.

    Raises:
        PlanError: a profile is of another model, or `planned_sizes` finds none.
    """
    graph, cuts = prepared.captured.graph, prepared.cuts
    rows = planned_sizes(prepared, profiles, batch_size)[0]
    if profiles is None:
        found = costs_from_flops(
            graph,
            finer or cuts,
            micro_batch=rows,
            base_bytes=base_bytes,
            granularity=granularity,
        )
        return _with_what_travels(found, prepared, allow, as_pixels=as_pixels, measured=False)
    of_one_size = (
        profiles.at(rows)
        if isinstance(profiles, Profile)
        else {name: profile.at(rows) for name, profile in profiles.items()}
    )
    found = costs_from_profile(
        graph, cuts, of_one_size, base_bytes=base_bytes, granularity=granularity, finer=finer
    )
    return _with_what_travels(found, prepared, allow, as_pixels=as_pixels, measured=True)


def _with_what_travels(
    costs: CostModel,
    prepared: PreparedModel,
    allow: Sequence[str],
    *,
    as_pixels: bool,
    measured: bool,
) -> CostModel:
    """The costs with codecs, and with pixels as inputs."""
    costs = with_codecs(costs, prepared.captured, allow, measured=measured)
    preprocessing = prepared.found.preprocessing
    if not as_pixels or preprocessing is None:
        return costs
    return with_pixels(costs, preprocessing, measured=measured)


def takes_images_of(prepared: PreparedModel) -> bool:
    """Whether rows of a model may be images, and how they become rows is known."""
    preprocessing = prepared.found.preprocessing
    if preprocessing is None or prepared.part is not None:
        return False
    return takes_images(preprocessing, prepared.captured.graph.inputs)


def worker_base_bytes(cluster: Cluster, profiles: Profile | Mapping[str, Profile] | None) -> int:
    """What a worker needs before it holds a shard, where its device does not say.

    Measured only where such a device's memory is a limit: with the backend that needs the most
    here, of those that were measured and that such devices have.
    """
    limited = [d for d in cluster.devices if d.memory_bytes is not None and d.worker_bytes is None]
    if not limited:
        return 0
    here = usable_backends()
    if all(device.backends is not None for device in limited):
        theirs = {name for device in limited for name in device.backends or ()}
        here = tuple(b for b in here if b.full_name in theirs) or here
    found = [profiles] if isinstance(profiles, Profile) else [*(profiles or {}).values()]
    names = {name for profile in found for name in profile.backends}
    usable = [backend.full_name for backend in here if backend.full_name in names]
    return max(map(measure_worker_base, usable or [here[0].full_name]))
