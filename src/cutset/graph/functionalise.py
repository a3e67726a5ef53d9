"""Takes in-place operations out, so that no stage alters a tensor that another still reads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

logger = logging.getLogger(__name__)

_RETURNS_ITS_INPUT = frozenset(
    {"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
)
"""Operations that hand their input through in evaluation without their schema saying so."""


def replace_inplace_operations(exported: ExportedProgram) -> ExportedProgram:
    """Returns an equal program in which no operation changes a tensor.

    Where every in-place operation acts on a tensor that nothing else sees, each is exchanged for
    its twin that returns a new tensor, and all names stay as captured. Otherwise (a change
    through a view) torch rewrites the whole program in functional operations.
    """
    changed = [node for node in exported.graph.nodes if _is_inplace(node)]
    inputs = frozenset(exported.graph_signature.user_inputs)
    order = {node: index for index, node in enumerate(exported.graph.nodes)}
    if all(_acts_alone(node, inputs, order) and _twin(node) is not None for node in changed):
        for node in changed:
            _exchange(node, order)
        exported.graph_module.recompile()
        return exported
    logger.info("a view is changed in place: the program is rewritten in functional operations")
    rewritten: ExportedProgram = exported.run_decompositions({})
    return rewritten


def _is_inplace(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_view(node: Node) -> bool:
    """Whether the result may share memory with an argument."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target._opname in _RETURNS_ITS_INPUT:
        return True
    return any(
        returned.alias_info is not None and not returned.alias_info.is_write
        for returned in node.target._schema.returns
    )


def _acts_alone(node: Node, inputs: frozenset[Any], order: Mapping[Node, int]) -> bool:
    """Whether exchanging `node` cannot be seen by anyone but the later users of its argument."""
    changed = node.args[0] if node.args else None
    writes = [
        argument
        for argument in node.target._schema.arguments  # type: ignore[union-attr]
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    if not isinstance(changed, Node) or len(writes) != 1:
        return False
    if any(_is_view(user) and order[user] < order[node] for user in changed.users):
        return False
    # If the argument is itself a view, what it views must have no other reader.
    while _is_view(changed):
        base = changed.args[0]
        if not isinstance(base, Node) or len(base.users) != 1:
            return False
        changed = base
    # To change a weight or a buffer would be to change the model itself.
    return changed.op == "call_function" or changed.name in inputs


def _twin(node: Node) -> torch._ops.OpOverload | None:
    """The operation that computes the same and returns a new tensor, if there is one."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    name = target._opname
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(getattr(torch.ops, target.namespace), name[:-1], None)
    if packet is None or target._overloadname not in packet.overloads():
        return None
    twin = getattr(packet, target._overloadname)
    return twin if isinstance(twin, torch._ops.OpOverload) else None


def _exchange(node: Node, order: dict[Node, int]) -> None:
    twin = _twin(node)
    changed = node.args[0]
    assert twin is not None
    assert isinstance(changed, Node)
    graph = node.graph
    with graph.inserting_before(node):
        name = twin._opname
        new = graph.create_node("call_function", twin, node.args, node.kwargs, name=name)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    # Later readers of the old name meant the changed tensor.
    order[new] = order[node]
    changed.replace_all_uses_with(new, lambda user: order[user] > order[node])
    graph.erase_node(node)
