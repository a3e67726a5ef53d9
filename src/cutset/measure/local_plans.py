"""How long a plan takes as processes of this machine, and plans that are made by that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import msgspec

from cutset.backends.allocator import keep_freed_memory
from cutset.capture.captured import Captured
from cutset.costs.profile import Profile, of_sizes, with_backend, with_stages
from cutset.errors import EngineError, PlanError
from cutset.host import usable_cores
from cutset.measure.messages import measure_hop
from cutset.measure.piece_times import PieceBackend
from cutset.measure.profiling import time_stages
from cutset.planning.plan import Expected, Plan
from cutset.printable import first_line
from cutset.progress import Progress, no_progress

logger = logging.getLogger(__name__)

_MOST_PLANS = 5


def plan_here(
    captured: Captured,
    make: Callable[[Profile], Plan],
    profile: Profile,
    backends: Mapping[str, PieceBackend],
    *,
    num_threads: int = 1,
    num_runs: int = 20,
    progress: Progress = no_progress,
) -> Plan:
    """Plans for processes of this machine, with what the planned stages take as wholes.

    Sums of pieces carry the average cost of a cut, so the stages of a plan may take more or less
    than their pieces promise. Here the stages of a plan are measured as wholes, the profile's
    pieces are scaled to that, and it is planned again, until a plan comes again or five were
    measured. The one that takes the least is returned; its bound and proof are about the profile it
    was made from.

    Args:
        captured: the captured model.
        make: the planner.
        profile: of this machine, from `backends`.
        backends: what the profile measured, as `piece_backends` gives them.
        num_threads: threads of each stage.
        num_runs: measured runs of each stage, if time allows.
        progress: told of every step.

    Returns:
        The plan with `Plan.expected`.

    Raises:
        PlanError: no plan can be made.
        EngineError: the first backend cannot run a stage of a plan. Where another cannot, it is
            planned for the first alone, with a warning.
    """
    measured: dict[tuple[int, tuple[tuple[str, str, int], ...]], Plan] = {}
    for number in range(1, _MOST_PLANS + 1):
        try:
            plan = make(profile)
        except PlanError:
            if not measured:
                raise
            break  # what was promised, a latency for instance, cannot be kept as wholes
        stages = tuple((stage.last, stage.backend, len(stage.group)) for stage in plan.stages)
        if (plan.micro_batch, stages) in measured:
            break
        progress(f"measuring the stages of plan {number} as wholes")
        try:
            plan = expect_here(captured, plan, backends, num_threads=num_threads, num_runs=num_runs)
        except EngineError as error:
            reference, *_ = backends
            if all(name == reference for _, name, _ in stages):
                raise
            logger.warning("planned for %s alone: %s", reference, error)
            profile = with_backend(profile, reference)
            continue
        measured[plan.micro_batch, stages] = plan
        assert plan.expected is not None
        lasts, names, _ = zip(*stages, strict=True)
        sizes = {rows: profile.at(rows) for rows in profile.micro_batches}
        sizes[plan.micro_batch] = with_stages(
            sizes[plan.micro_batch], lasts, names, plan.expected.compute_s
        )
        profile = of_sizes(list(sizes.values()))
    return min(measured.values(), key=_objective_s)


def _objective_s(plan: Plan) -> float:
    """Seconds to compare: of one micro-batch alone, or of a row in steady state."""
    if plan.objective == "latency":
        return plan.expected_latency_s
    return plan.expected_period_s / plan.micro_batch


def expect_here(
    captured: Captured,
    plan: Plan,
    backends: Mapping[str, PieceBackend],
    *,
    num_threads: int = 1,
    num_runs: int = 20,
) -> Plan:
    """The plan with how long it takes as processes of this machine: `Plan.expected`.

    Every stage is measured as a whole, and every message at its size. A stage's process
    computes and has one end of two messages; the caller has the outer ends, on the same
    cores. So the period is the longest stage with its ends of its messages, of a group's the
    largest share of that, or, where there are fewer cores than that needs, all the work over the
    cores.

    Args:
        captured: the captured model.
        plan: made with a profile of this machine.
        backends: what the profile measured, as `piece_backends` gives them.
        num_threads: threads of each stage.
        num_runs: rows that each stage is measured with, if time allows; at least 5 runs are made.

    Raises:
        PlanError: a stage's backend is none of `backends`.
        EngineError: a backend that can run every piece cannot run a stage.
    """
    keep_freed_memory()
    missing = {stage.backend for stage in plan.stages} - backends.keys()
    if missing:
        raise PlanError(
            f"stages of the plan run on {', '.join(sorted(missing))}, but what can be measured is"
            f" {', '.join(backends)}"
        )
    try:
        timings = time_stages(
            captured,
            [0, *(stage.stop for stage in plan.stages)],
            [backends[stage.backend] for stage in plan.stages],
            micro_batch=plan.micro_batch,
            num_threads=num_threads,
            num_runs=num_runs // plan.micro_batch,
        )
    except Exception as error:
        # What runtimes raise has no common class but this.
        named = ", ".join(sorted({stage.backend for stage in plan.stages}))
        reason = first_line(error)
        raise EngineError(f"the stages of the plan do not run with {named}: {reason}") from error
    row_bytes = (
        sum(spec.bytes_per_sample for spec in captured.graph.inputs),
        *(stage.output_bytes_per_sample for stage in plan.stages),
    )
    compute_s = tuple(timing.median_s for timing in timings)
    message_s = tuple(measure_hop(plan.micro_batch * num_bytes) for num_bytes in row_bytes)
    longest_s = max(
        max(each.share for each in stage.group) * (s + (before + after) / 2)
        for stage, s, before, after in zip(
            plan.stages, compute_s, message_s, message_s[1:], strict=False
        )
    )
    all_s = sum(compute_s) + sum(message_s)
    at_once = max(1.0, usable_cores() / num_threads)
    expected = Expected(
        where="this machine",
        compute_s=compute_s,
        message_s=message_s,
        period_s=max(longest_s, all_s / at_once),
        latency_s=all_s,
    )
    return msgspec.structs.replace(plan, expected=expected)
