"""What the planner needs to know of a model and of the devices, as plain numbers.

Nothing here imports torch. A model is a row of *pieces*, the operations between two neighbouring
boundaries; boundary 0 is the model's input, the last one its output, those between are places
where a cut may be. A stage is a run of pieces from one boundary to another, and costs

- seconds: the sum of its pieces' on the device, with the fastest backend measured there;
- memory: the runtime's base + its weights, a weight that several pieces share counted once + the
  largest peak of activations among its pieces + what the other micro-batches in flight hold while
  they wait there: `CostModel.memory_bytes`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from cutset.cluster.devices import Device
from cutset.costs.profile import INPUT_NAME, OUTPUT_NAME, Profile, check_profile
from cutset.errors import PlanError
from cutset.graph.cuts import CutPoint, CutPoints
from cutset.graph.ir import Graph

Granularity: TypeAlias = Literal["unit", "op"]
"""Where boundaries lie: at the candidate cuts, or between any two operations."""
REFERENCE = ""
"""The name under which a cost model keeps the seconds of the device that others are scaled from."""


def default_window(num_stages: int) -> int:
    """Micro-batches that a session lets be in flight where nothing else is said.

    Enough for every stage to have one at hand while it computes another, and one more.
    """
    return 2 * num_stages + 1


class SharedWeight(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes of weights that several pieces use; `pieces` are their indices, rising."""

    num_bytes: int
    pieces: tuple[int, ...]


class PieceSeconds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of every piece for one micro-batch on one device with one backend.

    Attributes:
        device: name of the device (or of its profile); `REFERENCE` for the one others scale.
        backend: name of the backend; ``""`` where none was measured.
        seconds: by piece; None, or infinity, where this backend cannot run the piece.
    """

    device: str
    backend: str
    seconds: tuple[float | None, ...]


class CodecCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a codec makes of what crosses each boundary, for one micro-batch.

    Attributes:
        name: of the codec.
        cut_bytes: that travel, by boundary; None where it is not to be used: at both ends of the
            model, and where it takes none of the tensors.
        encode_s: seconds to write them on the device that others are scaled from.
        decode_s: seconds to read them there.
    """

    name: str
    cut_bytes: tuple[int | None, ...]
    encode_s: tuple[float, ...]
    decode_s: tuple[float, ...]


