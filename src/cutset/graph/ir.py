"""The captured model as plain data: operations in execution order, and where they come from.

Nothing here imports torch, so that cuts can be found and plans made on any machine.

What counts as an operation: a call that computes tensors from the model's inputs. Calls that only
compute numbers (a batch size read from a shape) and calls that depend on weights alone are *not*
operations. They carry no data from one stage to the next; each stage that needs such a value
works it out again. Their weights count as weights of the operations that use them.
"""

from __future__ import annotations

import msgspec

from cutset.ranges import Count
from cutset.tensors import TensorSpec


class ModuleCall(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call of one module: an operation's module path is a tuple of these, outermost first.

    Attributes:
        path: dotted path of the module in the model; the root is ``""``.
        call: 0 for the first call of this module in the model's forward, then 1, ...
        class_name: qualified name of its class, e.g. ``"torch.nn.modules.conv.Conv2d"``.
    """

    path: str
    call: Count
    class_name: str


class Operation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One call in the captured graph.

    Attributes:
        name: unique in the graph, e.g. ``"conv2d_3"``; its result goes by the same name.
        target: what is called, e.g. ``"aten.conv2d.default"``; ``"getitem"`` picks one tensor out
            of an operation that returns several.
        inputs: the model inputs and operations whose results it reads, each once, in order.
        outputs: its result; several specs where it returns several tensors (then only
            ``getitem`` operations read it).
        parameters: original names of the parameters, buffers and constants that it reads, also
            through values that depend on weights alone.
        modules: the calls of modules inside which it happens, root first.
        flops: per row, one multiply-add counted as one (torchvision's ``_ops`` counts the same).
        source: ``file:line`` of the innermost user code that made the call, or ``""``.
    """

    name: str
    target: str
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: tuple[str, ...]
    modules: tuple[ModuleCall, ...]
    flops: Count
    source: str = ""

    @property
    def base_name(self) -> str:
        """The target without namespace and overload: ``"conv2d"``, ``"flatten"``."""
        parts = self.target.split(".")
        return parts[1] if len(parts) > 1 else parts[0]

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of its result for one row."""
        return sum(spec.bytes_per_sample for spec in self.outputs)


class Parameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A parameter, buffer or constant of the model.

    Attributes:
        name: its original name, e.g. ``"layer1.0.conv1.weight"``. Tied weights go by the name
            under which the model lists them first.
        kind: ``"parameter"``, ``"buffer"`` or ``"constant"``.
        num_elements: how many numbers it holds.
        num_bytes: their size in bytes.
    """

    name: str
    kind: str
    num_elements: Count
    num_bytes: Count


class Graph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A captured model.

    Attributes:
        model_class: qualified name of the root module's class.
        inputs: the model's tensor inputs, in order.
        operations: in execution order.
        outputs: names of the operations or inputs that the model returns, in order.
        parameters: all that the model owns, used by an operation or not, in the model's order.
    """

    model_class: str
    inputs: tuple[TensorSpec, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @property
    def flops(self) -> int:
        """Multiply-adds for one row."""
        return sum(operation.flops for operation in self.operations)

    @property
    def num_parameters(self) -> int:
        """How many trainable numbers the model has, used in inference or not; no buffers."""
        return sum(p.num_elements for p in self.parameters if p.kind == "parameter")

    def spec_of(self, name: str) -> TensorSpec:
        """The spec of the single tensor that goes by `name` (an input or an operation).

        Raises:
            KeyError: no input or operation has this name, or it returns several tensors.
        """
        for spec in self.inputs:
            if spec.name == name:
                return spec
        for operation in self.operations:
            if operation.name == name and len(operation.outputs) == 1:
                return operation.outputs[0]
        raise KeyError(name)


def boundary_specs(graph: Graph, position: int) -> tuple[TensorSpec, ...]:
    """What crosses a cut at `position`: made before it, used after it, each tensor once.

    At 0 these are the model's inputs, at the end its outputs.
    """
    if position == 0:
        return graph.inputs
    if position == len(graph.operations):
        return tuple(graph.spec_of(name) for name in dict.fromkeys(graph.outputs))
    made = dict.fromkeys(
        [spec.name for spec in graph.inputs] + [op.name for op in graph.operations[:position]]
    )
    needed = {name for op in graph.operations[position:] for name in op.inputs}
    needed |= set(graph.outputs)
    return tuple(graph.spec_of(name) for name in made if name in needed)


def made_between(graph: Graph, start: int, stop: int) -> tuple[TensorSpec, ...]:
    """What crosses a cut at `stop` and does not cross one at `start`: what is made between."""
    given = {spec.name for spec in boundary_specs(graph, start)}
    return tuple(spec for spec in boundary_specs(graph, stop) if spec.name not in given)
