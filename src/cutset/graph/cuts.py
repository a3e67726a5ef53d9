"""Where a model may be cut, and for every other place the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import msgspec

from cutset.graph.calls import PLAIN_CONTAINERS, call_label, call_regions
from cutset.graph.ir import Graph, Operation
from cutset.graph.roles import (
    ACTIVATIONS,
    DECODINGS,
    LAYOUTS,
    NORMALISATIONS,
    POOLINGS,
    POOLINGS_BY_WINDOW,
)
from cutset.graph.side_inputs import side_inputs
from cutset.graph.units import Unit, class_matches, find_units, needed_inside
from cutset.tensors import Dim, TensorSpec


class CutPoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A position between two operations, with what would cross a cut there.

    Attributes:
        position: how many of the graph's operations lie before it.
        after: the name people call it by: the unit that ends there, else the outermost module
            that ends there, else the operation.
        kind: ``"block"``, ``"pool"``, ``"activation"`` or ``"head"``.
        tensors: the activations made before it and used after it; each would be sent once.
        cumulative_flops: multiply-adds for one row of all operations before it.
        cumulative_parameters: trainable numbers that those operations read.
        reason: why the position is refused, or ``""`` for a candidate.
    """

    position: int
    after: str
    kind: str
    tensors: tuple[TensorSpec, ...]
    cumulative_flops: int
    cumulative_parameters: int
    reason: str = ""

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that cross a cut here for one row."""
        return sum(spec.bytes_per_sample for spec in self.tensors)


class CutPoints(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All positions of a graph, judged.

    Attributes:
        units: the parts that are never divided, in execution order.
        points: candidates, by position.
        refused: all other positions, by position, each with its reason.
        max_tensors: how many tensors were allowed to cross a cut.
    """

    units: tuple[Unit, ...]
    points: tuple[CutPoint, ...]
    refused: tuple[CutPoint, ...]
    max_tensors: int


CutRule: TypeAlias = Callable[[Graph, CutPoint], str]
"""Why there may be no cut at a candidate of a graph, or ``""`` where there may be one."""


def find_cut_points(
    graph: Graph,
    *,
    keep: Collection[str] = (),
    divide: Collection[str] = (),
    max_tensors: int = 1,
    rules: Sequence[CutRule] = (),
) -> CutPoints:
    """Judges every position between two operations of a graph.

    Args:
        graph: the captured model.
        keep: classes whose every call is made a unit (qualified name, or its last part).
        divide: classes whose calls may be cut between their children.
        max_tensors: how many tensors may cross a cut, at least 1; side inputs, which travel along,
            do not count.
        rules: asked for every candidate in turn; the first that gives a reason has it refused.

    Raises:
        ValueError: `max_tensors` is below 1.
        PlanError: `keep` or `divide` names a class that the model does not call.
    """
    if max_tensors < 1:
        raise ValueError(f"max_tensors is {max_tensors}; at least one tensor must cross a cut")
    units = find_units(graph, keep=keep, divide=divide)
    live_sets = _live_sets(graph)
    sides = side_inputs(graph)
    dressing = _dressing_reasons(graph)
    forked = _fork_reasons(graph, divide)
    unit_at = {p: unit for unit in units for p in range(unit.start + 1, unit.stop)}
    names = _position_names(graph.operations, units)
    kinds = _Kinds(graph, units)
    parameter_sizes = {p.name: p.num_elements for p in graph.parameters if p.kind == "parameter"}
    read: set[str] = set()
    flops = num_parameters = 0
    points: list[CutPoint] = []
    refused: list[CutPoint] = []
    for position in range(1, len(graph.operations)):
        operation = graph.operations[position - 1]
        flops += operation.flops
        new = set(operation.parameters) - read
        num_parameters += sum(parameter_sizes.get(name, 0) for name in new)
        read |= new
        tensors, unsendable = live_sets[position]
        num_counted = sum(spec.name not in sides for spec in tensors) + len(unsendable)
        reason = _refusal(num_counted, unsendable, max_tensors)
        if position in unit_at:
            unit = unit_at[position]
            reason = (
                f"inside {unit.path} ({unit.class_name.rpartition('.')[2]}): "
                f"{_count(len(tensors) + len(unsendable))} live"
            )
        elif position in dressing:
            reason = dressing[position]
        elif position in forked:
            reason = forked[position]
        elif not read and not flops:
            reason = "what comes before only prepares the input; it stays with the first layer"
        point = CutPoint(
            position=position,
            after=names[position],
            kind=kinds.of(position),
            tensors=tensors,
            cumulative_flops=flops,
            cumulative_parameters=num_parameters,
            reason=reason,
        )
        if not reason:
            reason = next(filter(None, (rule(graph, point) for rule in rules)), "")
            point = msgspec.structs.replace(point, reason=reason)
        (refused if reason else points).append(point)
    return CutPoints(
        units=units, points=tuple(points), refused=tuple(refused), max_tensors=max_tensors
    )


