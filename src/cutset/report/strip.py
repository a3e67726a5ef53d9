"""The model as a strip of parts: what the report's first picture shows, as plain data."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

from cutset.errors import PlanError
from cutset.graph.cuts import CutPoint, CutPoints
from cutset.graph.ir import Graph
from cutset.planning.plan import Plan
from cutset.report.part_costs import PartCosts
from cutset.tensors import TensorSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What lies between two neighbouring candidate cuts; no plan divides it.

    Attributes:
        index: from 0.
        name: name of the cut point that ends it, ``"output"`` for the last.
        start: index of its first operation.
        stop: index after its last operation.
        units: its units, each ``"layer1.0 (BasicBlock)"``.
        flops: multiply-adds for one row.
        num_parameters: trainable numbers that it is the first to read.
        shape: what it returns, in words.
        bytes_per_row: bytes that cross a cut after it for one row; 0 for the last.
        kind: kind of that cut, ``""`` for the last.
    """

    index: int
    name: str
    start: int
    stop: int
    units: tuple[str, ...]
    flops: int
    num_parameters: int
    shape: str
    bytes_per_row: int
    kind: str

    @property
    def contents(self) -> str:
        """Its units, or how many operations it has where it holds none."""
        count = self.stop - self.start
        return ", ".join(self.units) or f"{count} operation{'s' if count != 1 else ''}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefusedPlace:
    """A place where the model may not be cut.

    Attributes:
        after: the operation or module before it.
        reason: why not.
        part: index of the part that it lies in.
        share: how far into that part, counted in operations, above 0 and below 1.
    """

    after: str
    reason: str
    part: int
    share: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """All parts in execution order, and the places in them where no cut may be."""

    parts: tuple[Part, ...]
    refused: tuple[RefusedPlace, ...]

    def stops_of(self, last: Sequence[str]) -> tuple[int, ...]:
        """How many parts lie before the end of each stage, by the names that the stages end at.

        Raises:
            PlanError: no part ends at such a name.
        """
        index = {part.name: part.index + 1 for part in self.parts}
        for name in last:
            if name not in index:
                raise PlanError(
                    f"a plan for another number of stages ends one at {name[:120]!r}, where this "
                    "model has no cut point; it is the plan of another model"
                )
        return tuple(index[name] for name in last)

    def reasons(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each reason with the places that it refuses, in order of appearance."""
        places: dict[str, list[str]] = {}
        for each in self.refused:
            places.setdefault(each.reason, []).append(each.after)
        return tuple((reason, tuple(names)) for reason, names in places.items())


def make_strip(graph: Graph, cuts: CutPoints) -> Strip:
    """The parts of a captured model between its candidate cuts."""
    edges = [0, *(point.position for point in cuts.points), len(graph.operations)]
    ends: list[CutPoint | None] = [*cuts.points, None]
    outputs = tuple(graph.spec_of(name) for name in dict.fromkeys(graph.outputs))
    sizes = {p.name: p.num_elements for p in graph.parameters if p.kind == "parameter"}
    seen: set[str] = set()
    parts = []
    for index, end in enumerate(ends):
        operations = graph.operations[edges[index] : edges[index + 1]]
        read = {name for operation in operations for name in operation.parameters} - seen
        seen |= read
        parts.append(
            Part(
                index=index,
                name=end.after if end else "output",
                start=edges[index],
                stop=edges[index + 1],
                units=tuple(
                    f"{unit.path} ({unit.class_name.rpartition('.')[2]})"
                    for unit in cuts.units
                    if unit.start >= edges[index] and unit.stop <= edges[index + 1]
                ),
                flops=sum(operation.flops for operation in operations),
                num_parameters=sum(sizes.get(name, 0) for name in read),
                shape=shapes(end.tensors if end else outputs),
                bytes_per_row=end.bytes_per_sample if end else 0,
                kind=end.kind if end else "",
            )
        )
    return Strip(parts=tuple(parts), refused=_refused(cuts, edges))


def _refused(cuts: CutPoints, edges: Sequence[int]) -> tuple[RefusedPlace, ...]:
    places = []
    for point in cuts.refused:
        part = min(bisect.bisect_right(edges, point.position) - 1, len(edges) - 2)
        length = edges[part + 1] - edges[part]
        places.append(
            RefusedPlace(
                after=point.after,
                reason=point.reason,
                part=part,
                share=(point.position - edges[part]) / length,
            )
        )
    return tuple(places)


def strip_of_plan(plan: Plan) -> Strip:
    """The parts as far as a plan alone knows them: its stages."""
    return Strip(
        parts=tuple(
            Part(
                index=stage.index,
                name=stage.last,
                start=stage.start,
                stop=stage.stop,
                units=stage.units,
                flops=stage.flops,
                num_parameters=0,
                shape="",
                bytes_per_row=stage.output_bytes_per_sample if stage.cut_kind else 0,
                kind=stage.cut_kind,
            )
            for stage in plan.stages
        ),
        refused=(),
    )


def shapes(tensors: Sequence[TensorSpec]) -> str:
    """``"64x56x56 float32"``: shape of a row and dtype of every tensor."""
    return ", ".join(
        f"{'x'.join(map(str, spec.shape[1:])) or 'scalar'} {spec.dtype}" for spec in tensors
    )


def part_seconds(
    strip: Strip,
    part_costs: PartCosts | None,
    stops: Sequence[int],
    where: Sequence[tuple[str, str]],
) -> tuple[float, ...]:
    """Seconds of every part on the device and backend of the stage that runs it.

    Args:
        strip: the parts.
        part_costs: what they cost.
        stops: where the stages end.
        where: device and backend of each stage.
    """
    assert part_costs is not None
    seconds: list[float] = []
    for stop, (device, backend) in zip(stops, where, strict=True):
        seconds += part_costs.seconds_on(device, backend)[len(seconds) : stop]
    assert len(seconds) == len(strip.parts)
    return tuple(seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StripRows:
    """What the picture draws: rectangles, ticks, and marks of refused places; times in ms."""

    parts: tuple[dict[str, Any], ...]
    cuts: tuple[dict[str, Any], ...]
    refused: tuple[dict[str, Any], ...]


def strip_rows(strip: Strip, stops: Sequence[int], seconds: Sequence[float]) -> StripRows:
    """Places every part, cut and refused place on the axis of time.

    Args:
        strip: the parts.
        stops: where the stages end, in parts.
        seconds: of every part.
    """
    parts: list[dict[str, Any]] = []
    cuts: list[dict[str, Any]] = []
    begin_ms = 0.0
    for part in strip.parts:
        end_ms = begin_ms + seconds[part.index] * 1e3
        stage = bisect.bisect_right(stops, part.index)
        parts.append(
            {
                "part": part.name,
                "stage": stage,
                "begin": begin_ms,
                "end": end_ms,
                "milliseconds": end_ms - begin_ms,
                "contents": part.contents,
                "shape": part.shape,
                "flops": part.flops,
                "parameters": part.num_parameters,
            }
        )
        if part.kind:
            cuts.append(
                {
                    "after": part.name,
                    "at": end_ms,
                    "bytes": part.bytes_per_row,
                    "kind": part.kind,
                    "shape": part.shape,
                    "chosen": part.index + 1 in stops[:-1],
                }
            )
        begin_ms = end_ms
    refused = [
        {
            "after": each.after,
            "reason": each.reason,
            "at": parts[each.part]["begin"] + each.share * parts[each.part]["milliseconds"],
        }
        for each in strip.refused
    ]
    return StripRows(parts=tuple(parts), cuts=tuple(cuts), refused=tuple(refused))
