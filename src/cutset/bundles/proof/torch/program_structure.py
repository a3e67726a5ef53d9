"""Whether the stages' torch programs do what the manifest says of them, call by call.

So a manifest cannot claim other cuts than the programs have. Nothing is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cutset.bundles.manifest import Manifest, StageEntry
from cutset.bundles.reading.torch.operators import ASSERTIONS, is_number_function, is_truth_function
from cutset.bundles.reading.torch.program import Call, Program, Result
from cutset.graph.ir import Graph, Operation

_LENGTH = "torch.ops.aten.sym_size.int"


def program_faults(manifest: Manifest, programs: Mapping[int, Program]) -> tuple[str, ...]:
    """Where programs have other calls or weights than their stages list.

    Args:
        manifest: the contract.
        programs: the stages' programs, by index, those that are at hand.

    Returns:
        One sentence for each fault.
    """
    faults: list[str] = []
    for index, program in programs.items():
        faults += _Comparison(manifest.graph, manifest.stages[index], program).faults()
    for index, program in programs.items():
        faults += _stored_faults(manifest, manifest.stages[index], program)
    return tuple(faults)


def _stored_faults(manifest: Manifest, stage: StageEntry, program: Program) -> list[str]:
    """Weights of the program's file against the stage's and the graph's lists."""
    held = set(stage.parameters)
    faults = [f"{stage.program} lacks {name!r}" for name in sorted(held - program.stored)]
    faults += [
        f"{stage.program} holds {name!r}, which its stage does not list"
        for name in sorted(program.stored - held)
    ]
    sizes = {parameter.name: parameter for parameter in manifest.graph.parameters}
    for weight in program.weights.values():
        expected = sizes.get(weight.name)
        if expected is not None and (
            weight.num_elements != expected.num_elements or weight.num_bytes != expected.num_bytes
        ):
            faults.append(
                f"{stage.program}: {weight.name!r} has {weight.num_elements} elements in "
                f"{weight.num_bytes} bytes, the graph says {expected.num_elements} in "
                f"{expected.num_bytes}"
            )
    total = sum(sizes[name].num_bytes for name in held)
    # Less is no fault: two weights may be views of the same bytes.
    if program.stored_bytes > total:
        faults.append(
            f"{stage.program} stores {program.stored_bytes} bytes of weights, its stage lists "
            f"{total}"
        )
    if total != stage.weight_bytes:
        faults.append(f"stage {stage.index} claims {stage.weight_bytes} weight bytes, has {total}")
    return faults


_RELAYOUTS = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        "clone.default",
        "constant_pad_nd.default",
        "contiguous.default",
        "permute.default",
        "select.int",
        "slice.Tensor",
        "unsqueeze.default",
    )
)
"""What `cutset.capture.layout` makes; the numbers stay the same, as the reference proves."""


@dataclass(frozen=True)
class _Origin:
    """What a value of a program stands on: tensors of the graph and weights, by their names."""

    tensors: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()