def _count(num_tensors: int) -> str:
    return "1 tensor" if num_tensors == 1 else f"{num_tensors} tensors"


def _refusal(num_live: int, unsendable: Sequence[str], max_tensors: int) -> str:
    """Why what is alive cannot cross, or ``""``."""
    if unsendable:
        return f"{unsendable[0]} is live, which is no single tensor with a row per sample"
    if num_live > max_tensors:
        return (
            f"{_count(num_live)} live, at most {max_tensors} may cross "
            f"(max_tensors={num_live} would allow it)"
        )
    return ""


def _fork_reasons(graph: Graph, divide: Collection[str]) -> dict[int, str]:
    """Positions between a fork and its join inside of a module, with the reason.

    However many tensors may cross: what such a module has begun in parallel stays together. The
    root and plain containers stand for nothing that would be divided.
    """
    reasons: dict[int, str] = {}
    for region in call_regions(graph.operations):
        name = region.call.class_name
        if region.depth == 0 or name in PLAIN_CONTAINERS or class_matches(name, divide):
            continue
        needed = needed_inside(graph.operations, region)
        for position in range(region.start + 1, region.stop):
            num_needed = needed[position - region.start]
            if num_needed > 1:
                short = name.rpartition(".")[2]
                reasons.setdefault(
                    position,
                    f"between a fork and its join inside {call_label(region.call)} ({short}): "
                    f"{_count(num_needed)} live (divide={short} with max_tensors={num_needed} "
                    "would allow it)",
                )
    return reasons


def _live_sets(graph: Graph) -> list[tuple[tuple[TensorSpec, ...], tuple[str, ...]]]:
    """For each position, the live tensors and the names of live values that cannot be sent.

    A model's outputs stay alive to the end: they must reach the caller.
    """
    num_operations = len(graph.operations)
    last_use: dict[str, int] = {}
    for index, operation in enumerate(graph.operations):
        for name in operation.inputs:
            last_use[name] = index
    for name in graph.outputs:
        last_use[name] = num_operations
    specs = {spec.name: (spec,) for spec in graph.inputs}
    alive = [name for name in specs if name in last_use]
    sets: list[tuple[tuple[TensorSpec, ...], tuple[str, ...]]] = []
    for position in range(num_operations + 1):
        if position:
            operation = graph.operations[position - 1]
            specs[operation.name] = operation.outputs  # type: ignore[assignment]
            if operation.name in last_use:
                alive.append(operation.name)
        alive = [name for name in alive if last_use[name] >= position]
        sets.append(
            (
                tuple(specs[name][0] for name in alive if len(specs[name]) == 1),
                tuple(name for name in alive if len(specs[name]) != 1),
            )
        )
    return sets


def _dressing_reasons(graph: Graph) -> dict[int, str]:
    """Positions between an operation and the one that only dresses its output, with the reason.

    A normalisation or activation dresses its producer when the module that it serves also
    contains the producer; dropout and changes of layout always do, and so does the choice of one
    tensor out of several. The positions in between are refused where the dressing follows at
    once, or where the producer's output goes nowhere else.
    """
    operations = graph.operations
    index_of = {operation.name: i for i, operation in enumerate(operations)}
    num_users: dict[str, int] = {}
    for operation in operations:
        for name in operation.inputs:
            num_users[name] = num_users.get(name, 0) + 1
    served = _served_modules(graph)
    reasons: dict[int, str] = {}
    for index, operation in enumerate(operations):
        producers = [index_of[name] for name in operation.inputs if name in index_of]
        if not producers:
            continue
        producer = max(producers)
        reason = _dresses(operation, operations[producer], served[index])
        if not reason:
            continue
        sole_user = num_users[operations[producer].name] == 1
        for position in range(producer + 1 if sole_user else index, index + 1):
            reasons.setdefault(position, reason)
    return reasons


def _dresses(
    operation: Operation, producer: Operation, served: tuple[tuple[str, int], bool] | None
) -> str:
    """Why `operation` stays with `producer`, or ``""``."""
    does = ""
    if operation.target == "getitem":
        does = "picks a tensor out of"
    elif producer.base_name in DECODINGS:
        does = "computes with"
    elif operation.base_name in LAYOUTS:
        does = "only rearranges"
    elif served is not None:
        module, is_norm = served
        if any((call.path, call.call) == module for call in producer.modules):
            does = "normalises" if is_norm else "activates"
    if not does:
        return ""
    return f"{_described(operation)} stays with {_described(producer)}, whose output it {does}"


