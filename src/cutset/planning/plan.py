"""A plan: which stage runs where, what is predicted for it, and the bound that judges it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeAlias

import msgspec

from cutset.codecs.known_codecs import NONE
from cutset.errors import PlanError
from cutset.notebooks import drawn
from cutset.planning.plan_messages import PlannedMessage, WireUse, wire_loads
from cutset.planning.request import MAX_REPLICAS, Objective
from cutset.ranges import Count, Gap, NotNegative, PositiveCount, Rows, Seconds

PLAN_FORMAT = "cutset-plan/1"
GROUPS_FORMAT = "cutset-plan/2"
"""Of plans in which some stage has several devices; all others are as they were."""

SHARES_SLACK = 1e-9

Share: TypeAlias = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
"""A part of a stage's micro-batches."""


class Replica(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device of a stage's group.

    Attributes:
        device: its name.
        share: of the stage's micro-batches that it takes, above 0 and at most 1.
        compute_s: predicted seconds for one micro-batch.
        memory_bytes: predicted bytes of memory that the stage needs on it.
        memory_limit_bytes: what the device has, or None where memory is no limit.
        backend: the backend that `compute_s` was measured with, or ``""``.
        overhead_s: predicted seconds that it cannot compute, for each of its micro-batches.
    """

    device: str
    share: Share
    compute_s: Seconds
    memory_bytes: Count
    memory_limit_bytes: Count | None = None
    backend: str = ""
    overhead_s: Seconds = 0.0

    @property
    def busy_s(self) -> float:
        """Predicted seconds for which each of its micro-batches occupies it, transfers aside."""
        return self.compute_s + self.overhead_s


def in_shares(group: Iterable[tuple[str, float]]) -> str:
    """``"a 66.7%, b 33.3%"``: devices with their shares."""
    return ", ".join(f"{device} {share:.1%}" for device, share in group)


class StagePlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage of a plan.

    Attributes:
        index: 0 for the stage that takes the model's inputs.
        first: name of the unit or operation it begins with.
        last: name of the cut point that ends it (``CutPoint.after``), ``"output"`` for the last
            stage.
        start: index of its first operation in the graph.
        stop: index after its last operation.
        units: paths of the units that it holds.
        device: name of the device it runs on; of a group's first one.
        compute_s: predicted seconds for one micro-batch; of a group those between two of them,
            which for devices as fast as their shares is 1 / the sum of their rates.
        send_s: predicted seconds to send one micro-batch's outputs to the next stage; for the
            last one to the caller, 0 where the cluster names none.
        weight_bytes: bytes of the parameters, buffers and constants that it holds.
        memory_bytes: predicted bytes of memory that it needs on its device.
        output_bytes_per_sample: bytes that leave it for one row.
        receive_s: predicted seconds to receive one micro-batch's inputs.
        backend: the backend that `compute_s` was measured with, or ``""``.
        memory_limit_bytes: what the device has, or None where memory is no limit.
        flops: multiply-adds for one row.
        cut_kind: kind of the cut that ends it, ``""`` for the last stage.
        overhead_s: predicted seconds that it cannot compute, for each micro-batch, because of its
            messages, their bytes, and a caller on its device; of no part of the latency.
        codec: with which its outputs travel to the next stage; those that it does not take travel
            as they are. ``"none"`` where all do.
        sent_bytes_per_sample: bytes that travel of `output_bytes_per_sample`; None for all.
        encode_s: predicted seconds of `overhead_s` that writing its outputs takes.
        decode_s: predicted seconds of `overhead_s` that reading its inputs takes.
        replicas: all devices of its group, `device` first; without them (unset, or empty where it
            is made) it is on `device` alone.
    """

    index: Count
    first: str
    last: str
    start: Count
    stop: Count
    units: tuple[str, ...]
    device: str
    compute_s: Seconds
    send_s: Seconds
    weight_bytes: Count
    memory_bytes: Count
    output_bytes_per_sample: Count
    receive_s: Seconds = 0.0
    backend: str = ""
    memory_limit_bytes: Count | None = None
    flops: Count = 0
    cut_kind: str = ""
    overhead_s: Seconds = 0.0
    codec: str = NONE
    sent_bytes_per_sample: Count | None = None
    encode_s: Seconds = 0.0
    decode_s: Seconds = 0.0
    replicas: tuple[Replica, ...] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        """Checks its group: a plan may come from a file.

        Raises:
            ValueError: the group is of one device or too many, names one twice, does not begin with
                `device`, or its shares do not add up to 1.
        """
        if self.replicas == ():
            msgspec.structs.force_setattr(self, "replicas", msgspec.UNSET)
        if self.replicas is msgspec.UNSET:
            return
        names = [replica.device for replica in self.replicas]
        if not 2 <= len(names) <= MAX_REPLICAS or len(set(names)) < len(names):
            raise ValueError(f"replicas are 2 to {MAX_REPLICAS} distinct devices, got {len(names)}")
        if names[0] != self.device:
            raise ValueError(f"replicas begin with {names[0][:60]!r}, device is another one")
        total = math.fsum(replica.share for replica in self.replicas)
        if abs(total - 1) > SHARES_SLACK:
            raise ValueError(f"shares of a group add up to 1, got {total!r}")

    @property
    def group(self) -> tuple[Replica, ...]:
        """All its devices, one at least."""
        if self.replicas is not msgspec.UNSET:
            return self.replicas
        return (
            Replica(
                device=self.device,
                share=1.0,
                compute_s=self.compute_s,
                memory_bytes=self.memory_bytes,
                memory_limit_bytes=self.memory_limit_bytes,
                backend=self.backend,
                overhead_s=self.overhead_s,
            ),
        )

    @property
    def where(self) -> str:
        """Its device, or its devices with their shares, in words."""
        if self.replicas is msgspec.UNSET:
            return self.device
        return in_shares((each.device, each.share) for each in self.replicas)

    @property
    def busy_s(self) -> float:
        """Predicted seconds for which each micro-batch occupies it, transfers aside."""
        return self.compute_s + self.overhead_s

    @property
    def coding_s(self) -> float:
        """Predicted seconds of `overhead_s` for codecs, at both of its ends."""
        return self.encode_s + self.decode_s

    @property
    def travelling_bytes(self) -> int:
        """Bytes that travel of its outputs for one row."""
        sent = self.sent_bytes_per_sample
        return self.output_bytes_per_sample if sent is None else sent


class Certificate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A proof that no plan has an objective below `bound_s`.

    Attributes:
        name: ``"volume"``, ``"sharing"``, ``"largest node"``, ``"cover"``, ``"cut count"``,
            ``"exhaustion"``, ``"search"`` or ``"relaxation"``;
            `cutset.planning.certificates` says what each proves.
        bound_s: seconds.
        detail: the numbers behind it, in words.
    """

    name: str
    bound_s: Seconds
    detail: str


class Alternative(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What another number of stages would give.

    Attributes:
        num_stages: 1 is "do not split".
        devices: names in pipeline order, of a group its first; empty where nothing fits.
        last: where each stage would end; empty where nothing fits.
        period_s: predicted seconds per micro-batch, None where nothing fits.
        latency_s: predicted seconds for one micro-batch alone, None where nothing fits.
        reason: why there is no such plan, or ``""``.
        groups: all devices of each stage, where some stage has several; else unset.
    """

    num_stages: PositiveCount
    devices: tuple[str, ...] = ()
    last: tuple[str, ...] = ()
    period_s: Seconds | None = None
    latency_s: Seconds | None = None
    reason: str = ""
    groups: tuple[tuple[str, ...], ...] | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        """Checks what belongs together: a plan may come from a file.

        Raises:
            ValueError: only one of period and latency is given, or there are not as many devices
                as stages, or stages without times, or times without stages.
        """
        if (self.period_s is None) != (self.latency_s is None):
            raise ValueError("period_s and latency_s are given together or not at all")
        if len(self.devices) != len(self.last):
            raise ValueError(f"{len(self.devices)} devices for stages that end at {self.last}")
        if self.groups is not msgspec.UNSET and (
            tuple(group[0] for group in self.groups if group) != self.devices
        ):
            raise ValueError("groups begin with devices, one for each stage")
        if bool(self.last) != (self.period_s is not None):
            raise ValueError("last and period_s are given together or not at all")


class Copies(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the whole model on every device that holds it would give, beside a plan.

    Attributes:
        devices: their names, in the cluster's order; with fewer than two, `reason` says why.
        shares: of the micro-batches, for each.
        period_s: predicted seconds per micro-batch, None where there are no copies.
        latency_s: predicted seconds for one micro-batch alone on the slowest, or None.
        reason: why there are no copies, or ``""``.
    """

    devices: tuple[str, ...] = ()
    shares: tuple[Share, ...] = ()
    period_s: Seconds | None = None
    latency_s: Seconds | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        """Checks what belongs together: a plan may come from a file.

        Raises:
            ValueError: devices, shares and times are not given together.
        """
        has_times = self.period_s is not None and self.latency_s is not None
        is_empty = self.period_s is None and self.latency_s is None
        if len(self.devices) != len(self.shares) or not (has_times if self.devices else is_empty):
            raise ValueError("devices, shares, period_s and latency_s are given together")


class SizeTried(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the best plan with one number of rows in a micro-batch gives.

    Attributes:
        micro_batch: the number of rows.
        rows_per_s: predicted rows per second of the best plan with it, None where there is none.
        latency_s: predicted seconds for one micro-batch of that plan alone, or None.
        reason: why there is no such plan, or ``""``.
    """

    micro_batch: Rows
    rows_per_s: NotNegative | None = None
    latency_s: Seconds | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        """Checks what belongs together: a plan may come from a file.

        Raises:
            ValueError: there are rows a second without a latency, or the other way round.
        """
        if (self.rows_per_s is None) != (self.latency_s is None):
            raise ValueError("rows_per_s and latency_s are given together or not at all")


class MoreTensors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What it would give to let more tensors across a cut.

    Attributes:
        max_tensors: the least of the numbers tried that gives this.
        num_points: candidate cut points with it.
        num_points_now: candidate cut points as things are.
        period_s: about the seconds per micro-batch of the best plan with it.
        latency_s: about the seconds for one micro-batch alone.
        slowest_over_even: about the compute of its slowest stage over that of the average one.
    """

    max_tensors: PositiveCount
    num_points: Count
    num_points_now: Count
    period_s: Seconds
    latency_s: Seconds
    slowest_over_even: NotNegative


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plan takes, with what was measured beyond the sums that the planner minimises.

    The planner adds up pieces, which have the average cost of a cut in them, and takes links
    between equal devices to be free. Where every stage is to be a process of this machine, these
    numbers come from the chosen stages, measured as wholes, and from what messages and the caller's
    own part cost here. On a cluster, what bytes take from computing is added where its links say
    it, and where the chosen stages were measured as wholes on their nodes, that replaces the sums.

    Attributes:
        where: ``"this machine"``; ``"nodes"`` where every stage was timed as a whole on its node;
            ``"cluster"`` in bundles of older versions, which tell sums and timed stages apart only
            by `compute_s`.
        compute_s: of each stage, for one micro-batch.
        message_s: processor seconds of each message, both ends together: from the caller to the
            first stage, between neighbours, from the last stage to the caller.
        period_s: seconds per micro-batch in steady state.
        latency_s: seconds for one micro-batch alone; on this machine without the time that waking
            processes takes, on a cluster with stages that have rested where that was measured.
    """

    where: str
    compute_s: tuple[Seconds, ...]
    message_s: tuple[Seconds, ...]
    period_s: Seconds
    latency_s: Seconds


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Stages, devices, predictions and the proof.

    Attributes:
        format: ``"cutset-plan/1"``; ``"cutset-plan/2"`` where some stage has several devices.
        objective: ``"throughput"`` or ``"latency"``.
        micro_batch: rows of a micro-batch.
        stages: in pipeline order.
        period_s: predicted seconds per micro-batch in steady state.
        latency_s: predicted seconds for one micro-batch alone.
        bound_s: no plan under the same rules can have an objective below this.
        bound_by: which certificate gives `bound_s` (``"exhaustion"``, ``"volume"``, ...).
        gap: objective / bound_s - 1; 0 when the plan is proven the best, None where nothing is
            known (`bound_s` is 0 and the objective is not).
        serial: whether a stage computes, receives and sends one after the other.
        fixed_order: whether the devices had to come in the cluster's order.
        max_latency_s: the limit that was asked for, or None.
        min_rows_per_s: the throughput that was asked for, or None.
        family: the cuts that were searched: ``"prefix"`` (of the order of execution),
            ``"downset"`` (all there are), ``"orders"`` (some, or on some of the devices, as
            there are too many), or ``"given"`` (the caller named them).
        proven_among: the plans for which `bound_s` holds, in words that `claim` ends with; for
            ``"orders"`` these are more than were searched.
        certificates: every bound that was worked out, the tightest first.
        alternatives: the best plan for other numbers of stages, "do not split" first.
        unused_devices: devices of the cluster that get no stage.
        notes: what else a reader should know, a sentence each.
        more_tensors: what a larger `max_tensors` would give, where it would help.
        expected: what this plan takes with more than the planner's sums, where that is known.
        messages: between machines, in the order of the pipeline; empty in plans that older
            versions made.
        sizes: the numbers of rows that `micro_batch` was chosen from, rising; empty where there was
            no choice.
        input_codec: ``"uint8-image"`` where images are to travel to the first stage as pixels,
            which it scales and normalises; else ``"none"``.
        input_bytes_per_sample: bytes that travel of the model's inputs for one row; None in plans
            that older versions made.
        copies: what whole copies of the model would give; unset where that was not asked, or the
            plan is these copies.
    """

    format: str
    objective: Objective
    micro_batch: Rows
    stages: tuple[StagePlan, ...]
    period_s: Seconds
    latency_s: Seconds
    bound_s: Seconds
    bound_by: str
    gap: Gap | None
    serial: bool = False
    fixed_order: bool = False
    max_latency_s: Seconds | None = None
    min_rows_per_s: NotNegative | None = None
    family: str = "prefix"
    proven_among: str = ""
    certificates: tuple[Certificate, ...] = ()
    alternatives: tuple[Alternative, ...] = ()
    unused_devices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    more_tensors: MoreTensors | None = None
    expected: Expected | None = None
    messages: tuple[PlannedMessage, ...] = ()
    sizes: tuple[SizeTried, ...] = ()
    input_codec: str = NONE
    input_bytes_per_sample: Count | None = None
    copies: Copies | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        """Checks its groups: a plan may come from a file.

        Raises:
            ValueError: `format` is not that of plans with groups, or without, whichever this is; or
                a device is in two groups.
        """
        if self.format not in (PLAN_FORMAT, GROUPS_FORMAT):
            return  # another version, which readers name
        if (self.format == GROUPS_FORMAT) != self.has_groups:
            raise ValueError(f"{self.format!r} is not the format of plans with these groups")
        names = [replica.device for stage in self.stages for replica in stage.group]
        if self.has_groups and len(set(names)) < len(names):
            raise ValueError("a device is in two groups")

    @property
    def has_groups(self) -> bool:
        """Whether some stage has several devices."""
        return any(stage.replicas is not msgspec.UNSET for stage in self.stages)

    @property
    def wires(self) -> tuple[WireUse, ...]:
        """How busy links, media and ports are with each micro-batch."""
        return wire_loads(self.messages)

    @property
    def shared_wires(self) -> tuple[WireUse, ...]:
        """The same of media and ports alone."""
        own = {message.uses[0].wire for message in self.messages if message.uses}
        return tuple(use for use in self.wires if use.wire not in own)

    @property
    def bottleneck(self) -> str:
        """What limits the rows per second, by name: a stage, a link, a port, or a medium."""
        parts: list[tuple[float, str]] = []
        for stage in self.stages:
            moves_s = stage.receive_s + stage.send_s if self.serial else 0.0
            words = f"stage {stage.index} on {stage.where}"
            parts.append((stage.busy_s + moves_s, words))
        limits = {m.uses[0].wire: m.limit for m in self.messages if m.uses}
        parts += [(use.busy_s, use.wire) for use in self.shared_wires]
        for use in self.wires:
            if use.wire in limits and not self.serial:
                limit = limits[use.wire]
                parts.append((use.busy_s, f"{use.wire}{f', limited by {limit}' * bool(limit)}"))
        if not self.messages and not self.serial:
            parts.append((self.stages[0].receive_s, "link to stage 0"))
            parts += [(each.send_s, f"link after stage {each.index}") for each in self.stages]
        longest_s = max(seconds for seconds, _ in parts)
        return next(words for seconds, words in parts if seconds >= longest_s * (1 - 1e-9))

    @property
    def has_codecs(self) -> bool:
        """Whether something travels otherwise than it is."""
        return self.input_codec != NONE or any(stage.codec != NONE for stage in self.stages)

    @property
    def rows_per_s(self) -> float:
        """Predicted rows per second in steady state; infinity where nothing costs time."""
        return self.micro_batch / self.period_s if self.period_s else float("inf")

    @property
    def expected_period_s(self) -> float:
        """Seconds per micro-batch to hold a measurement against: `expected`'s, else `period_s`."""
        return self.expected.period_s if self.expected is not None else self.period_s

    @property
    def expected_latency_s(self) -> float:
        """Seconds for one micro-batch alone: `expected`'s, else `latency_s`."""
        return self.expected.latency_s if self.expected is not None else self.latency_s

    @property
    def is_proven(self) -> bool:
        """Whether the bound meets the objective, to rounding."""
        return self.gap is not None and self.gap <= 1e-9

    @property
    def claim(self) -> str:
        """How good the plan is known to be, and among which plans, in words."""
        if self.gap is None:
            words = "how far above the best possible is not known"
        elif self.is_proven:
            words = "proven the best"
        else:
            words = f"at most {self.gap:.2%} above the best possible"
        return f"{words} {self.proven_among}".rstrip()

    def _repr_html_(self) -> str | None:
        return drawn("plan_html", self)


def gap_of(value_s: float, bound_s: float) -> float | None:
    """How far an objective lies above its bound; None where the bound says nothing."""
    if bound_s >= value_s * (1 - 1e-9):
        return 0.0
    gap = value_s / bound_s - 1 if bound_s > 0 else math.inf
    return gap if math.isfinite(gap) else None


_AMONG = {
    "prefix": "with cuts in order of execution, ",
    "downset": "with ",
    "orders": "with ",
    "given": "with these cuts, ",
}


def proven_among(family: str, *, is_apart: bool, most: int = 1) -> str:
    """`Plan.proven_among` for a family of cuts.

    Args:
        family: as `Plan.family`.
        most: the largest group that a stage might have.
        is_apart: whether links cost something and are all there is between machines; then it is
            said that each is taken to be by itself.
    """
    devices = "one device a stage" if most == 1 else f"up to {most} devices a stage"
    return _AMONG[family] + devices + (" and no shared wire" if is_apart else "")


def plan_to_json(plan: Plan) -> str:
    """The plan as an indented JSON document, which `plan_from_json` reads."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=2).decode()


def plan_from_json(text: str | bytes, *, source: str = "plan") -> Plan:
    """Reads a plan; `source` names it in errors.

    Raises:
        PlanError: not JSON, an unknown or missing key, a wrong type, or another format version.
    """
    try:
        plan = msgspec.json.decode(text, type=Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise PlanError(f"{source}: no valid plan: {error}") from error
    if plan.format not in (PLAN_FORMAT, GROUPS_FORMAT):
        raise PlanError(
            f"{source}: expected format {PLAN_FORMAT!r} or {GROUPS_FORMAT!r}, got {plan.format!r}"
        )
    return plan


def load_plan(path: str | Path) -> Plan:
    """Reads a plan from a file.

    Raises:
        PlanError: the file cannot be read, or as `plan_from_json`.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise PlanError(f"{path}: the plan cannot be read: {error}") from error
    return plan_from_json(text, source=str(path))
