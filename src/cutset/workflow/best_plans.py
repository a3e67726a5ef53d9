"""The best plans for a prepared model: what `cutset plan` prints."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import msgspec

from cutset.backends.selection import AUTO, check_backend_name
from cutset.codecs.known_codecs import NONE, PIXELS
from cutset.costs.cost_model import REFERENCE, CostModel, Granularity
from cutset.costs.profile import Profile, with_backend
from cutset.errors import PlanError
from cutset.measure.local_plans import plan_here
from cutset.planning import (
    MoreTensors,
    Plan,
    PlanRequest,
    gain_inside_units,
    make_plan,
    more_rows_advice,
    pareto_plans,
    try_more_tensors,
)
from cutset.planning.deadline import within
from cutset.planning.input_forms import best_form
from cutset.planning.micro_batches import front_of_sizes
from cutset.planning.watch import Standing, watching
from cutset.progress import Progress, no_progress
from cutset.workflow.measured_costs import (
    MeasuredCosts,
    cost_model,
    measure_costs,
    planned_sizes,
    takes_images_of,
    worker_base_bytes,
)
from cutset.workflow.prepare import PreparedModel

Profiles: TypeAlias = Profile | Mapping[str, Profile]
"""One for all devices, or by the name that a cluster gives them."""

Tell: TypeAlias = Callable[[Standing], None]

Costs: TypeAlias = Literal["measured", "flops"] | MeasuredCosts | Profiles
"""What a piece costs: seconds that are measured now, multiply-adds alone, what was measured here
before, or profiles from anywhere."""


def plan_model(
    prepared: PreparedModel,
    request: PlanRequest,
    *,
    costs: Costs = "measured",
    backend: str = AUTO,
    batch_size: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
    standing: Tell | None = None,
) -> Plan:
    """The best plan for a model; what `cutset plan` does.

    Without a cluster, and with costs that are measured here, the stages of the plan are measured as
    wholes as well, and it is planned again by that (`plan_here`).

    Args:
        prepared: the model.
        request: what is wanted.
        costs: what a piece costs. Where profiles by name lack the reference that a device without
            one is scaled from, that is measured now.
        backend: plan for this one alone; for the fastest of each stage where ``"auto"``.
        batch_size: rows of a micro-batch; where None the best of those that there are costs for
            (`planned_sizes`), and with multiply-adds 1 or the only number that there is.
        num_threads: threads of each stage; where None the profile's, or 1.
        progress: told of every step.
        standing: told every few seconds how planning stands (`cutset.planning.watch`).

    Raises:
        PlanError: no plan can be made, or the profiles are of another model, number of rows or of
            threads; says why.
        InfeasiblePlan: no placement fits the devices' memory.
        EngineError: there is no such backend, or it cannot run the model here.
        ValueError: `costs` is an unknown word, or multiply-adds with a backend or threads, for all
            of which they are the same.
    """
    progress = progress or no_progress
    profiles, measured = _resolve(
        prepared, request, costs, backend, batch_size, num_threads, progress
    )
    _announce(request, progress)

    def make(found: Profiles | None) -> Plan:
        with _watched(standing):
            return plan_stages(prepared, request, profile=found, batch_size=batch_size)

    if measured is None:
        return make(profiles)
    return plan_here(
        prepared.captured,
        make,
        measured.profile,
        measured.backends,
        num_threads=measured.num_threads,
        num_runs=measured.num_runs,
        progress=progress,
    )


def plan_front(
    prepared: PreparedModel,
    request: PlanRequest,
    *,
    costs: Costs = "measured",
    backend: str = AUTO,
    batch_size: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
    standing: Tell | None = None,
) -> tuple[Plan, ...]:
    """Every plan that no other beats in rows per second and latency, of falling rows per second.

    Arguments and errors as for `plan_model`; the request's objective does not matter.
    """
    progress = progress or no_progress
    profiles, _ = _resolve(prepared, request, costs, backend, batch_size, num_threads, progress)
    _announce(request, progress)
    base_bytes = worker_base_bytes(request.devices_and_links, profiles)
    sizes = planned_sizes(prepared, profiles, batch_size)
    deadline = within(request.time_limit_s)
    fronts: list[tuple[Plan, ...]] = []
    reason: PlanError | None = None
    forms = [(as_pixels, n) for as_pixels in _input_forms(prepared, request) for n in sizes]
    with _watched(standing):
        for index, (as_pixels, rows) in enumerate(forms):
            found = cost_model(
                prepared,
                profiles=profiles,
                batch_size=rows,
                base_bytes=base_bytes,
                allow=request.allow,
                as_pixels=as_pixels,
            )
            wanted = request.within(deadline.left_s / (len(forms) - index))
            try:
                fronts.append(pareto_plans(prepared.captured.graph, prepared.cuts, found, wanted))
            except PlanError as error:
                reason = reason or error
    if not fronts and reason is not None:
        raise reason
    return front_of_sizes(fronts)


def plan_with_gain(
    prepared: PreparedModel,
    request: PlanRequest,
    *,
    costs: Costs = "measured",
    backend: str = AUTO,
    batch_size: int | None = None,
    num_threads: int | None = None,
    progress: Progress | None = None,
    standing: Tell | None = None,
) -> tuple[Plan, float]:
    """The plan of `plan_model`, and what cuts inside units would gain, as a fraction.

    Arguments and errors as for `plan_model`.
    """
    progress = progress or no_progress
    profiles, measured = _resolve(
        prepared, request, costs, backend, batch_size, num_threads, progress
    )
    plan = plan_model(
        prepared,
        request,
        costs=measured or profiles or "flops",
        batch_size=batch_size,
        progress=progress,
        standing=standing,
    )
    with _watched(standing):
        coarse, finer = (
            plan_stages(
                prepared,
                request,
                profile=profiles,
                batch_size=plan.micro_batch,
                granularity=granularity,
            )
            for granularity in _GRANULARITIES
        )
    return plan, gain_inside_units(coarse, finer)


_GRANULARITIES: tuple[Granularity, ...] = ("unit", "op")


def _watched(standing: Tell | None) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if standing is None else watching(standing)


def _announce(request: PlanRequest, progress: Progress) -> None:
    limit_s = request.time_limit_s
    progress("planning" if limit_s is None else f"planning, at most {limit_s:g} s")


def _resolve(
    prepared: PreparedModel,
    request: PlanRequest,
    costs: Costs,
    backend: str,
    batch_size: int | None,
    num_threads: int | None,
    progress: Progress,
) -> tuple[Profiles | None, MeasuredCosts | None]:
    """The profiles to plan with, None for multiply-adds; and what can measure stages as wholes.

    The latter only where the stages are to be processes of this machine.
    """
    backend = check_backend_name(backend)
    if isinstance(costs, str):
        if costs not in ("measured", "flops"):
            raise ValueError(f"costs are 'measured' or 'flops' or profiles, got {costs!r}")
        if costs == "flops":
            if backend != AUTO or num_threads is not None:
                raise ValueError(
                    "a backend and threads are for measured costs; multiply-adds are the same for "
                    "all"
                )
            return None, None
        costs = {}
    measured = costs.only(backend) if isinstance(costs, MeasuredCosts) else None
    profiles = measured.profile if measured else costs
    assert not isinstance(profiles, MeasuredCosts)
    if isinstance(profiles, Mapping) and _lacks_reference(profiles, request):
        measured = measure_costs(
            prepared,
            backend=backend,
            batch_size=batch_size,
            num_threads=num_threads or 1,
            progress=progress,
        )
        profiles = {REFERENCE: measured.profile, **profiles} if profiles else measured.profile
    by_name = profiles if isinstance(profiles, Mapping) else {REFERENCE: profiles}
    for each in by_name.values():
        _check_threads(each, num_threads)
    if backend != AUTO:
        by_name = {name: with_backend(each, backend) for name, each in by_name.items()}
    profiles = by_name if isinstance(profiles, Mapping) else by_name[REFERENCE]
    return profiles, measured if request.cluster is None else None


def _lacks_reference(profiles: Mapping[str, Profile], request: PlanRequest) -> bool:
    """Whether a device has no profile, and there is none to scale from."""
    devices = request.cluster.devices if request.cluster else ()
    return REFERENCE not in profiles and (
        not devices or any(device.profile is None for device in devices)
    )


def _check_threads(profile: Profile, num_threads: int | None) -> None:
    """Makes sure that a profile was measured with the threads that are asked for, if any are.

    Raises:
        PlanError: it was not.
    """
    if num_threads not in (None, profile.num_threads):
        raise PlanError(
            f"the profile of {profile.device!r} was measured with {profile.num_threads} "
            f"{'thread' if profile.num_threads == 1 else 'threads'}, not the {num_threads} of "
            "--threads; leave --threads out, or profile it again with that number"
        )


def plan_stages(
    prepared: PreparedModel,
    request: PlanRequest | None = None,
    *,
    num_stages: int | None = None,
    profile: Profile | Mapping[str, Profile] | None = None,
    batch_size: int | None = None,
    granularity: Granularity = "unit",
) -> Plan:
    """The best plan for a request; for N equal devices ``num_stages=N`` says enough.

    Args:
        prepared: the model.
        request: what is wanted.
        num_stages: short for a request that says only this.
        profile: measured costs; multiply-adds alone where None.
        batch_size: as `plan_model` takes it.
        granularity: ``"op"`` allows cuts between any two operations, to see what respecting units
            costs; such a plan is not for splitting.

    Raises:
        PlanError: no plan can be made; says why.
        InfeasiblePlan: no placement fits the devices' memory.
        TypeError: both a request and `num_stages` are given.
    """
    if request is not None and num_stages is not None:
        raise TypeError("give a request or num_stages; a request says the number itself")
    wanted = request or PlanRequest(num_stages=num_stages)
    sizes = planned_sizes(prepared, profile, batch_size)
    costs_at = functools.partial(
        cost_model,
        prepared,
        profiles=profile,
        base_bytes=worker_base_bytes(wanted.devices_and_links, profile),
        allow=wanted.allow,
    )
    graph, cuts = prepared.captured.graph, prepared.cuts

    def plan_of(as_pixels: bool) -> Callable[[PlanRequest], Plan]:
        costs = [
            costs_at(batch_size=rows, granularity=granularity, as_pixels=as_pixels)
            for rows in sizes
        ]
        return lambda limited: make_plan(graph, cuts, costs, limited)

    try:
        plan = best_form([plan_of(form) for form in _input_forms(prepared, wanted)], wanted)
    except PlanError as error:
        costs_at = functools.partial(costs_at, batch_size=sizes[0])
        more = _more_tensors(prepared, wanted, None, costs_at) if granularity == "unit" else None
        if more is not None:
            error.args = (f"{error}; {_advice(more)}",)
        raise
    costs_at = functools.partial(costs_at, as_pixels=plan.input_codec == PIXELS)
    if granularity == "unit":
        costs_at = functools.partial(costs_at, batch_size=plan.micro_batch)
        more = _more_tensors(prepared, wanted, plan, costs_at)
        notes = plan.notes
        if plan.micro_batch == sizes[-1] and (
            advice := more_rows_advice(graph, cuts, costs_at(), wanted, plan=plan)
        ):
            notes = (*notes, advice)
        plan = msgspec.structs.replace(plan, more_tensors=more, notes=notes)
    if wanted.allow and all(stage.codec == NONE for stage in plan.stages):
        note = f"{' and '.join(wanted.allow)}: allowed and not used, as no better plan has it"
        plan = msgspec.structs.replace(plan, notes=(*plan.notes, note))
    if profile is not None:
        return plan
    note = "times stand for work: 1e9 multiply-adds a second at speed 1; nothing was measured"
    return msgspec.structs.replace(plan, notes=(*plan.notes, note))


def _input_forms(prepared: PreparedModel, request: PlanRequest) -> tuple[bool, ...]:
    """Whether inputs may travel as pixels, and as they are; the caller's way to them must cost."""
    has_way = request.devices_and_links.caller is not None
    return (True, False) if has_way and takes_images_of(prepared) else (False,)


def _more_tensors(
    prepared: PreparedModel,
    wanted: PlanRequest,
    plan: Plan | None,
    costs_at: Callable[..., CostModel],
) -> MoreTensors | None:
    """What more tensors across a cut would give; None where the caller names the cuts."""
    if wanted.cut_names:
        return None
    return try_more_tensors(
        prepared.captured.graph,
        prepared.cuts,
        wanted,
        lambda finer: costs_at(finer=finer),
        plan=plan,
        keep=prepared.keep,
        divide=prepared.divide,
        rules=prepared.cut_rules,
    )


def _advice(more: MoreTensors) -> str:
    """What the user of a model without a plan can do."""
    return (
        f"with max_tensors={more.max_tensors} (--max-tensors {more.max_tensors}) there would be "
        f"{more.num_points} cut points instead of {more.num_points_now}, and the slowest stage "
        f"would compute {more.slowest_over_even:.2f} times as long as the average one"
    )