class PixelCosts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The model's inputs as pixels, for one micro-batch.

    Attributes:
        num_bytes: that travel.
        read_s: seconds to scale and normalise them on the device that others are scaled from.
    """

    num_bytes: int
    read_s: float


class CostModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model as plain numbers: n pieces between n + 1 boundaries.

    Attributes:
        micro_batch: rows of a micro-batch; all seconds are for this many.
        positions: of the boundaries in the graph, n + 1 of them.
        names: of the boundaries: ``"input"``, the cut points' ``after``, ``"output"``.
        kinds: of the boundaries as `CutPoint.kind`; ``""`` at both ends.
        cut_bytes_per_row: bytes that cross each boundary for one row.
        flops_per_row: multiply-adds of each piece.
        own_weight_bytes: bytes of the weights that only this piece uses.
        shared_weights: weights that several pieces use.
        peak_bytes_per_row: most bytes of activations alive at once within each piece.
        seconds: by device and backend.
        base_bytes: what a worker needs before it holds any shard.
        window: micro-batches that the session will let be in flight; None for its own number,
            `default_window`; 0 where what they hold is counted as weights.
        codecs: that the plan may use; none where tensors travel as they are.
        pixels: that the model's inputs may travel as; None where they come as they are.
    """

    micro_batch: int
    positions: tuple[int, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]
    cut_bytes_per_row: tuple[int, ...]
    flops_per_row: tuple[int, ...]
    own_weight_bytes: tuple[int, ...]
    shared_weights: tuple[SharedWeight, ...]
    peak_bytes_per_row: tuple[int, ...]
    seconds: tuple[PieceSeconds, ...]
    base_bytes: int = 0
    window: int | None = None
    codecs: tuple[CodecCosts, ...] = ()
    pixels: PixelCosts | None = None

    @property
    def num_pieces(self) -> int:
        """How many pieces: one more than the places where a cut may be."""
        return len(self.positions) - 1

    def weight_bytes(self, start: int, stop: int) -> int:
        """Bytes of the weights that pieces `start` up to `stop` use, each weight once."""
        shared = sum(
            weight.num_bytes
            for weight in self.shared_weights
            if any(start <= piece < stop for piece in weight.pieces)
        )
        return sum(self.own_weight_bytes[start:stop]) + shared

    def window_with(self, num_stages: int) -> int:
        """Micro-batches in flight in a plan of `num_stages` stages."""
        return default_window(num_stages) if self.window is None else self.window

    def memory_bytes(self, start: int, stop: int, *, num_stages: int) -> int:
        """Bytes that a stage of pieces `start` up to `stop` needs on its device.

        A worker computes one micro-batch at a time, but where its device or the link after it is
        the slowest, all that are in flight come to wait there: each holds what was received until
        its outputs are sent, and those that are computed hold their outputs too. One computes, the
        others may all be at that point. Its inputs count beside its peak, which may come after the
        model's last use of them. On one host a link's tensors lie in memory that both ends share,
        so that all workers together hold less than the sum of this.

        Args:
            start: its first piece.
            stop: the piece after its last.
            num_stages: how many stages the plan has: with more of them more is in flight.
        """
        window = self.window_with(num_stages)
        row_bytes = max(self.peak_bytes_per_row[start:stop])
        row_bytes += window * self.cut_bytes_per_row[start]
        row_bytes += max(window - 1, 0) * self.cut_bytes_per_row[stop]
        return self.base_bytes + self.weight_bytes(start, stop) + self.micro_batch * row_bytes

    def codec_slowness(self, device: Device) -> float:
        """How many times as long as on the reference a codec takes: as long as the pieces do."""
        here, reference = (
            min(
                (sum(each.seconds) for each in entries if None not in each.seconds),  # type: ignore[arg-type]
                default=0.0,
            )
            for entries in (
                self.seconds_on(device),
                [each for each in self.seconds if each.device == REFERENCE],
            )
        )
        return here / reference if here and reference else 1 / device.speed

    def seconds_on(self, device: Device) -> tuple[PieceSeconds, ...]:
        """Seconds of every piece on a device, one entry for each backend that it has.

        Its own measurements where there are any (by its name, or by the file that
        `Device.profile` names), else the reference's divided by its speed.

        Raises:
            PlanError: the device names a profile that is not part of this cost model, or has no
                backend that was measured.
        """
        every = self._measured_for(device)
        names = device.backends
        usable = tuple(s for s in every if names is None or s.backend in ("", *names))
        if not usable:
            measured = ", ".join(sorted({s.backend for s in every}))
            raise PlanError(
                f"device {device.name!r} computes with {', '.join(names or ())}, but costs were"
                f" measured with {measured} only; install one of these there and name it among its"
                " backends, or profile the model with one that it has"
            )
        return usable

    def require_a_device_each(self, devices: Sequence[Device]) -> None:
        """Checks that each piece can be computed on one of the devices.

        Raises:
            PlanError: one cannot; says with which backends it can, if with any.
        """
        entries = [entry for device in devices for entry in self.seconds_on(device)]
        for piece in range(self.num_pieces):
            if any(_is_possible(entry.seconds[piece]) for entry in entries):
                continue
            able = sorted({s.backend for s in self.seconds if _is_possible(s.seconds[piece])})
            raise PlanError(
                f"the piece up to {self.names[piece + 1]} runs with"
                f" {', '.join(able) or 'no backend that was measured'}, and the devices compute"
                f" with {', '.join(sorted({entry.backend for entry in entries}))}; install"
                f" {able[0].partition('-')[0] if able else 'another backend'} on one of them, and"
                " name it among its backends in the cluster file"
            )

    def _measured_for(self, device: Device) -> tuple[PieceSeconds, ...]:
        own = [s for s in self.seconds if s.device == device.name]
        if not own and device.profile is not None:
            own = [s for s in self.seconds if s.device == device.profile]
            if not own:
                raise PlanError(
                    f"device {device.name!r} has its costs in {device.profile!r}, which was not "
                    "read; pass that profile to costs_from_profile under this name"
                )
        if own:
            return tuple(own)
        scaled = tuple(
            PieceSeconds(
                device=device.name,
                backend=entry.backend,
                seconds=tuple(None if s is None else s / device.speed for s in entry.seconds),
            )
            for entry in self.seconds
            if entry.device == REFERENCE
        )
        if not scaled:
            raise PlanError(f"there are no costs for device {device.name!r}")
        return scaled


