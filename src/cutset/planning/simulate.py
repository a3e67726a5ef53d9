"""A pure simulation of a pipeline: what happens when, with no clock but arithmetic.

Stages and links are resources that do one thing at a time, in the micro-batches' order. At most
`window` micro-batches are between the caller's send and the answer. Overlapped, a link works
beside the stages at its ends; serial, a transfer occupies both of them. A stage's overhead keeps it
from the next micro-batch once this one's result is out. With a window that is wide
enough the steady period is the largest load, and the first latency is the sum of all parts, as the
formulas in `problem` say; the tests hold the two against each other. Messages that share a port or
a medium slow each other down (`simulate_shared`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import msgspec

from cutset.planning.plan import Plan
from cutset.planning.simulate_groups import run_groups
from cutset.planning.simulate_shared import run_shared


class Slot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One thing that a resource does.

    Attributes:
        resource: ``"stage 0"``, ``"link 0 -> 1"``; the caller's links are ``"link caller -> 0"``
            and, from the last stage k, ``"link k -> caller"``.
        kind: ``"compute"`` or ``"transfer"``.
        stage: index of the stage that computes or sends; -1 for the caller.
        microbatch_index: which micro-batch, from 0.
        start_s: seconds since the first micro-batch was given in.
        stop_s: seconds at its end, not before `start_s`.
    """

    resource: str
    kind: str
    stage: int
    microbatch_index: int
    start_s: float
    stop_s: float


class SimulatedTimeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that happened, and what it amounts to.

    Attributes:
        slots: in order of start.
        num_microbatches: how many went through.
        first_latency_s: from the first micro-batch's start to its answer.
        steady_period_s: mean seconds between answers over the second half; 0 for one micro-batch.
        total_s: when the last answer came.
        busy_fraction: by stage, the part of the total in which it computed.
    """

    slots: tuple[Slot, ...]
    num_microbatches: int
    first_latency_s: float
    steady_period_s: float
    total_s: float
    busy_fraction: tuple[float, ...]


def simulate_plan(
    plan: Plan, *, num_microbatches: int = 16, window: int | None = None
) -> SimulatedTimeline:
    """Simulates a plan with the seconds that it predicts; arguments as `simulate`.

    Of a plan with groups each micro-batch takes its route through them (`simulate_groups`).
    """
    if plan.has_groups:
        slots: list[Slot] = []

        def done(name: str, kind: str, k: int, index: int, start_s: float, stop_s: float) -> None:
            slots.append(_slot(name, kind, k, index, start_s, stop_s))

        answers = run_groups(plan, num_microbatches=num_microbatches, window=window, done=done)
        return _timeline(slots, answers, [stage.compute_s for stage in plan.stages])
    shared_s: list[dict[str, float]] = [{} for _ in range(len(plan.stages) + 1)]
    for message in plan.messages:
        at = 0 if message.after is None else message.after + 1
        shared_s[at] = {use.wire: use.busy_s for use in message.uses[1:]}
    return simulate(
        [stage.compute_s + stage.coding_s for stage in plan.stages],
        [plan.stages[0].receive_s, *(stage.send_s for stage in plan.stages)],
        overhead_s=[max(0.0, stage.overhead_s - stage.coding_s) for stage in plan.stages],
        num_microbatches=num_microbatches,
        window=window,
        serial=plan.serial,
        shared_s=shared_s,
    )


def simulate(
    compute_s: Sequence[float],
    transfer_s: Sequence[float],
    *,
    num_microbatches: int,
    overhead_s: Sequence[float] = (),
    window: int | None = None,
    serial: bool = False,
    shared_s: Sequence[Mapping[str, float]] = (),
) -> SimulatedTimeline:
    """Runs micro-batches through stages and links.

    Args:
        compute_s: seconds of each stage, k of them.
        transfer_s: seconds into the first stage, between neighbours, out of the last: k + 1.
        num_microbatches: how many to run, at least 1.
        overhead_s: seconds that each stage is busy besides computing; none if empty.
        window: the most between send and answer at any time; None for no limit.
        serial: whether a transfer occupies the stages at its ends.
        shared_s: for each transfer the seconds that it keeps what others use too busy, by name; at
            most its own seconds. Nothing if empty.

    Raises:
        ValueError: numbers that do not fit each other, or out of their range.
    """
    num = len(compute_s)
    overhead_s = overhead_s or [0.0] * num
    _check_seconds(compute_s, transfer_s, overhead_s)
    _check_shared(transfer_s, shared_s)
    if num_microbatches < 1 or (window is not None and window < 1):
        raise ValueError("num_microbatches and window must be at least 1")
    names = _link_names(num)
    slots: list[Slot] = []
    if len([name for each in shared_s for name in each]) > len({n for s in shared_s for n in s}):

        def done(kind: str, k: int, index: int, start_s: float, stop_s: float) -> None:
            is_move = kind == "transfer"
            name = names[k] if is_move else f"stage {k}"
            slots.append(_slot(name, kind, k - is_move, index, start_s, stop_s))

        moments = run_shared(
            compute_s,
            transfer_s,
            overhead_s,
            shared_s,
            num_microbatches=num_microbatches,
            window=window,
            serial=serial,
            done=done,
        )
        return _timeline(slots, moments, compute_s)
    answers: list[float] = []
    stage_free = [0.0] * num
    link_free = [0.0] * (num + 1)
    for m in range(num_microbatches):
        ready = answers[m - window] if window is not None and m >= window else 0.0
        for k in range(num + 1):
            # Link k ends at stage k, and begins at stage k - 1.
            start = max(ready, link_free[k])
            if serial and k < num and transfer_s[k] > 0:
                start = max(start, stage_free[k])
            stop = start + transfer_s[k]
            if transfer_s[k] > 0:
                slots.append(_slot(names[k], "transfer", k - 1, m, start, stop))
                link_free[k] = stop
                if serial and k > 0:
                    stage_free[k - 1] = stop + overhead_s[k - 1]
            ready = stop
            if k < num:
                start = max(ready, stage_free[k])
                ready = start + compute_s[k]
                stage_free[k] = ready + overhead_s[k]
                slots.append(_slot(f"stage {k}", "compute", k, m, start, ready))
        answers.append(ready)
    return _timeline(slots, answers, compute_s)


def _check_seconds(
    compute_s: Sequence[float], transfer_s: Sequence[float], overhead_s: Sequence[float]
) -> None:
    num = len(compute_s)
    if num < 1 or len(transfer_s) != num + 1:
        raise ValueError(f"{num} stages need {num + 1} transfers, got {len(transfer_s)}")
    if len(overhead_s) != num:
        raise ValueError(f"{num} stages and {len(overhead_s)} overheads")
    if any(not 0 <= s < math.inf for s in (*compute_s, *transfer_s, *overhead_s)):
        raise ValueError("seconds must be 0 or more and finite")


def _check_shared(transfer_s: Sequence[float], shared_s: Sequence[Mapping[str, float]]) -> None:
    if shared_s and len(shared_s) != len(transfer_s):
        raise ValueError(f"{len(transfer_s)} transfers and {len(shared_s)} of what they share")
    for own_s, each in zip(transfer_s, shared_s, strict=False):
        if any(not 0 <= seconds <= own_s * (1 + 1e-9) for seconds in each.values()):
            raise ValueError(f"a transfer of {own_s} s keeps something busy for longer: {each}")


def _slot(resource: str, kind: str, stage: int, index: int, start: float, stop: float) -> Slot:
    return Slot(
        resource=resource,
        kind=kind,
        stage=stage,
        microbatch_index=index,
        start_s=start,
        stop_s=stop,
    )


def _link_names(num_stages: int) -> list[str]:
    ends = ["caller", *(str(k) for k in range(num_stages)), "caller"]
    return [f"link {a} -> {b}" for a, b in itertools.pairwise(ends)]


def _timeline(
    slots: list[Slot], answers: list[float], compute_s: Sequence[float]
) -> SimulatedTimeline:
    total_s, count = answers[-1], len(answers)
    half = (count - 1) // 2
    steady_s = (total_s - answers[half]) / (count - 1 - half) if count > 1 else 0.0
    return SimulatedTimeline(
        slots=tuple(sorted(slots, key=lambda slot: (slot.start_s, slot.microbatch_index))),
        num_microbatches=count,
        first_latency_s=answers[0],
        steady_period_s=steady_s,
        total_s=total_s,
        busy_fraction=tuple(s * count / total_s if total_s else 0.0 for s in compute_s),
    )