class _Comparison:
    """Walks a program's calls beside the operations that its stage should have.

    A call is an operation by the same rule as in `cutset.graph.ir`: it depends on the stage's
    inputs, and does not merely read a length or check something.
    """

    def __init__(self, graph: Graph, stage: StageEntry, program: Program) -> None:
        self._stage = stage
        self._program = program
        operations = {operation.name: operation for operation in graph.operations}
        mine = [operations[name] for name in stage.operations]
        self._expected = [operation for operation in mine if operation.target != "getitem"]
        self._picks: dict[str, list[Operation]] = {}
        for operation in mine:
            if operation.target == "getitem":
                self._picks.setdefault(operation.inputs[0], []).append(operation)
        self._used = {
            name for call in program.calls for _, value in call.arguments for name in _names(value)
        } | set(program.outputs)
        # Where a value is a tensor of the graph, by that tensor's name.
        self._names: dict[str, str] = {}
        self._origins: dict[str, _Origin] = {}
        self._faults: list[str] = []
        self._cursor = 0
        # What a stage has beyond its operations may only lay out its inputs, before all else.
        self._num_relayouts = max(0, self._num_operations() - len(self._expected))

    def faults(self) -> list[str]:
        """The first difference between program and graph, if there is one."""
        stage, program = self._stage, self._program
        for name, spec in zip(program.inputs, stage.inputs, strict=True):
            self._origins[name] = _Origin(tensors=frozenset({spec.name}))
            self._names[name] = spec.name
        for name, weight in program.weights.items():
            self._origins[name] = _Origin(weights=frozenset({weight.name}))
        for call in program.calls:
            self._visit(call)
            if self._faults:
                return self._faults
        if self._cursor < len(self._expected):
            self._fault(f"lacks the operation {self._expected[self._cursor].name!r}")
        for name, spec in zip(program.outputs, stage.outputs, strict=True):
            if self._names.get(name) != spec.name:
                self._fault(f"returns {self._names.get(name, name)!r} as {spec.name!r}")
        return self._faults

    def _fault(self, what: str) -> None:
        self._faults.append(f"{self._stage.program} {what}")

    def _num_operations(self) -> int:
        """How many calls compute tensors from the stage's inputs."""
        computed = set(self._program.inputs)
        count = 0
        for call in self._program.calls:
            if (
                call.target in ASSERTIONS
                or call.target == _LENGTH
                or is_truth_function(call.target)
            ):
                continue
            reads = {name for _, value in call.arguments for name in _names(value)}
            if reads & computed or any(name in self._program.outputs for name in call.results):
                computed.update(call.results)
                count += 1
        return count

    def _is_relayout(self, call: Call, read: list[_Origin]) -> bool:
        """Whether the call gives an input the memory order that it had in the whole model."""
        if self._num_relayouts == 0 or call.target not in _RELAYOUTS:
            return False
        inputs = {spec.name for spec in self._stage.inputs}
        sources = frozenset().union(*(origin.tensors for origin in read))
        return len(sources) == 1 and sources <= inputs and not any(o.weights for o in read)

    def _visit(self, call: Call) -> None:
        if call.target in ASSERTIONS:
            return
        read = [self._origins[n] for _, value in call.arguments for n in _names(value)]
        origin = _Origin(
            tensors=frozenset().union(*(o.tensors for o in read)),
            weights=frozenset().union(*(o.weights for o in read)),
        )
        is_output = any(name in self._program.outputs for name in call.results)
        if call.target == _LENGTH or is_truth_function(call.target):
            self._carry(call, _Origin())
        elif not origin.tensors and not is_output:
            self._carry(call, _Origin(weights=origin.weights))
        elif self._is_relayout(call, read):
            self._num_relayouts -= 1
            self._carry(call, origin)
            self._names[call.results[0]] = next(iter(origin.tensors))
        elif self._cursor == len(self._expected):
            self._fault(f"has a call of {call.target} beyond its stage's operations")
        else:
            operation = self._expected[self._cursor]
            self._cursor += 1
            self._compare(call, operation, origin)
            self._settle(call, operation)

    def _carry(self, call: Call, origin: _Origin) -> None:
        for name in call.results:
            self._origins[name] = origin

    def _compare(self, call: Call, operation: Operation, origin: _Origin) -> None:
        target = call.target.removeprefix("torch.ops.")
        if not is_number_function(call.target) and target != operation.target:
            self._fault(f"calls {target} where the graph has {operation.name} ({operation.target})")
        elif origin.tensors != set(operation.inputs):
            self._fault(
                f"computes {operation.name!r} from {sorted(origin.tensors)}, the graph from "
                f"{sorted(operation.inputs)}"
            )
        elif origin.weights != set(operation.parameters):
            self._fault(
                f"computes {operation.name!r} with {sorted(origin.weights)}, the graph with "
                f"{sorted(operation.parameters)}"
            )

    def _settle(self, call: Call, operation: Operation) -> None:
        """Gives the call's results the names that they have in the graph."""
        results = [name for name in call.results if name in self._used]
        names = [operation.name]
        if call.is_sequence:
            names = [pick.name for pick in self._picks.get(operation.name, ())]
            if len(names) != len(results):
                self._fault(
                    f"uses {len(results)} results of {operation.name!r}, the graph {len(names)}"
                )
                return
        for name in call.results:
            self._origins[name] = _Origin(tensors=frozenset({operation.name}))
        for name, graph_name in zip(results, names, strict=False):
            self._origins[name] = _Origin(tensors=frozenset({graph_name}))
            self._names[name] = graph_name


def _names(value: object) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [item.name for item in items if isinstance(item, Result)]