def _is_possible(seconds: float | None) -> bool:
    return seconds is not None and seconds < math.inf


def with_more_rows(costs: CostModel, factor: int) -> CostModel:
    """The costs with `factor` times as many rows a micro-batch, if each takes as long."""
    entries = tuple(
        msgspec.structs.replace(
            entry, seconds=tuple(None if s is None else s * factor for s in entry.seconds)
        )
        for entry in costs.seconds
    )
    codecs = tuple(
        CodecCosts(
            name=codec.name,
            cut_bytes=tuple(None if b is None else b * factor for b in codec.cut_bytes),
            encode_s=tuple(s * factor for s in codec.encode_s),
            decode_s=tuple(s * factor for s in codec.decode_s),
        )
        for codec in costs.codecs
    )
    pixels = costs.pixels and PixelCosts(
        num_bytes=costs.pixels.num_bytes * factor, read_s=costs.pixels.read_s * factor
    )
    return msgspec.structs.replace(
        costs,
        micro_batch=costs.micro_batch * factor,
        seconds=entries,
        codecs=codecs,
        pixels=pixels,
    )


def costs_from_flops(
    graph: Graph,
    cuts: CutPoints,
    *,
    micro_batch: int = 1,
    flops_per_s: float = 1e9,
    base_bytes: int = 0,
    window: int | None = None,
    granularity: Granularity = "unit",
) -> CostModel:
    """A cost model in which time is multiply-adds alone (`--cost flops`).

    Args:
        graph: the captured model.
        cuts: its positions, judged.
        micro_batch: rows of a micro-batch, at least 1.
        flops_per_s: multiply-adds that a device of speed 1 does in a second; above 0.
        base_bytes: what a worker needs before it holds any shard.
        window: micro-batches in flight, at least 1, as in `CostModel`.
        granularity: ``"unit"`` to cut at the candidates only, ``"op"`` between any two operations.

    Raises:
        ValueError: a number is out of its range, or `granularity` unknown.
    """
    if micro_batch < 1 or flops_per_s <= 0:
        raise ValueError("micro_batch from 1, flops_per_s above 0")
    points = _boundaries(cuts, granularity)
    model = _without_seconds(graph, points, micro_batch, base_bytes, window)
    seconds = tuple(flops * micro_batch / flops_per_s for flops in model.flops_per_row)
    entry = PieceSeconds(device=REFERENCE, backend="", seconds=seconds)
    return msgspec.structs.replace(model, seconds=(entry,))


def costs_from_profile(
    graph: Graph,
    cuts: CutPoints,
    profiles: Profile | Mapping[str, Profile],
    *,
    base_bytes: int = 0,
    window: int | None = None,
    granularity: Granularity = "unit",
    finer: CutPoints | None = None,
) -> CostModel:
    """A cost model from measurements.

    Args:
        graph: the captured model.
        cuts: its positions, judged, as when it was profiled.
        profiles: one profile, from which every device is scaled by its speed; or profiles by name
            of the device, or of the file that `Device.profile` names. Devices that are not named
            are scaled from the first.
        base_bytes: what a worker needs before it holds any shard.
        window: micro-batches in flight, at least 1, as in `CostModel`.
        granularity: ``"op"`` shares each piece's seconds among its operations by multiply-adds,
            for a look at what respecting units costs.
        finer: positions with more cut points, for a look at what these would give: each piece's
            seconds are shared among its parts in the same way.

    Raises:
        PlanError: a profile was made for other cut points, or the micro-batches differ.
        ValueError: no profile, or a number out of its range.
    """
    named = {REFERENCE: profiles} if isinstance(profiles, Profile) else dict(profiles)
    if not named:
        raise ValueError("give at least one profile")
    named = {REFERENCE: next(iter(named.values())), **named}
    micro_batch = named[REFERENCE].micro_batch
    points = _boundaries(finer or cuts, granularity)
    model = _without_seconds(graph, points, micro_batch, base_bytes, window)
    entries: list[PieceSeconds] = []
    for name, profile in named.items():
        check_profile(profile, cuts, micro_batch)
        for backend in sorted({b for piece in profile.pieces for b in piece.timings}):
            timings = [piece.timings.get(backend) for piece in profile.pieces]
            seconds = tuple(None if t is None else t.median_s for t in timings)
            if granularity == "op" or finer is not None:
                seconds = _share_seconds(seconds, cuts, model)
            entries.append(PieceSeconds(device=name, backend=backend, seconds=seconds))
    return msgspec.structs.replace(model, seconds=tuple(entries))


