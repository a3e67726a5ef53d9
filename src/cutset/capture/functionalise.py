"""Takes in-place operations out, so that no stage alters a tensor that another still reads."""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.export import ExportedProgram
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from cutset.capture.diagnosis import rows_symbols, shortened
from cutset.capture.source_lines import source_line
from cutset.errors import CaptureError

logger = logging.getLogger(__name__)

_ALIASES_BY_SHAPE = frozenset({"sum_to_size"})
"""Operations that return their argument for some numbers of rows and a new tensor for others."""


def replace_inplace_operations(exported: ExportedProgram) -> ExportedProgram:
    """Returns an equal program in which no operation changes a tensor.

    Where every in-place operation acts on a tensor that nothing else sees, each is exchanged for
    its twin that returns a new tensor, and all names stay as captured. Otherwise (a change
    through a view) torch rewrites the whole program in functional operations.

    Raises:
        CaptureError: memory is changed that an operation shares without its signature saying so;
            torch would rewrite that to something else. Or torch cannot rewrite it, or only for
            the number of rows in the example.
    """
    changed = [node for node in exported.graph.nodes if _is_inplace(node)]
    inputs = frozenset(exported.graph_signature.user_inputs)
    order = {node: index for index, node in enumerate(exported.graph.nodes)}
    if all(_acts_alone(node, inputs, order) and _twin(node) is not None for node in changed):
        for node in changed:
            _exchange(node, order)
        exported.graph_module.recompile()
        return exported
    shared = [node for node in changed if not _acts_alone(node, inputs, order)]
    for node in shared:
        _check_shared_openly(node, exported)
    logger.info("a view is changed in place: the program is rewritten in functional operations")
    return _rewritten(exported, (shared or changed)[0])


def _rewritten(exported: ExportedProgram, changed: Node) -> ExportedProgram:
    """The program in functional operations; `changed` is named where that cannot be."""
    place = source_line(changed)
    where = f"{changed.target} changes a tensor in place{f' ({place})' if place else ''}"
    advice = "Write a new tensor there (x = x + 1 in place of x += 1)"
    _select_each_part(exported)
    num_symbols = len(rows_symbols(exported))
    try:
        rewritten: ExportedProgram = exported.run_decompositions({})
    except Exception as error:
        text = re.sub(r"^While executing \w+, ", "", str(error)).partition("While executing")[0]
        words = shortened(" ".join(text.split()), 240).rstrip(".")
        raise CaptureError(
            f"{where}, which torch cannot rewrite without that: "
            f"{words or type(error).__name__}. {advice}",
            source=place or None,
            operation=str(changed.target),
        ) from error
    if len(rows_symbols(rewritten)) < num_symbols:
        raise CaptureError(
            f"{where}, which torch can rewrite without that for the number of rows in the example "
            f"alone. {advice}",
            source=place or None,
            operation=str(changed.target),
        )
    return rewritten


def _select_each_part(exported: ExportedProgram) -> None:
    """Exchanges the parts of ``unbind`` for the same views by ``select``.

    torch rewrites a change to the former for one number of rows alone.
    """
    graph = exported.graph_module.graph
    for node in list(graph.nodes):
        if node.target is not torch.ops.aten.unbind.int:
            continue
        source, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
        for part in list(node.users):
            if part.target is not operator.getitem:
                continue
            with graph.inserting_before(part):
                select = torch.ops.aten.select.int
                new = graph.call_function(select, (source, dim, part.args[1]))
            new.meta = dict(part.meta)
            part.replace_all_uses_with(new)
            graph.erase_node(part)
        if not node.users:
            graph.erase_node(node)
    exported.graph_module.recompile()


def _is_inplace(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_view(node: Node) -> bool:
    """Whether the result may share memory with an argument.

    A signature says so of most operations, and is silent of others: ``type_as``,
    ``broadcast_tensors``, ``dropout`` in evaluation. Of these the storages decide.
    """
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, Node) and _is_view(source)
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target._opname in _ALIASES_BY_SHAPE:
        return True
    schema = node.target._schema
    if schema.is_mutable:
        return False
    return _is_declared(node) or _shares_storage(node)


def _is_declared(node: Node) -> bool:
    """Whether the operation's signature says that its result shares memory with an argument."""
    return any(
        returned.alias_info is not None and not returned.alias_info.is_write
        for returned in node.target._schema.returns  # type: ignore[union-attr]
    )


def _check_shared_openly(changed: Node, exported: ExportedProgram) -> None:
    """Refuses a change to memory that is shared by an operation whose signature is silent of it."""
    sharing = {changed}
    pending = [changed]
    while pending:
        node = pending.pop()
        sources = node.all_input_nodes if _is_view(node) or _is_inplace(node) else []
        for other in (*sources, *(user for user in node.users if _is_view(user))):
            if other not in sharing:
                sharing.add(other)
                pending.append(other)
    for node in exported.graph.nodes:
        is_operation = isinstance(node.target, torch._ops.OpOverload)
        if node in sharing and is_operation and _is_view(node) and not _is_declared(node):
            line = source_line(changed)
            raise CaptureError(
                f"{changed.target} changes a tensor in place{f' ({line})' if line else ''} whose "
                f"memory {node.target} shares with its argument, without saying so; others that "
                f"read it would see another value. Write a new tensor there (x = x + 1 in place of "
                f"x += 1)"
            )


def _shares_storage(node: Node) -> bool:
    """Whether the operation hands an argument's memory on, called on tensors without elements."""
    given: list[int] = []

    def without_elements(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            sizes, strides = ([_hint(n) for n in ns] for ns in (value.shape, value.stride()))
            tensor = torch.empty_strided(sizes, strides, dtype=value.dtype, device="meta")
            given.append(tensor.untyped_storage()._cdata)
            held.append(tensor)
            return tensor
        return _hint(value) if isinstance(value, torch.SymInt) else value

    held: list[torch.Tensor] = []
    try:
        arguments = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        args, kwargs = pytree.tree_map(without_elements, arguments)
        kwargs = {k: torch.device("meta") if k == "device" else v for k, v in kwargs.items()}
        with torch.no_grad():
            results = pytree.tree_leaves(node.target(*args, **kwargs))  # type: ignore[operator]
    except Exception:  # noqa: BLE001 - whatever cannot be called like this is taken for a view
        return True
    tensors = [result for result in results if isinstance(result, torch.Tensor)]
    return any(tensor.untyped_storage()._cdata in given for tensor in tensors)


def _hint(length: int | torch.SymInt) -> int:
    """The length in the example where the length grows with the rows."""
    return length if isinstance(length, int) else int(cast(int, length.node.hint))


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
    # If the argument is itself a view, nobody else may read what it views from then on.
    while _is_view(changed):
        base = changed.args[0]
        if not isinstance(base, Node) or any(
            user is not changed and (_is_view(user) or order[user] > order[node])
            for user in base.users
        ):
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