def _described(operation: Operation) -> str:
    """``"relu of layer1.0"``, or the operation alone at the root."""
    path = operation.modules[-1].path
    return f"{operation.base_name} of {path}" if path else operation.base_name


def _served_modules(graph: Graph) -> list[tuple[tuple[str, int], bool] | None]:
    """For each operation that normalises or activates, the module call that it serves, and which.

    That is the innermost one with something else to do: a ReLU inside a ReLU module inside a
    block serves the block. A module that computes an activation or a normalisation by hand
    (``x * sigmoid(x)``) counts as one.
    """
    shapes = {spec.name: spec.shape for spec in graph.inputs}
    shapes |= {op.name: op.outputs[0].shape for op in graph.operations if op.outputs}
    dressing_calls = {
        (region.call.path, region.call.call): region.start
        for region in call_regions(graph.operations)
        if region.depth and _only_dresses(graph.operations[region.start : region.stop], shapes)
    }
    found: list[tuple[tuple[str, int], bool] | None] = []
    for index, operation in enumerate(graph.operations):
        keys = [(call.path, call.call) for call in operation.modules]
        is_norm = operation.base_name in NORMALISATIONS
        begins_dressing = any(dressing_calls.get(key) == index for key in keys)
        if not (is_norm or operation.base_name in ACTIVATIONS or begins_dressing):
            found.append(None)
            continue
        served = next((key for key in reversed(keys) if key not in dressing_calls), None)
        found.append(None if served is None else (served, is_norm))
    return found


def _only_dresses(inside: Sequence[Operation], shapes: Mapping[str, tuple[Dim, ...]]) -> bool:
    """Whether a module call only normalises or activates one tensor, keeping its shape."""
    roles = {operation.base_name for operation in inside}
    if not roles & (NORMALISATIONS | ACTIVATIONS) or roles & POOLINGS_BY_WINDOW:
        return False
    if any(operation.flops for operation in inside):
        return False
    made = {operation.name for operation in inside}
    taken = {name for operation in inside for name in operation.inputs} - made
    return len(taken) == 1 and shapes.get(taken.pop()) == shapes.get(inside[-1].name)


def _position_names(operations: Sequence[Operation], units: Sequence[Unit]) -> dict[int, str]:
    """The name of every position: unit, else outermost module that ends there, else operation."""
    unit_ends = {unit.stop: unit.path for unit in units}
    module_ends: dict[int, str] = {}
    for region in sorted(call_regions(operations), key=lambda region: region.depth):
        if region.depth and region.call.class_name not in PLAIN_CONTAINERS:
            module_ends.setdefault(region.stop, call_label(region.call))
    names: dict[int, str] = {}
    taken: set[str] = set()
    for position in range(1, len(operations)):
        operation_name = operations[position - 1].name
        name = unit_ends.get(position) or module_ends.get(position) or operation_name
        # An operation may carry the name of a module elsewhere; names must stay unique.
        while name in taken:
            name = f"{name}:{operation_name}"
        taken.add(name)
        names[position] = name
    return names


class _Kinds:
    """Says of what kind a cut at a position would be."""

    def __init__(self, graph: Graph, units: Sequence[Unit]) -> None:
        self._operations = graph.operations
        self._unit_ends = {unit.stop for unit in units}
        self._head_starts_at = _head_start(graph.operations)

    def of(self, position: int) -> str:
        """``"head"``, ``"block"``, ``"pool"`` or ``"activation"``."""
        if any(op.flops for op in self._operations[self._head_starts_at : position]):
            return "head"
        # What dropout or a reshape follows decides, not the dropout or reshape itself.
        while position > 1 and (
            position not in self._unit_ends
            and (self._operations[position - 1].base_name in LAYOUTS | {"getitem"})
        ):
            position -= 1
        if position not in self._unit_ends:
            last = self._operations[position - 1].base_name
            if last in POOLINGS:
                return "pool"
            if last in ACTIVATIONS:
                return "activation"
        return "block"


def _head_start(operations: Sequence[Operation]) -> int:
    """Index from which on every tensor is a plain vector per row, after a body that has more.

    The classifier of a vision model works on vectors, its body on maps or sequences. A model
    that knows nothing but vectors (a perceptron) has no head: all of it is body.
    """
    start = len(operations)
    while start and all(len(spec.shape) <= 2 for spec in operations[start - 1].outputs):
        start -= 1
    has_body = any(operation.flops for operation in operations[:start])
    return start if has_body else len(operations)