def _boundaries(cuts: CutPoints, granularity: Granularity) -> tuple[CutPoint, ...]:
    if granularity not in ("unit", "op"):
        raise ValueError(f"granularity is 'unit' or 'op', got {granularity!r}")
    points = cuts.points if granularity == "unit" else (*cuts.points, *cuts.refused)
    return tuple(sorted(points, key=lambda point: point.position))


def _without_seconds(
    graph: Graph,
    points: Sequence[CutPoint],
    micro_batch: int,
    base_bytes: int,
    window: int | None,
) -> CostModel:
    if base_bytes < 0 or (window is not None and window < 1):
        raise ValueError("base_bytes from 0, window from 1")
    num_operations = len(graph.operations)
    inner = [point for point in points if 0 < point.position < num_operations]
    positions = (0, *(point.position for point in inner), num_operations)
    spans = list(itertools.pairwise(positions))
    peaks = live_bytes(graph)
    sizes = {parameter.name: parameter.num_bytes for parameter in graph.parameters}
    users: dict[str, set[int]] = {}
    for piece, (start, stop) in enumerate(spans):
        for operation in graph.operations[start:stop]:
            for name in operation.parameters:
                users.setdefault(name, set()).add(piece)
    own = [0] * len(spans)
    shared: dict[tuple[int, ...], int] = {}
    for name, pieces in users.items():
        if len(pieces) == 1:
            own[min(pieces)] += sizes[name]
        else:
            key = tuple(sorted(pieces))
            shared[key] = shared.get(key, 0) + sizes[name]
    outputs = sum(graph.spec_of(name).bytes_per_sample for name in dict.fromkeys(graph.outputs))
    return CostModel(
        micro_batch=micro_batch,
        positions=positions,
        names=(INPUT_NAME, *(point.after for point in inner), OUTPUT_NAME),
        kinds=("", *(point.kind for point in inner), ""),
        cut_bytes_per_row=(
            sum(spec.bytes_per_sample for spec in graph.inputs),
            *(point.bytes_per_sample for point in inner),
            outputs,
        ),
        flops_per_row=tuple(
            sum(operation.flops for operation in graph.operations[start:stop])
            for start, stop in spans
        ),
        own_weight_bytes=tuple(own),
        shared_weights=tuple(SharedWeight(num_bytes=b, pieces=p) for p, b in shared.items()),
        peak_bytes_per_row=tuple(max(peaks[start:stop]) for start, stop in spans),
        seconds=(),
        base_bytes=base_bytes,
        window=window,
    )


def live_bytes(graph: Graph) -> list[int]:
    """Bytes alive while each operation runs: what it or a later one reads, and its result."""
    last_use = dict.fromkeys(graph.outputs, len(graph.operations))
    for index, operation in enumerate(graph.operations):
        for name in operation.inputs:
            last_use[name] = max(last_use.get(name, 0), index)
    ending: dict[int, int] = {}
    alive = 0
    for spec in graph.inputs:
        alive += spec.bytes_per_sample
        end = last_use.get(spec.name, 0)
        ending[end] = ending.get(end, 0) + spec.bytes_per_sample
    peaks = []
    for index, operation in enumerate(graph.operations):
        size = operation.bytes_per_sample
        alive += size
        peaks.append(alive)
        end = max(last_use.get(operation.name, index), index)
        ending[end] = ending.get(end, 0) + size
        alive -= ending.pop(index, 0)
    return peaks


def _share_seconds(
    seconds: tuple[float | None, ...], cuts: CutPoints, model: CostModel
) -> tuple[float | None, ...]:
    """Shares measured seconds among the finer pieces of `model`, by multiply-adds."""
    edges = [point.position for point in cuts.points]
    owner = [sum(edge <= start for edge in edges) for start in model.positions[:-1]]
    total = [0] * len(seconds)
    for piece, flops in zip(owner, model.flops_per_row, strict=True):
        total[piece] += flops
    shares: list[float | None] = []
    for piece, flops in zip(owner, model.flops_per_row, strict=True):
        whole = seconds[piece]
        part = flops / total[piece] if total[piece] else 1 / owner.count(piece)
        shares.append(None if whole is None else whole * part)
    return tuple(shares)
