"""Numbers that a model takes out of its own constants: they are known when it is captured."""

from __future__ import annotations

from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

_ITEMS = frozenset({torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default})
_HELD = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR})


def fold_constant_items(exported: ExportedProgram) -> None:
    """Exchanges every ``item()`` of what stands on weights and constants alone for its number.

    torch gives such a number a symbol, as if only a run could tell it.
    """
    signature = exported.graph_signature
    changed = {
        spec.target for spec in signature.output_specs if spec.kind is OutputKind.BUFFER_MUTATION
    }
    held = {**exported.state_dict, **exported.constants}
    values: dict[Node, Any] = {}
    names = {
        spec.arg.name: held[spec.target]
        for spec in signature.input_specs
        if spec.kind in _HELD and spec.target in held and spec.target not in changed
    }
    for node in list(exported.graph.nodes):
        if node.op == "placeholder" and node.name in names:
            values[node] = names[node.name]
        if node.target in _ITEMS and _stands_on(node, values):
            number = _value(node, values)
            symbol = node.meta["val"]
            if isinstance(symbol, (torch.SymInt, torch.SymFloat)):
                environment: Any = symbol.node.shape_env
                known = sympy.Integer(number) if isinstance(number, int) else sympy.Float(number)
                environment.replacements[symbol.node._expr] = known
            node.replace_all_uses_with(number)
            exported.graph.erase_node(node)
    exported.graph_module.recompile()


def _stands_on(node: Node, values: dict[Node, Any]) -> bool:
    """Whether a node can be worked out from the values that are known; no deep chains are tried."""
    waiting, seen = list(node.all_input_nodes), set[Node]()
    while waiting:
        current = waiting.pop()
        if current in values or current in seen:
            continue
        if current.op != "call_function" or not isinstance(current.target, torch._ops.OpOverload):
            return False
        tags = current.target.tags
        if torch.Tag.nondeterministic_seeded in tags or current.target._schema.is_mutable:
            return False
        if any(_is_mutating(user) for user in current.users):
            return False
        seen.add(current)
        waiting += current.all_input_nodes
    return True


def _is_mutating(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _value(node: Node, values: dict[Node, Any]) -> Any:
    """What a node gives, worked out with the model's own numbers."""
    if node not in values:
        args, kwargs = torch.fx.node.map_arg(
            (node.args, node.kwargs), lambda argument: _value(argument, values)
        )
        assert callable(node.target)
        with torch.no_grad():
            values[node] = node.target(*args, **kwargs)
    return values[node]
