"""From a checked `Program` to a function by way of torch.fx, without `torch.export.load`.

`torch.export.load` unpickles, resolves names and evaluates formulas in order to give back an
`ExportedProgram` with all that training and recompiling may ask of it. To compute a stage's
outputs, less will do: call each listed operation on the results of earlier ones. So the graph is
built from the checked data alone. That also leaves out the guards of the export, with their habit
of refusing a batch of one row, and takes a tenth of the time.

The calls are the same, on the same weights in the same layout, so results are equal bit for bit;
where a result is written over a dead argument instead, that is so too (`cutset.capture.reuse`).
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.fx

from cutset.bundles.reading.torch.archive import ProgramArchive
from cutset.bundles.reading.torch.operators import ASSERTIONS, resolve_operator
from cutset.bundles.reading.torch.program import Call, OnDevice, Program, Result, Weight, results_in
from cutset.capture.reuse import reuse_dead_tensors
from cutset.errors import UnsafeBundle

_MAX_EXPANDED_BYTES = 1 << 30
"""Most bytes of a weight that repeats what is stored, by strides of 0."""

_DEFORMED_CONVOLUTION = "torch.ops.torchvision.deform_conv2d.default"


def build_module(
    program: Program, archive: ProgramArchive, *, device: str = "cpu"
) -> torch.fx.GraphModule:
    """A module that computes the program's outputs, a tuple, from its inputs.

    Args:
        program: checked by `cutset.bundles.reading.torch.decode.read_program`.
        archive: the open file it came from; the weights that calls use are read.
        device: where weights are put and tensors made.

    Raises:
        UnsafeBundle: a call does not fit its operation's signature, or a weight's bytes are
            damaged.
    """
    return _Builder(program, archive, torch.device(device)).build()


class _Builder:
    """Builds one module; a class only to hold the tables of names."""

    def __init__(self, program: Program, archive: ProgramArchive, device: torch.device) -> None:
        self._program = program
        self._archive = archive
        self._device = device
        self._graph = torch.fx.Graph()
        self._nodes: dict[str, torch.fx.Node] = {}
        self._storages: dict[str, torch.Tensor] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def build(self) -> torch.fx.GraphModule:
        program = self._program
        calls = [call for call in program.calls if call.target not in ASSERTIONS]
        for name in program.inputs:
            self._nodes[name] = self._graph.placeholder(_local(name))
        used = {name for call in calls for name in results_in(call.arguments)}
        used.update(program.outputs)
        for index, (name, weight) in enumerate(program.weights.items()):
            if name in used:
                attribute = f"weight_{index}"
                self._tensors[attribute] = torch.nn.Parameter(
                    self._load(weight), requires_grad=weight.requires_grad
                )
                self._nodes[name] = self._graph.get_attr(attribute)
        for call in calls:
            self._add(call)
        self._graph.output(tuple(self._node(name) for name in program.outputs))
        module = torch.fx.GraphModule(self._tensors, self._graph, class_name="Stage")
        reuse_dead_tensors(module)
        return module

    def _refusal(self, what: str) -> UnsafeBundle:
        return UnsafeBundle(f"{self._program.path}: {what}", path=self._program.path)

    def _node(self, name: str) -> torch.fx.Node:
        node = self._nodes.get(name)
        if node is None:
            raise self._refusal(f"value {name!r} is used, but no call computes it")
        return node

    def _load(self, weight: Weight) -> torch.Tensor:
        storage = self._storages.get(weight.member)
        if storage is None:
            storage = self._archive.read_storage(weight.member).to(self._device)
            self._storages[weight.member] = storage
        if weight.num_bytes > max(storage.numel(), _MAX_EXPANDED_BYTES):
            raise self._refusal(
                f"weight {weight.name!r} claims {weight.num_bytes} bytes and has {storage.numel()}"
            )
        if 0 in weight.sizes:
            return torch.empty(weight.sizes, dtype=weight.dtype, device=self._device)
        if storage.numel() % weight.dtype.itemsize:
            raise self._refusal(f"entry {weight.member!r} is no whole number of {weight.dtype}")
        return storage.view(weight.dtype).as_strided(weight.sizes, weight.strides, weight.offset)

    def _add(self, call: Call) -> None:
        function = resolve_operator(call.target, path=self._program.path)
        values = [(name, self._value(value)) for name, value in call.arguments]
        args: tuple[Any, ...]
        kwargs: dict[str, Any]
        if isinstance(function, torch._ops.OpOverload):
            if call.target == _DEFORMED_CONVOLUTION:
                values = [(k, self._numbers(v) if k == "offset" else v) for k, v in values]
            args, kwargs = self._fit(function, dict(values), call.target)
        else:
            args, kwargs = tuple(value for _, value in values), {}
        name = call.results[0] if call.results and not call.is_sequence else None
        node = self._graph.create_node(
            "call_function", function, args, kwargs, name=_local(name) if name else None
        )
        if call.is_sequence:
            for index, result in enumerate(call.results):
                self._nodes[result] = self._graph.create_node(
                    "call_function", operator.getitem, (node, index), name=_local(result)
                )
        elif name is not None:
            self._nodes[name] = node

    def _numbers(self, node: torch.fx.Node) -> torch.fx.Node:
        """Offsets, those that are no number far away: the kernel takes NaN for a place to read."""
        far: dict[str, Any] = {"nan": math.inf, "posinf": math.inf, "neginf": -math.inf}
        return self._graph.call_function(torch.ops.aten.nan_to_num.default, (node,), far)

    def _value(self, value: Any) -> Any:
        if isinstance(value, Result):
            return self._node(value.name)
        if isinstance(value, OnDevice):
            return self._device
        if isinstance(value, list):
            return [self._value(item) for item in value]
        return value

    def _fit(
        self, function: torch._ops.OpOverload, values: dict[str, Any], target: str
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments in the order of the signature; positional as far as they go without a gap."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        gap = False
        for argument in function._schema.arguments:
            if argument.name not in values:
                if not argument.has_default_value():
                    raise self._refusal(f"operation {target!r} lacks argument {argument.name!r}")
                gap = True
            elif argument.kwarg_only or gap:
                gap = True
                kwargs[argument.name] = values.pop(argument.name)
            else:
                args.append(values.pop(argument.name))
        if values:
            raise self._refusal(f"operation {target!r} has no argument {next(iter(values))!r}")
        return tuple(args), kwargs


def _local(name: str) -> str:
    """A variable's name in the generated code: it shadows nothing that the code refers to."""
    return f"v_{name}"
